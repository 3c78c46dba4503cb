"""Moments of motion: mean, deviation, range and histogram of every dimension, added up in float64.

Knows only numpy. Equal motion in equal order gives equal numbers, on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK_FRAMES = 4096

FIRST_OCTAVE, LAST_OCTAVE = -10, 10
BINS_PER_OCTAVE = 4
NUM_SIDE = BINS_PER_OCTAVE * (LAST_OCTAVE - FIRST_OCTAVE)
NUM_SLOTS = 2 * NUM_SIDE + 3
"""Slots of a histogram: all below, negative bins, one around zero, positive bins, all above."""

_MANTISSA_SHIFT = 21
_FIRST_CODE = (127 + FIRST_OCTAVE) * BINS_PER_OCTAVE
"""A float32 without its sign, shifted so that two bits of its mantissa stay, is the number of its bin."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of every dimension; count, mean and squares are of finite values only.

    Built by `moments_of` and `merged`. mean is 0, low infinity and high minus infinity where nothing is finite.
    """

    count: Ints
    mean: Floats
    squares: Floats
    """(dims,) sum of squared deviations from the mean."""
    low: Floats
    high: Floats
    nans: Ints
    infs: Ints
    histogram: Ints
    """(dims, NUM_SLOTS)."""

    @property
    def std(self) -> Floats:
        """(dims,) deviation of the population: the sum of squares divided by the count."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))


MOMENT_FIELDS = tuple(field.name for field in fields(Moments))


def histogram_edges() -> list[float]:
    """Return the 2 * NUM_SIDE + 2 edges, rising; a value on an edge is counted in the bin away from zero."""
    above = [2.0**octave * (1 + part / BINS_PER_OCTAVE) for octave in _octaves() for part in range(BINS_PER_OCTAVE)]
    above.append(2.0**LAST_OCTAVE)
    return [*(-edge for edge in reversed(above)), *above]


def moments_of(motion: NDArray[np.float32]) -> Moments:
    """Return the moments of one clip.

    Args:
        motion: (frames, dims), C-contiguous; it may hold NaN and infinity.
    """
    total = no_moments(motion.shape[1])
    for start in range(0, len(motion), BLOCK_FRAMES):
        total = merged(total, _moments_of_block(motion[start : start + BLOCK_FRAMES]))
    return total


def no_moments(dims: int) -> Moments:
    """Return the moments of no frame."""
    return Moments(
        count=np.zeros(dims, np.int64),
        mean=np.zeros(dims),
        squares=np.zeros(dims),
        low=np.full(dims, np.inf),
        high=np.full(dims, -np.inf),
        nans=np.zeros(dims, np.int64),
        infs=np.zeros(dims, np.int64),
        histogram=np.zeros((dims, NUM_SLOTS), np.int64),
    )


def merged(first: Moments, second: Moments) -> Moments:
    """Return the moments of both together.

    Source: Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    count = first.count + second.count
    share = second.count / np.maximum(count, 1)
    step = second.mean - first.mean
    return Moments(
        count=count,
        mean=first.mean + step * share,
        squares=first.squares + second.squares + step * step * (first.count * share),
        low=np.minimum(first.low, second.low),
        high=np.maximum(first.high, second.high),
        nans=first.nans + second.nans,
        infs=first.infs + second.infs,
        histogram=first.histogram + second.histogram,
    )


def _moments_of_block(motion: NDArray[np.float32]) -> Moments:
    dims = motion.shape[1]
    is_finite = np.isfinite(motion)
    slots = histogram_slots(motion) + np.arange(dims) * NUM_SLOTS
    values = motion.astype(np.float64)
    if is_finite.all():
        count = np.full(dims, len(motion), np.int64)
        mean = values.sum(axis=0) / count
        squares = ((values - mean) ** 2).sum(axis=0)
        low, high = values.min(axis=0), values.max(axis=0)
    else:
        slots = slots[is_finite]
        count = is_finite.sum(axis=0, dtype=np.int64)
        mean = np.where(is_finite, values, 0).sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(is_finite, values - mean, 0) ** 2).sum(axis=0)
        low, high = (np.where(is_finite, values, outside) for outside in (np.inf, -np.inf))
        low, high = low.min(axis=0), high.max(axis=0)
    nans = np.isnan(motion).sum(axis=0, dtype=np.int64)
    return Moments(
        count=count,
        mean=mean,
        squares=squares,
        low=low,
        high=high,
        nans=nans,
        infs=len(motion) - count - nans,
        histogram=np.bincount(slots.ravel(), minlength=dims * NUM_SLOTS).reshape(dims, NUM_SLOTS).astype(np.int64),
    )


def histogram_slots(values: NDArray[np.float32]) -> Ints:
    """Return the slot of every finite value: by its bits alone, so that no rounding can move it."""
    slots: Ints = _SLOT_OF_BITS[values.view(np.uint32) >> _MANTISSA_SHIFT]
    return slots


def _slots_of_bits() -> Ints:
    """Return the slot of every sign, exponent and first two bits of a mantissa."""
    codes = np.arange(1 << (32 - _MANTISSA_SHIFT), dtype=np.int64)
    is_negative, magnitude = codes >= len(codes) // 2, codes % (len(codes) // 2)
    steps = np.clip(magnitude - _FIRST_CODE, -1, NUM_SIDE) + 1
    return np.where(is_negative, NUM_SIDE + 1 - steps, NUM_SIDE + 1 + steps)


def _octaves() -> range:
    return range(FIRST_OCTAVE, LAST_OCTAVE)


_SLOT_OF_BITS = _slots_of_bits()
