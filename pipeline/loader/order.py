"""In which order samples come: permutations, shares of ranks, and the choice of a dataset, as functions of numbers.

Pure: knows numpy alone, no torch, no storage and no shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.export.layout import mixed_hash
from pipeline.hashing import hash64

IntArray = NDArray[np.int64]
Even = Literal["pad", "drop", "exact"]
Remembered = TypeVar("Remembered")

NUM_KEPT = 2
"""Passes, and shuffled parts of a pass, that are remembered: a batch may lie across an edge."""

_TWO_64 = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: its multiples spread evenly
_MASK = _TWO_64 - 1


class PassOrder:
    """The order of one pass over all samples of a dataset; built by `DatasetOrder`.

    Row groups are permuted; then rows are shuffled inside parts of `shuffle_groups` row groups that follow each other.

    Args:
        group_sizes: (num_groups,) samples of each row group, as stored.
        shuffle_groups: row groups shuffled together; 0 keeps the stored order.
        key: seeds the order; other keys give other orders.
    """

    def __init__(self, group_sizes: IntArray, shuffle_groups: int, key: str) -> None:
        numbers = np.arange(len(group_sizes))
        self._key, self._is_shuffled = key, shuffle_groups > 0
        self._groups = _shuffled(numbers, f"groups\0{key}") if self._is_shuffled else numbers
        self._first = np.cumsum(group_sizes) - group_sizes
        self._sizes = group_sizes
        self._step = max(1, shuffle_groups)
        ends = np.cumsum(group_sizes[self._groups])
        starts = ends - group_sizes[self._groups]
        self._part_starts: IntArray = starts[:: self._step]
        self._parts: dict[int, IntArray] = {}

    def samples(self, positions: IntArray) -> IntArray:
        """Return the samples that stand at positions of the pass, (n,) -> (n,)."""
        parts = np.searchsorted(self._part_starts, positions, side="right") - 1
        found = np.empty(len(positions), np.int64)
        for part in np.unique(parts):
            mine = parts == part
            found[mine] = self._part(int(part))[positions[mine] - self._part_starts[part]]
        return found

    def _part(self, part: int) -> IntArray:
        if part not in self._parts:
            groups = self._groups[part * self._step : (part + 1) * self._step]
            samples = np.concatenate([np.arange(self._first[g], self._first[g] + self._sizes[g]) for g in groups])
            if self._is_shuffled:
                samples = _shuffled(samples, f"rows\0{part}\0{self._key}")
            _remember(self._parts, part, samples)
        return self._parts[part]


class DatasetOrder:
    """Endless order of one dataset: pass after pass, each sample once a pass.

    Args:
        group_sizes: (num_groups,) samples of each row group, as stored.
        shuffle_groups: row groups shuffled together; 0 keeps the stored order in every pass.
        key: seeds the order.
    """

    def __init__(self, group_sizes: IntArray, shuffle_groups: int, key: str) -> None:
        self.num_samples = int(group_sizes.sum())
        self._group_sizes, self._shuffle_groups, self._key = group_sizes, shuffle_groups, key
        self._passes: dict[int, PassOrder] = {}

    def samples(self, draws: IntArray) -> IntArray:
        """Return the samples of draws, counted through all passes, (n,) -> (n,)."""
        numbers, positions = np.divmod(draws, self.num_samples)
        found = np.empty(len(draws), np.int64)
        for number in np.unique(numbers):
            if int(number) not in self._passes:
                _remember(self._passes, int(number), self._pass(int(number)))
            mine = numbers == number
            found[mine] = self._passes[int(number)].samples(positions[mine])
        return found

    def _pass(self, number: int) -> PassOrder:
        return PassOrder(self._group_sizes, self._shuffle_groups, f"{number}\0{self._key}")


class Mixture:
    """Which of several datasets gives each sample, by weight, and how many it gave before: both in closed form.

    Multiples of the golden ratio, modulo one, are cut into intervals as wide as the weights. So every stretch of the
    order holds the datasets in their shares, but for a few samples.

    Args:
        weights: one a dataset; only their ratios count; those with 0 give nothing.
        key: seeds the choice.

    Raises:
        ConfigError: a weight is negative or no number, or they sum to zero.
    """

    def __init__(self, weights: Sequence[float], key: str) -> None:
        if any(not 0 <= weight < float("inf") for weight in weights):
            raise ConfigError(f"weights must be finite and not negative, found {list(weights)}")
        if not sum(weights) > 0:
            raise ConfigError(f"weights sum to zero, found {list(weights)}: give at least one dataset a weight")
        shares = [Fraction(weight) for weight in weights]
        self._chosen = np.array([index for index, share in enumerate(shares) if share])
        total, inner, so_far = sum(shares, Fraction()), [], Fraction()
        for index in self._chosen[:-1]:
            so_far += shares[index]
            inner.append(int(so_far / total * _TWO_64))
        self._edges = [0, *inner, _TWO_64]
        self._inner = np.array(inner, np.uint64)
        self._offset = hash64(f"mixture\0{key}")

    def choose(self, first: int, count: int) -> tuple[IntArray, IntArray]:
        """Return, of the `count` places from `first` on, the dataset of each and how many samples it gave before."""
        if len(self._chosen) == 1:
            return np.full(count, self._chosen[0]), np.arange(first, first + count)
        start = (self._offset + first * _GOLDEN) & _MASK
        with np.errstate(over="ignore"):
            points = np.uint64(start) + np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN)
        which = np.searchsorted(self._inner, points, side="right")
        draws = np.empty(count, np.int64)
        for number in np.unique(which):
            mine = np.flatnonzero(which == number)
            draws[mine] = self._count(int(number), first) + np.arange(len(mine))
        return self._chosen[which], draws

    def _count(self, number: int, places: int) -> int:
        """Return how many of the first places fall to a dataset."""
        return self._below(self._edges[number + 1], places) - self._below(self._edges[number], places)

    def _below(self, edge: int, places: int) -> int:
        """Return for how many of the first places the point lies below an edge: where x // 2**64 falls back by one."""
        if edge in (0, _TWO_64):
            return places if edge else 0
        whole = floor_sum(places, _TWO_64, _GOLDEN, self._offset)
        return whole + places - floor_sum(places, _TWO_64, _GOLDEN, self._offset + _TWO_64 - edge)


def floor_sum(count: int, divisor: int, slope: int, offset: int) -> int:
    """Return the sum of (slope * i + offset) // divisor for i from 0 to count - 1, exactly, in logarithmic time.

    Args:
        count: not negative.
        divisor: above 0.
        slope: not negative.
        offset: not negative.

    Source: Euclid's algorithm on the lattice points below a line (Graham, Knuth, Patashnik, Concrete Mathematics, 3.5).
    """
    total = 0
    while count > 0:
        total += (count - 1) * count // 2 * (slope // divisor) + count * (offset // divisor)
        slope, offset = slope % divisor, offset % divisor
        top = slope * count + offset
        if top < divisor:
            break
        count, offset = divmod(top, divisor)
        divisor, slope = slope, divisor
    return total


@dataclass(frozen=True)
class Steps:
    """Which positions of an epoch each rank takes at each step, from a position on.

    At a step all ranks together take `num_ranks * batch_size` positions that follow each other; rank r takes every
    num_ranks-th of them from the r-th on.

    Args:
        num_samples: of the epoch.
        start: position of the first step, 0 to num_samples.
        batch_size: samples of a rank at a step.
        num_ranks: of the trainer.
        even: `drop` leaves an incomplete step out; `pad` fills it from the epoch's beginning; `exact` makes it smaller:
            batches differ by one sample, and ranks that find nothing left have one batch fewer.
    """

    num_samples: int
    start: int
    batch_size: int
    num_ranks: int
    even: Even

    @property
    def step_samples(self) -> int:
        """Samples of all ranks at a whole step."""
        return self.batch_size * self.num_ranks

    @property
    def num_steps(self) -> int:
        """Steps of rank 0, which has the most."""
        left = max(0, self.num_samples - self.start)
        return left // self.step_samples if self.even == "drop" else -(-left // self.step_samples)

    def num_batches(self, rank: int) -> int:
        """Return how many batches a rank has."""
        left = self.num_samples - (self.start + (self.num_steps - 1) * self.step_samples)
        return self.num_steps - (1 if self.even == "exact" and self.num_steps and left <= rank else 0)

    def first_of(self, step: int) -> int:
        """Return the first position of a step."""
        return self.start + step * self.step_samples

    def offsets(self, step: int, rank: int) -> IntArray:
        """Return what a rank takes at a step, counted from the step's first position; under `pad` beyond the end."""
        mine = np.arange(rank, self.step_samples, self.num_ranks)
        return mine[mine < self.num_samples - self.first_of(step)] if self.even == "exact" else mine

    def position_after(self, step: int) -> int:
        """Return where to go on after a step; `num_samples` after the last one."""
        return self.first_of(step + 1) if step + 1 < self.num_steps else self.num_samples


def _shuffled(numbers: IntArray, key: str) -> IntArray:
    return numbers[np.argsort(mixed_hash(hash64(key), numbers), kind="stable")]


def _remember(kept: dict[int, Remembered], key: int, value: Remembered) -> None:
    """Add what was made last and forget what was made first."""
    kept[key] = value
    while len(kept) > NUM_KEPT:
        del kept[next(iter(kept))]
