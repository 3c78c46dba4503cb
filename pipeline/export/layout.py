"""Which windows stand in which shard: content-defined cuts, so that a change touches its own shard and the next.

Knows no Ray, torch, Arrow or storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.contract.specs import ExportSpec
from pipeline.export.clips import ClipTable
from pipeline.export.splits import Splits
from pipeline.hashing import digest_of, hash64

Intervals = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Rows of one fragment: (num_intervals, 2) first and past-the-last row, rising."""

    unit: int
    intervals: Intervals

    @property
    def num_windows(self) -> int:
        """Rows of all intervals."""
        return int((self.intervals[:, 1] - self.intervals[:, 0]).sum())


@dataclass(frozen=True)
class ShardLayout:
    """One shard to be: its windows in order, or the seed that shuffles them."""

    split: str
    pieces: tuple[Piece, ...]
    shuffle_seed: str = ""

    @property
    def num_windows(self) -> int:
        """Windows of the shard."""
        return sum(piece.num_windows for piece in self.pieces)


def lay_out_shards(clips: ClipTable, splits: Splits, unit_keys: Sequence[str], export: ExportSpec) -> list[ShardLayout]:
    """Return every shard of a dataset: split by split (in name order), units in order of their key.

    Shards of a global shuffle are laid out in shuffle.py.

    Args:
        splits: the split of each clip.
        unit_keys: key of each unit that `clips.unit` counts.
    """
    shards: list[ShardLayout] = []
    for split in splits.names:
        chosen = np.flatnonzero(splits.holds(split) & (clips.num_windows > 0))
        pieces = list(pieces_of_units(clips, chosen))
        for group in _cut(pieces, unit_keys, export.windows_per_shard):
            keys = [unit_keys[piece.unit] for piece in group]
            seed = digest_of([export.seed, split, keys]) if export.shuffle == "shard" else ""
            shards.append(ShardLayout(split, tuple(group), seed))
    return shards


def pieces_of_units(clips: ClipTable, chosen: NDArray[np.int64]) -> Iterator[Piece]:
    """Yield the rows of chosen clips unit by unit; neighbouring rows melt into one interval."""
    clip, starts, stops = clips.spans_of(chosen)
    units = clips.unit[clip]
    for first, last in _runs(units):
        start, stop = starts[first:last], stops[first:last]
        is_new = np.concatenate([[True], start[1:] != stop[:-1]])
        edges = np.append(np.flatnonzero(is_new), len(start))
        intervals = np.stack([start[edges[:-1]], stop[edges[1:] - 1]], axis=1)
        yield Piece(int(units[first]), intervals)


def _runs(values: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    edges = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1, [len(values)]])
    for first, last in pairwise(edges):
        if last > first:
            yield int(first), int(last)


def _cut(pieces: Sequence[Piece], unit_keys: Sequence[str], target: int) -> Iterator[list[Piece]]:
    """Yield groups of pieces: a group ends after a unit whose hash meets the threshold, or at twice the target.

    The threshold grows with the unit's own windows, so that shards reach the target on average. A group that
    grows too large ends after its unit of the lowest hash, which stays the same when its neighbours change.
    """
    group: list[Piece] = []
    count = 0
    for piece in pieces:
        while group and count + piece.num_windows > 2 * target:
            end = 1 + min(range(len(group)), key=lambda index: _cut_rank(group[index], unit_keys))
            yield group[:end]
            group = group[end:]
            count = sum(waiting.num_windows for waiting in group)
        if piece.num_windows > 2 * target:
            yield from ([part] for part in _cut_inside(piece, target))
            continue
        group.append(piece)
        count += piece.num_windows
        if _cut_rank(piece, unit_keys) * target < piece.num_windows * 2**64:
            yield group
            group, count = [], 0
    if group:
        yield group


def _cut_rank(piece: Piece, unit_keys: Sequence[str]) -> int:
    return hash64(f"shard\0{unit_keys[piece.unit]}")


def _cut_inside(piece: Piece, target: int) -> Iterator[Piece]:
    """Yield a unit larger than two shards as even parts."""
    num_parts = -(-piece.num_windows // (2 * target))
    lengths = piece.intervals[:, 1] - piece.intervals[:, 0]
    ends = np.cumsum(lengths)
    edges = np.linspace(0, piece.num_windows, num_parts + 1).astype(np.int64)
    for low, high in pairwise(edges):
        start = np.clip(low - (ends - lengths), 0, lengths)
        stop = np.clip(high - (ends - lengths), 0, lengths)
        inside = stop > start
        first = piece.intervals[:, 0]
        yield Piece(piece.unit, np.stack([first + start, first + stop], axis=1)[inside])


def mixed_hash(seed: int, counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return one well-mixed 64-bit number a counter, the same on every machine.

    Source: splitmix64 (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def shuffled_order(seed: str, num_windows: int) -> NDArray[np.int64]:
    """Return a seeded permutation of 0 .. num_windows - 1."""
    return np.argsort(mixed_hash(hash64(seed), np.arange(num_windows)), kind="stable")
