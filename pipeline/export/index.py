"""The small tables beside the shards: clips, units, quarantine.

Knows no Ray, torch or storage. Everything is derived from ledgers and the layout.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.contract.schema import (
    CLIP_INDEX_SCHEMA,
    QUARANTINE_SCHEMA,
    UNIT_INDEX_SCHEMA,
)
from pipeline.dataset.counts import count_drops
from pipeline.dataset.manifest import SplitCounts
from pipeline.export.clips import ClipTable
from pipeline.export.layout import ShardLayout
from pipeline.export.splits import Splits

ROWS_A_GROUP = 4096
"""Of the tables beside the shards: what their writer holds at once."""


def table_to_parquet(table: pa.Table) -> bytes:
    """Return a small table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_A_GROUP)
    return sink.getvalue()


def clip_index(clips: ClipTable, splits: Splits, shards: Sequence[ShardLayout]) -> pa.Table:
    """Return index/clips.parquet: where every clip's windows begin, or why it has none.

    `first_shard` counts the shards of one format in the order of dataset.json; both it and `first_row`
    are -1 for dropped clips and in shuffled exports.
    """
    first_shard = np.full(clips.table.num_rows, -1, np.int32)
    first_row = np.full(clips.table.num_rows, -1, np.int32)
    for split in sorted({shard.split for shard in shards if not shard.shuffle_seed}):
        members = np.array([index for index, shard in enumerate(shards) if shard.split == split])
        ends = np.cumsum([shards[index].num_windows for index in members])
        chosen = np.flatnonzero(splits.holds(split) & (clips.num_windows > 0))
        first_window = np.cumsum(clips.num_windows[chosen]) - clips.num_windows[chosen]
        nth = np.searchsorted(ends, first_window, side="right")
        first_shard[chosen] = members[nth]
        first_row[chosen] = first_window - np.concatenate([[0], ends])[nth]
    columns = {name: clips.table[name] for name in ("clip_id", "source", "num_frames", "num_windows", "drop_reason")}
    columns |= {"split": splits.to_arrow(), "first_shard": first_shard, "first_row": first_row}
    return pa.table({name: columns[name] for name in CLIP_INDEX_SCHEMA.names}, schema=CLIP_INDEX_SCHEMA)


@dataclass(frozen=True)
class ClipCounts:
    """What a dataset holds, as dataset.json states it."""

    splits: dict[str, SplitCounts]
    counts: dict[str, int]
    drops: dict[str, int]


def count_clips(index: pa.Table, fps: float, num_units: int) -> ClipCounts:
    """Return the counts of a dataset.

    Args:
        index: index/clips.parquet.
        fps: frames a second of all frame counts.
    """
    windows = index["num_windows"].to_numpy().astype(np.int64)
    frames = index["num_frames"].to_numpy().astype(np.int64)
    splits: dict[str, SplitCounts] = {}
    for split in sorted(pc.unique(index["split"].filter(pa.array(windows > 0))).to_pylist()):
        inside = pc.equal(index["split"], split).to_numpy() & (windows > 0)
        num_frames = int(frames[inside].sum())
        splits[split] = SplitCounts(
            clips=int(inside.sum()),
            windows=int(windows[inside].sum()),
            frames=num_frames,
            hours=round(num_frames / fps / 3600, 6),
        )
    drops = count_drops(index["drop_reason"])
    counts = {
        "units": num_units,
        "clips": int((windows > 0).sum()),
        "dropped_clips": drops.total(),
        "windows": int(windows.sum()),
        "frames": int(frames[windows > 0].sum()),
    }
    if num_filtered := index.num_rows - counts["clips"] - counts["dropped_clips"]:
        counts["filtered_clips"] = num_filtered
    return ClipCounts(splits, counts, dict(sorted(drops.items())))


def unit_index(clips: ClipTable, unit_keys: Sequence[str]) -> pa.Table:
    """Return index/units.parquet: the planned units, and what each gave."""
    num_units = len(unit_keys)
    return pa.table(
        {
            "unit_key": list(unit_keys),
            "num_clips": np.bincount(clips.unit, minlength=num_units).astype(np.int32),
            "num_windows": np.bincount(clips.unit, clips.num_windows, minlength=num_units).astype(np.int64),
        },
        schema=UNIT_INDEX_SCHEMA,
    )


def quarantine(clips: ClipTable) -> pa.Table:
    """Return quarantine.parquet: every dropped clip, with the reason and where it stands."""
    dropped = clips.table.filter(pc.not_equal(clips.table["drop_reason"], ""))
    names = {"reason": "drop_reason", "detail": "drop_detail"}
    return pa.table(
        {name: dropped[names.get(name, name)] for name in QUARANTINE_SCHEMA.names}, schema=QUARANTINE_SCHEMA
    )
