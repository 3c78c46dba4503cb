"""One shard: rows gathered from fragments, written in every format under names made of their content.

Knows no Ray or torch. A shard is built in memory and published whole; a shard that stands is not written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config import Contract
from pipeline.export.layout import ShardLayout, shuffled_order
from pipeline.export.parquet import shard_to_parquet
from pipeline.export.webdataset import shard_to_tar
from pipeline.manifest import ShardFile
from pipeline.schema import token_schema
from pipeline.storage import Folder
from pipeline.token_store import TokenStore

SUFFIX = {"parquet": "parquet", "webdataset": "tar"}


@dataclass(frozen=True)
class Fragment:
    """Where a unit's tokens stand: index of its store, key and stamp."""

    store: int
    unit_key: str
    stamp: str


@dataclass(frozen=True)
class ShardTask:
    """Shards to build in one task, with the addresses of the fragments they draw from."""

    first_index: int
    layouts: tuple[ShardLayout, ...]
    fragments: Mapping[int, Fragment]
    renames: Mapping[int, tuple[tuple[int, int, str], ...]]
    """unit -> (first row, past-the-last row, new clip id), where `duplicate_ids: suffix` renames."""


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

    def build(self, task: ShardTask) -> Iterator[ShardResult]:
        """Yield each shard of a task once its files stand."""
        tables = self._gather(task)
        for offset, layout in enumerate(task.layouts):
            tokens = tables[offset]
            tables[offset] = None
            if layout.shuffle_seed:
                tokens = tokens.take(pa.array(shuffled_order(layout.shuffle_seed, tokens.num_rows)))
            files = {name: self._publish(layout.split, name, tokens) for name in self.formats}
            windows = tokens.select(["clip_id", "start_frame"]) if layout.shuffle_seed else None
            yield ShardResult(task.first_index + offset, layout.split, files, windows)

    def _gather(self, task: ShardTask) -> list[pa.Table]:
        """Return the rows of every shard, each fragment read once."""
        schema = token_schema(self.contract.codec.half_bytes)
        rows: list[list[pa.Table]] = [[] for _ in task.layouts]
        for unit in sorted(task.fragments):
            fragment = task.fragments[unit]
            table = self.stores[fragment.store].read_fragment(fragment.unit_key, fragment.stamp)
            for start, stop, clip_id in task.renames.get(unit, ()):
                table = _renamed(table, start, stop, clip_id)
            for shard, layout in enumerate(task.layouts):
                for piece in layout.pieces:
                    if piece.unit == unit:
                        rows[shard].append(_select(table, piece.intervals))
        return [_canonical(parts, schema) for parts in rows]

    def _publish(self, split: str, name: str, tokens: pa.Table) -> ShardFile:
        is_parquet = name == "parquet"
        data = shard_to_parquet(tokens, self.contract) if is_parquet else shard_to_tar(tokens, self.contract.codec)
        digest = hashlib.sha256(data).hexdigest()
        path = f"{name}/{split}/{split}-{digest[:12]}.{SUFFIX[name]}"
        if not self._stands(path, data):
            self.output.publish(path, data)
        return ShardFile(path=path, split=split, windows=tokens.num_rows, bytes=len(data), sha256=digest)

    def _stands(self, path: str, data: bytes) -> bool:
        """Return whether a file holds just these bytes; its name alone would not show damage."""
        standing = self.output.stat(path)
        return standing is not None and standing.num_bytes == len(data) and self.output.read(path) == data


def _select(table: pa.Table, intervals: np.ndarray) -> pa.Table:
    if len(intervals) <= 16:
        return pa.concat_tables([table.slice(start, stop - start) for start, stop in intervals])
    rows = np.concatenate([np.arange(start, stop) for start, stop in intervals])
    return table.take(pa.array(rows))


def _renamed(table: pa.Table, start: int, stop: int, clip_id: str) -> pa.Table:
    names = table["clip_id"].to_pylist()
    names[start:stop] = [clip_id] * (stop - start)
    return table.set_column(0, table.schema.field("clip_id"), pa.array(names, pa.string()))


def _canonical(parts: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return rows as one chunk whose dictionary holds its own sources only, in order of appearance."""
    plain = schema.set(schema.get_field_index("source"), pa.field("source", pa.string(), nullable=False))
    table = pa.concat_tables([part.cast(plain) for part in parts]).combine_chunks()
    return table.cast(schema)
