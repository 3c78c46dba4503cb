"""Every clip of a dataset: ledgers joined in order of units, duplicates resolved.

Knows no Ray or torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract.drop_reasons import DropReason
from pipeline.contract.schema import LEDGER_SCHEMA
from pipeline.contract.specs import CorpusSpec
from pipeline.errors import DataError

CLIPS_AT_ONCE = 4096
"""Clips that stand as Python's objects at once."""

CLIPS_A_CHUNK = 1024
"""Clips whose ledgers melt into one chunk of the table: few stand twice while they are joined, and Arrow's allocator
finds room for small chunks where others were freed."""


@dataclass(frozen=True)
class Spans:
    """Rows of fragments in runs, clip by clip: what a filter leaves of clips' windows."""

    clip: NDArray[np.int64]
    """(num_spans,) index of the clip, rising."""
    start: NDArray[np.int64]
    """(num_spans,) first row in its unit's fragment."""
    stop: NDArray[np.int64]
    """(num_spans,) row behind the last."""


@dataclass(frozen=True)
class ClipTable:
    """All clips in order of units, one entry a clip in every array."""

    table: pa.Table
    """LEDGER_SCHEMA; `num_windows` is 0 where a clip is dropped, here or before, or does not pass a filter, and
    `drop_reason` set where it is dropped."""
    unit: NDArray[np.int32]
    """(num_clips,) index of the clip's unit."""
    first_row: NDArray[np.int64]
    """(num_clips,) the clip's first row in its unit's fragment."""
    num_rows: NDArray[np.int64]
    """(num_clips,) the clip's rows there, whatever the dataset holds of them."""
    is_renamed: NDArray[np.bool_]
    """(num_clips,) whether clip_id differs from the fragment's."""
    spans: Spans | None = None
    """Rows that pass a filter of windows; None where clips are kept as a whole."""

    @property
    def num_windows(self) -> NDArray[np.int64]:
        """(num_clips,) windows that the dataset holds of each clip."""
        windows: NDArray[np.int64] = self.table["num_windows"].to_numpy().astype(np.int64)
        return windows

    def spans_of(self, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return clip, first row and row behind the last of every run of rows that the dataset holds of some clips.

        Args:
            chosen: indices of kept clips, rising.
        """
        if self.spans is None:
            return chosen, self.first_row[chosen], self.first_row[chosen] + self.num_rows[chosen]
        is_chosen = np.zeros(self.table.num_rows, np.bool_)
        is_chosen[chosen] = True
        inside = is_chosen[self.spans.clip]
        return self.spans.clip[inside], self.spans.start[inside], self.spans.stop[inside]


def join_ledgers(ledgers: Iterable[pa.Table]) -> ClipTable:
    """Return the clips of all ledgers, which come in order of units."""
    chunks: list[pa.Table] = [LEDGER_SCHEMA.empty_table()]
    lengths: list[int] = []
    group: list[pa.Table] = []
    num_clips = 0
    for ledger in ledgers:
        lengths.append(ledger.num_rows)
        group.append(ledger)
        num_clips += ledger.num_rows
        if num_clips >= CLIPS_A_CHUNK:
            chunks.append(pa.concat_tables(group).combine_chunks())
            group, num_clips = [], 0
    table = pa.concat_tables([*chunks, *group])
    windows = table["num_windows"].to_numpy().astype(np.int64)
    unit = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    of_unit = np.bincount(unit, windows, minlength=len(lengths)).astype(np.int64)
    first_row = np.cumsum(windows) - windows - (np.cumsum(of_unit) - of_unit)[unit]
    return ClipTable(table, unit, first_row, windows, np.zeros(table.num_rows, np.bool_))


def texts_of(column: pa.ChunkedArray) -> Iterator[Any]:
    """Yield the texts of a column, few at a time as Python's."""
    for start in range(0, len(column), CLIPS_AT_ONCE):
        yield from column.slice(start, CLIPS_AT_ONCE).to_pylist()


def content_of_clips(corpus: CorpusSpec) -> str:
    """Return what the ledgers' digests are of, in words."""
    return "motion" if corpus.audio is None else "motion with audio"


def _holders_of_shared_ids(clips: ClipTable) -> dict[str, list[int]]:
    """Return the kept clips by id, rising, of every id that several have.

    Numbers are sorted to find them, since the ids themselves, or counts of them, take several times the memory.
    """
    names, is_kept = clips.table["clip_id"], clips.num_windows > 0
    numbers = np.fromiter(map(hash, texts_of(names)), np.int64, len(names))
    ordered = np.sort(numbers[is_kept])
    shared = ordered[1:][ordered[1:] == ordered[:-1]]
    holders: dict[str, list[int]] = defaultdict(list)
    for index in np.flatnonzero(is_kept & np.isin(numbers, shared)).tolist():
        holders[names[index].as_py()].append(index)
    return {clip_id: indices for clip_id, indices in holders.items() if len(indices) > 1}


def resolve_duplicates(clips: ClipTable, duplicate_ids: str, content: str = "motion") -> ClipTable:
    """Keep one of the clips that share id and content; reject, or tell apart, those that share the id only.

    Args:
        duplicate_ids: `reject` drops every holder of a contested id; `suffix` adds `~` and 8 hex digits of
            the content's digest to each.
        content: what the ledgers' digests are of, for the details of drops.
    """
    holders = _holders_of_shared_ids(clips)
    if not holders:
        return clips
    columns = {name: clips.table[name].to_pylist() for name in ("clip_id", "num_windows", "drop_reason", "drop_detail")}
    digests, sources = clips.table["motion_digest"], clips.table["source"]
    is_renamed = clips.is_renamed.copy()
    taken = set(columns["clip_id"]) if duplicate_ids == "suffix" else set()

    def drop(index: int, detail: str) -> None:
        columns["num_windows"][index] = 0
        columns["drop_reason"][index] = DropReason.DUPLICATE_ID.value
        columns["drop_detail"][index] = detail

    for clip_id, indices in holders.items():
        first_of: dict[str, int] = {}
        for index in indices:
            digest = digests[index].as_py()
            if digest in first_of:
                drop(index, f"same id and {content} as in {sources[first_of[digest]].as_py()}, which is kept")
            else:
                first_of[digest] = index
        if len(first_of) == 1:
            continue
        for digest, index in first_of.items():
            if duplicate_ids == "suffix":
                columns["clip_id"][index] = _free_name(clip_id, digest, taken)
                is_renamed[index] = True
            else:
                others = sorted({sources[other].as_py() for other in first_of.values() if other != index})
                drop(index, f"same id, other {content} in {', '.join(others) or 'the same file'}")
    table = clips.table
    for name, values in columns.items():
        table = with_values(table, name, pa.array(values, LEDGER_SCHEMA.field(name).type))
    return replace(clips, table=table, is_renamed=is_renamed)


def with_values(ledger: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Return a ledger with other values in one column."""
    return ledger.set_column(LEDGER_SCHEMA.get_field_index(name), LEDGER_SCHEMA.field(name), values)


def _free_name(clip_id: str, digest: str, taken: set[str]) -> str:
    """Return the id with as much of the content's digest as no other id has."""
    for length in range(8, len(digest) + 1, 8):
        name = f"{clip_id}~{digest[:length]}"
        if name not in taken:
            taken.add(name)
            return name
    raise DataError(f"clip id {clip_id!r} cannot be told apart by a suffix: rename one of its clips")
