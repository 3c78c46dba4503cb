"""One shard: rows gathered from fragments, written in every format under names made of their content.

Knows no Ray or torch. A shard is built in memory and published whole; a shard that stands is not written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.contract.columns import token_schema
from pipeline.contract.schema import TOKEN_ROW_GROUP_ROWS
from pipeline.contract.specs import Contract
from pipeline.dataset.manifest import ShardFile
from pipeline.dataset.parquet_shard import shard_to_parquet
from pipeline.dataset.paths import SHARD_DIGITS
from pipeline.dataset.tar_shard import shard_to_tar
from pipeline.dataset.token_store import TokenStore
from pipeline.export.layout import ShardLayout, shuffled_order
from pipeline.storage import Folder

MAX_SLICES = 16
"""Above so many, copying rows takes less time than putting slices together."""

SUFFIX = {"parquet": "parquet", "webdataset": "tar"}


@dataclass(frozen=True)
class Fragment:
    """Where a unit's tokens stand: index of its store, key and stamp."""

    store: int
    unit_key: str
    stamp: str


Renames = tuple[tuple[int, int, str], ...]
"""(first row, past-the-last row, new clip id) of a unit's clips that `duplicate_ids: suffix` renames."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to build, with the addresses of the fragments it draws from."""

    index: int
    layout: ShardLayout
    fragments: Mapping[int, Fragment]
    renames: Mapping[int, Renames]
    """By unit."""


@dataclass(frozen=True)
class ShardResult:
    """One built shard: its files by format, and its windows in order where they were shuffled."""

    index: int
    split: str
    files: Mapping[str, ShardFile]
    windows: pa.Table | None


@dataclass(frozen=True)
class ShardBuilder:
    """Built by the driver, sent to every export task; owns only addresses and the contract."""

    output: Folder
    stores: tuple[TokenStore, ...]
    contract: Contract
    formats: tuple[str, ...]
    group_rows: int = TOKEN_ROW_GROUP_ROWS
    """Rows of a Parquet row group at most; recipes (reuse.py) do not hold it, so an output keeps to one value."""

    def build(self, task: ShardTask) -> Iterator[ShardResult]:
        """Yield the shard of a task once its files stand."""
        layout = task.layout
        parts = [
            select_rows(self.read_unit(task.fragments[piece.unit], task.renames.get(piece.unit, ())), piece.intervals)
            for piece in layout.pieces
        ]
        tokens = plain_rows(parts, self.schema).cast(self.schema)
        if layout.shuffle_seed:
            tokens = tokens.take(pa.array(shuffled_order(layout.shuffle_seed, tokens.num_rows)))
        yield self.publish_shard(task.index, layout.split, tokens, is_shuffled=bool(layout.shuffle_seed))

    @property
    def schema(self) -> pa.Schema:
        """Columns of a shard."""
        return token_schema(self.contract.codec, self.contract.corpus)

    def read_unit(self, fragment: Fragment, renames: Renames) -> pa.Table:
        """Return the token rows of a unit, its clips called as the dataset calls them."""
        table = self.stores[fragment.store].read_fragment(fragment.unit_key, fragment.stamp)
        for start, stop, clip_id in renames:
            table = _renamed(table, start, stop, clip_id)
        return table

    def publish_shard(self, index: int, split: str, tokens: pa.Table, *, is_shuffled: bool) -> ShardResult:
        """Write a shard in every format.

        Args:
            tokens: its rows in order, of `schema`.
            is_shuffled: whether the result lists the windows.
        """
        files = {name: self._publish(split, name, tokens) for name in self.formats}
        return ShardResult(index, split, files, tokens.select(["clip_id", "start_frame"]) if is_shuffled else None)

    def _publish(self, split: str, name: str, tokens: pa.Table) -> ShardFile:
        contract = self.contract
        data: bytes | memoryview
        if name == "parquet":
            data = shard_to_parquet(tokens, contract, self.group_rows)
        else:
            data = memoryview(shard_to_tar(tokens, contract.codec, contract.corpus))
        digest = hashlib.sha256(data).hexdigest()
        path = f"{name}/{split}/{split}-{digest[:SHARD_DIGITS]}.{SUFFIX[name]}"
        if not self._stands(path, data):
            self.output.publish(path, data)
        return ShardFile(path=path, split=split, windows=tokens.num_rows, bytes=len(data), sha256=digest)

    def _stands(self, path: str, data: bytes | memoryview) -> bool:
        """Return whether a file holds just these bytes; its name alone would not show damage."""
        standing = self.output.stat(path)
        return standing is not None and standing.num_bytes == len(data) and self.output.read(path) == data


def select_rows(table: pa.Table, intervals: np.ndarray) -> pa.Table:
    """Return the rows of intervals, (n, 2) first and past-the-last row.

    Few rows of many are copied: a slice would keep the whole table in memory, and a small split draws on every unit.
    """
    num_rows = int((intervals[:, 1] - intervals[:, 0]).sum())
    if len(intervals) <= MAX_SLICES and num_rows > table.num_rows // 2:
        return pa.concat_tables([table.slice(start, stop - start) for start, stop in intervals])
    rows = np.concatenate([np.arange(start, stop) for start, stop in intervals])
    return table.take(pa.array(rows))


def _renamed(table: pa.Table, start: int, stop: int, clip_id: str) -> pa.Table:
    names = table["clip_id"].to_pylist()
    names[start:stop] = [clip_id] * (stop - start)
    return table.set_column(0, table.schema.field("clip_id"), pa.array(names, pa.string()))


def plain_rows(parts: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return rows as one chunk, sources as plain text: a dictionary made of it holds no source of other rows."""
    plain = schema.set(schema.get_field_index("source"), pa.field("source", pa.string(), nullable=False))
    return pa.concat_tables([part.cast(plain) for part in parts]).combine_chunks()
