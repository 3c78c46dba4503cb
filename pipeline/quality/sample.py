"""A seeded sample of windows: their source motion beside the bits that the token store holds of them.

Knows no Ray or torch. Bounded in windows, units and bytes, so that a large corpus costs no more than a small one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.contract.drop_reasons import DropReason
from pipeline.contract.specs import CodecSpec
from pipeline.dataset.open_dataset import packed_bits
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import VerifyError
from pipeline.hashing import hash64
from pipeline.plan.units import Unit
from pipeline.stages.blocks import MotionBlock
from pipeline.stages.read import UnitReader

SAMPLE_UNITS, SAMPLE_BYTES = 16, 256 << 20
"""Units that a sample is drawn from at most, and bytes of their input, beyond the first unit."""

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class WindowSample:
    """Windows of motion with their bits; built by `draw_sample`, used up by whoever compares them."""

    motion: NDArray[np.float32]
    """(n, 2T, M): prev and this; zeros where the clip has no frames."""
    is_real: NDArray[np.bool_]
    """(n, 2T): False at those zeros."""
    bits: NDArray[np.uint8]
    """(n, 2, half_bytes): packed bits of prev and this, as they are stored."""
    clip_ids: tuple[str, ...]
    sources: tuple[str, ...]
    start_frame: Int64s
    """(n,) first frame of `this` in its clip."""

    def __len__(self) -> int:
        return len(self.motion)

    @property
    def is_compared(self) -> NDArray[np.bool_]:
        """(n, 2T): real frames of `this`: those of `prev` are another window's `this`, or came from no context."""
        is_this = np.arange(self.is_real.shape[1]) >= self.is_real.shape[1] // 2
        compared: NDArray[np.bool_] = self.is_real & is_this
        return compared

    def head(self, num_windows: int) -> WindowSample:
        """Return so many of the windows, spread over the sample."""
        if num_windows >= len(self):
            return self
        rows = np.linspace(0, len(self) - 1, num_windows).round().astype(np.int64)
        return WindowSample(
            self.motion[rows],
            self.is_real[rows],
            self.bits[rows],
            tuple(self.clip_ids[row] for row in rows),
            tuple(self.sources[row] for row in rows),
            self.start_frame[rows],
        )


def draw_sample(
    store: TokenStore,
    units: Iterable[Unit],
    reader: UnitReader,
    num_windows: int,
    *,
    first: Sequence[Unit] = (),
    max_units: int = SAMPLE_UNITS,
) -> WindowSample:
    """Return windows of a few units, the same for equal units and settings; fewer where there are not so many.

    Args:
        store: holds a fragment of every unit.
        units: planned by this run, so that the reader knows them unchanged.
        num_windows: wanted; each window of the chosen units is as likely as any other.
        first: units to choose before all others, such as those that are new.
        max_units: units that windows are drawn from, at most.

    Raises:
        VerifyError: the input holds other motion than the fragments were made from, or a fragment is damaged.
        IncompleteError: a fragment is missing.
        StorageError: storage did not answer after all retries, or the input changed.
    """
    codec, seed = reader.spec.codec, reader.spec.spec_id
    chosen = _choose_units(store, units, seed, {unit.key for unit in first}, max_units)
    counts = np.array([int(pc.sum(ledger["num_windows"]).as_py()) for _, ledger in chosen], np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    rng = np.random.default_rng(hash64(seed))
    rows = np.sort(rng.choice(total, min(num_windows, total), replace=False)) if total else np.zeros(0, np.int64)
    unit_of = np.searchsorted(ends, rows, side="right")
    parts: list[WindowSample] = []
    for index in np.unique(unit_of):
        unit, ledger = chosen[index]
        inside = (rows - ends[index] + counts[index])[unit_of == index]
        bits = packed_bits(store.read_fragment(unit.key, unit.stamp))[inside]
        part = _cut(reader.read([unit]), ledger, inside, bits, codec)
        if not len(part):
            raise VerifyError(
                f"{unit.parts[0].source}: the input holds other motion than the tokens were made from, though its size"
                " and version are the same: give changed files a new time, then run tokenize again"
            )
        parts.append(part)
    return _joined(parts, codec)


def _choose_units(
    store: TokenStore, units: Iterable[Unit], seed: str, first: set[str], max_units: int
) -> list[tuple[Unit, pa.Table]]:
    """Return units in a seeded order with their ledgers, as many as the bounds allow.

    Those beyond the bounds by themselves come last. Left out are those without windows, and those that hold what
    cannot be read without killing the process.
    """

    def rank(unit: Unit) -> tuple[bool, bool, int]:
        return unit.num_bytes > SAMPLE_BYTES, unit.key not in first, hash64(f"{seed}/{unit.key}")

    order = sorted(units, key=rank)
    chosen: list[tuple[Unit, pa.Table]] = []
    num_bytes = 0
    for unit in order:
        if chosen and (len(chosen) == max_units or num_bytes + unit.num_bytes > SAMPLE_BYTES):
            break
        ledger = store.read_ledger(unit.key, unit.stamp)
        crashed = pc.any(pc.equal(ledger["drop_reason"], DropReason.CRASHED.value)).as_py()
        if pc.sum(ledger["num_windows"]).as_py() and not crashed:
            chosen.append((unit, ledger))
            num_bytes += unit.num_bytes
    return chosen


def _cut(block: MotionBlock, ledger: pa.Table, rows: Int64s, bits: NDArray[np.uint8], codec: CodecSpec) -> WindowSample:
    """Cut the windows of a fragment's rows out of the motion of its unit; those left out whose clip is another now."""
    stored, read = (_Clips.of(table) for table in (ledger, block.ledger))
    clip_of = np.searchsorted(stored.window_end, rows, side="right")
    place = {key: index for index, key in enumerate(read.keys)}
    clip = np.array([place.get(stored.keys[index], -1) for index in clip_of], np.int64)
    kept = np.flatnonzero(clip >= 0)
    clip, stored_clip = clip[kept], clip_of[kept]
    nth = rows[kept] - stored.window_end[stored_clip] + stored.num_windows[stored_clip]
    start = block.start_frame[read.window_end[clip] - read.num_windows[clip] + nth]
    end = read.frame_end[clip][:, None]
    begin = end - read.num_frames[clip][:, None]
    frames = begin + start[:, None] + np.arange(-codec.window_frames, codec.window_frames)
    is_real = (frames >= begin) & (frames < end)
    motion = np.where(is_real[..., None], block.motion[np.where(is_real, frames, 0)], np.float32(0))
    names, sources = (tuple(column.take(clip).to_pylist()) for column in (read.clip_ids, read.sources))
    return WindowSample(motion, is_real, bits[kept], names, sources, start)


@dataclass(frozen=True)
class _Clips:
    """The kept clips of a ledger and where each one's frames and windows end."""

    keys: Sequence[tuple[str, str]]
    """Clip id and digest of its motion."""
    clip_ids: pa.ChunkedArray
    sources: pa.ChunkedArray
    num_frames: Int64s
    frame_end: Int64s
    num_windows: Int64s
    window_end: Int64s

    @classmethod
    def of(cls, ledger: pa.Table) -> _Clips:
        kept = ledger.filter(pc.greater(ledger["num_windows"], 0))
        num_frames, num_windows = (kept[name].to_numpy().astype(np.int64) for name in ("num_frames", "num_windows"))
        names = kept["clip_id"]
        keys = list(zip(names.to_pylist(), kept["motion_digest"].to_pylist(), strict=True))
        return cls(keys, names, kept["source"], num_frames, np.cumsum(num_frames), num_windows, np.cumsum(num_windows))


def _joined(parts: Sequence[WindowSample], codec: CodecSpec) -> WindowSample:
    num_frames = 2 * codec.window_frames
    empty = WindowSample(
        np.zeros((0, num_frames, codec.motion_dim), np.float32),
        np.zeros((0, num_frames), np.bool_),
        np.zeros((0, 2, codec.half_bytes), np.uint8),
        (),
        (),
        np.zeros(0, np.int64),
    )
    together = [empty, *parts]
    return WindowSample(
        np.concatenate([part.motion for part in together]),
        np.concatenate([part.is_real for part in together]),
        np.concatenate([part.bits for part in together]),
        tuple(name for part in together for name in part.clip_ids),
        tuple(name for part in together for name in part.sources),
        np.concatenate([part.start_frame for part in together]),
    )
