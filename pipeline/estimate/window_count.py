"""How many windows a job has: a few units are read and cut into windows.

Knows no codec and no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.counts import count_drops
from pipeline.errors import NoClipLeftError
from pipeline.hashing import hash64
from pipeline.plan.plan import Plan
from pipeline.plan.units import Unit
from pipeline.stages.blocks import MotionBlock
from pipeline.stages.read import UnitReader

SAMPLE_UNITS, SAMPLE_BYTES = 16, 256 << 20
"""Units that are read at most, and bytes of their input, beyond the first two."""

SIZED_WINDOWS = 64
"""Windows, of whole clips, that the first block is cut to."""


@dataclass(frozen=True)
class WindowCount:
    """How many windows a job has, by the units that were read."""

    num_windows: int
    margin: int
    """Twice the standard error; 0 where every unit was read."""
    num_units: int
    num_units_read: int
    num_clips_read: int
    num_clips_dropped: int
    """Of these."""
    drops: Mapping[str, int]
    """Of these, by reason."""
    num_clips: int
    """Of the whole job, dropped ones included, by the same reckoning as the windows."""
    hours: float
    """Of motion that is kept, likewise."""
    read_s: float
    """Seconds that reading these units took, one after the other."""
    read_bytes: int
    """Size of these units."""


def count_windows(plan: Plan, reader: UnitReader) -> tuple[WindowCount, MotionBlock]:
    """Read a sample of units, the same for the same plan; return the count, and the first block with windows.

    Raises:
        NoClipLeftError: the units that were read have no window.
        StorageError: storage did not answer after all retries, or an input changed meanwhile.
    """
    chosen: list[Unit] = []
    for unit in in_drawn_order(plan.units)[:SAMPLE_UNITS]:
        if len(chosen) >= 2 and sum(other.num_bytes for other in chosen) + unit.num_bytes > SAMPLE_BYTES:
            break
        chosen.append(unit)
    counts, num_clips, num_frames, read_s = [], 0, 0, 0.0
    drops = Counter[str]()
    first: MotionBlock | None = None
    for unit in chosen:
        block = reader.read([unit])
        counts.append(len(block.start_frame))
        num_clips += block.ledger.num_rows
        num_frames += len(block.motion)
        read_s += block.seconds["read"]
        drops.update(count_drops(block.ledger["drop_reason"]))
        first = _head(block) if first is None and len(block.start_frame) else first
    if first is None:
        raise NoClipLeftError(
            f"none of {num_clips} clips in {len(chosen)} of {len(plan.units)} units has a window:"
            " tokenize names the reasons in quarantine.parquet"
        )
    num_windows, margin = _extrapolated(counts, [unit.num_bytes for unit in chosen], plan)
    read_bytes = sum(unit.num_bytes for unit in chosen)
    scale = 1.0 if len(chosen) == len(plan.units) else plan.num_bytes / max(1, read_bytes)
    count = WindowCount(
        num_windows=num_windows,
        margin=margin,
        num_units=len(plan.units),
        num_units_read=len(chosen),
        num_clips_read=num_clips,
        num_clips_dropped=drops.total(),
        drops=dict(drops.most_common()),
        num_clips=round(num_clips * scale),
        hours=num_frames * scale / reader.spec.codec.fps / 3600,
        read_s=read_s,
        read_bytes=read_bytes,
    )
    return count, first


def in_drawn_order(units: Sequence[Unit]) -> list[Unit]:
    """Return units in an order that has nothing to do with their place, the same for the same units."""
    return sorted(units, key=lambda unit: hash64(f"estimate\0{unit.key}"))


def _head(block: MotionBlock) -> MotionBlock:
    """Return the first clips of a block, with `SIZED_WINDOWS` windows or as many as there are."""
    windows = block.ledger["num_windows"].to_numpy()
    num_rows = int(np.searchsorted(np.cumsum(windows), SIZED_WINDOWS)) + 1
    ledger = block.ledger.slice(0, num_rows)
    kept = windows[:num_rows] > 0
    num_frames = int(ledger["num_frames"].to_numpy()[kept].sum())
    return MotionBlock(
        block.units,
        block.motion[:num_frames],
        ledger,
        block.start_frame[: int(windows[:num_rows].sum())],
        clip_columns=block.clip_columns.slice(0, int(kept.sum())),
    )


def _extrapolated(counts: Sequence[int], sizes: Sequence[int], plan: Plan) -> tuple[int, int]:
    """Return the windows of a plan, and twice their standard error, by windows a byte of the units that were read."""
    found, num_bytes = np.array(counts, np.float64), np.array(sizes, np.float64)
    if len(found) == len(plan.units):
        return int(found.sum()), 0
    rate = found.sum() / num_bytes.sum()
    total = rate * plan.num_bytes
    spread = float(((found - rate * num_bytes) ** 2).sum() / max(1, len(found) - 1))
    unread = 1 - len(found) / len(plan.units)
    error = len(plan.units) * (spread * unread / len(found)) ** 0.5
    return round(total), round(2 * error)
