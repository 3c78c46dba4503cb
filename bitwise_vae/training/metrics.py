"""How near decoded motion comes to recorded motion, and how well a codec uses its bits: sums, and figures from them.

Knows numpy arrays only: no model, file or corpus. Sums are float64 and can be merged, so that parts of a corpus may be
measured apart and the figures do not depend on how it was cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwise_vae.bits import unpack_bits
from bitwise_vae.config import MotionGroup

Floats = npt.NDArray[np.float64]

DEAD_SHARE = 1e-3
"""A bit that has its rarer value in a smaller share of tokens is dead."""
MAX_HASHES = 1 << 16
"""Distinct tokens of a scale are counted exactly up to here, beyond it estimated to about half a percent."""

_JERK_FRAMES = 3


@dataclass(frozen=True)
class GroupError:
    """Errors of one motion group, each a mean over columns and frames, in the group's unit, per s and per s^3.

    `jerk_ratio` is the mean absolute jerk of decoded motion as a share of the original's: 1 is as smooth.
    """

    name: str
    unit: str
    mean_absolute: float
    normalised_l1: float
    velocity: float
    jerk: float
    jerk_ratio: float


@dataclass(frozen=True)
class ErrorFigures:
    """What `ReconstructionError` came to.

    `normalised_l1` is the mean of |original - decoded| / std over all frames and columns; `mean_l1` the same of keeping
    the mean, that is with decoded = mean; `fraction_of_mean` their ratio: 0 is perfect, 1 is no better than the mean.
    """

    num_frames: int
    normalised_l1: float
    mean_l1: float
    fraction_of_mean: float
    groups: tuple[GroupError, ...]


class ReconstructionError:
    """Sums up errors of decoded motion. Built by whoever compares, lives as long as the comparison."""

    def __init__(
        self, mean: npt.ArrayLike, std: npt.ArrayLike, motion_groups: Sequence[MotionGroup], fps: float
    ) -> None:
        """Starts at nothing.

        Args:
            mean: (M,) of the codec's statistics, in motion units.
            std: (M,) likewise, above 0.
            motion_groups: ranges of columns that are reported apart.
            fps: frames a second, for velocity and jerk.
        """
        self._mean, self._std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        self._groups, self._fps = tuple(motion_groups), fps
        num_columns = len(self._mean)
        self._num_frames = self._num_steps = self._num_jerks = 0
        self._absolute, self._of_mean, self._velocity = (np.zeros(num_columns) for _ in range(3))
        self._jerk, self._decoded_jerk, self._original_jerk = (np.zeros(num_columns) for _ in range(3))

    def add(self, original: npt.ArrayLike, decoded: npt.ArrayLike, is_valid: npt.ArrayLike | None = None) -> None:
        """Counts windows, or one clip, in.

        Velocity and jerk are taken inside a window, where all frames that they need are valid.

        Args:
            original: (windows, frames, M) or (frames, M), in motion units; numpy, or tensors on the CPU.
            decoded: the same shape.
            is_valid: (windows, frames) or (frames,) bool, False at padding; None: all frames are real.

        Raises:
            ValueError: shapes differ.
        """
        wanted, found = np.asarray(original, np.float64), np.asarray(decoded, np.float64)
        if wanted.shape != found.shape or wanted.ndim not in (2, 3) or wanted.shape[-1] != len(self._mean):
            raise ValueError(
                f"wanted original and decoded motion of one shape (.., frames, {len(self._mean)}), found "
                f"{wanted.shape} and {found.shape}"
            )
        valid = np.ones(wanted.shape[:-1], bool) if is_valid is None else np.asarray(is_valid, bool)
        if valid.shape != wanted.shape[:-1]:
            raise ValueError(f"wanted is_valid of shape {wanted.shape[:-1]}, found {valid.shape}")
        difference = found - wanted
        self._num_frames += int(valid.sum())
        self._absolute += np.abs(difference[valid]).sum(axis=0)
        self._of_mean += np.abs(wanted[valid] - self._mean).sum(axis=0)
        steps = valid[..., 1:] & valid[..., :-1]
        self._num_steps += int(steps.sum())
        self._velocity += _absolute_sum(difference, 1, steps)
        jerks = steps[..., 2:] & steps[..., :-2]
        self._num_jerks += int(jerks.sum())
        self._jerk += _absolute_sum(difference, _JERK_FRAMES, jerks)
        self._decoded_jerk += _absolute_sum(found, _JERK_FRAMES, jerks)
        self._original_jerk += _absolute_sum(wanted, _JERK_FRAMES, jerks)

    def merge(self, other: ReconstructionError) -> None:
        """Counts in what another one, of the same statistics, has summed."""
        for name, value in vars(other).items():
            if name not in ("_mean", "_std", "_groups", "_fps"):
                setattr(self, name, getattr(self, name) + value)

    def figures(self) -> ErrorFigures:
        """Returns the errors so far.

        Raises:
            ValueError: nothing was added.
        """
        if not self._num_frames:
            raise ValueError("no valid frame was compared")
        everything = slice(None)
        normalised = self._normalised(self._absolute, everything)
        of_mean = self._normalised(self._of_mean, everything)
        return ErrorFigures(
            num_frames=self._num_frames,
            normalised_l1=normalised,
            mean_l1=of_mean,
            fraction_of_mean=_ratio(normalised, of_mean),
            groups=tuple(self._group_error(group) for group in self._groups),
        )

    def _normalised(self, sums: Floats, columns: slice) -> float:
        return float((sums / self._std)[columns].mean() / self._num_frames)

    def _group_error(self, group: MotionGroup) -> GroupError:
        columns = slice(group.start, group.stop)
        return GroupError(
            name=group.name,
            unit=group.unit,
            mean_absolute=float(self._absolute[columns].mean() / self._num_frames),
            normalised_l1=self._normalised(self._absolute, columns),
            velocity=float(self._velocity[columns].mean() / max(self._num_steps, 1) * self._fps),
            jerk=float(self._jerk[columns].mean() / max(self._num_jerks, 1) * self._fps**3),
            jerk_ratio=_ratio(float(self._decoded_jerk[columns].sum()), float(self._original_jerk[columns].sum())),
        )


@dataclass(frozen=True)
class CodeFigures:
    """What `CodeStatistics` came to; first axis: scales, coarse to fine.

    Attributes:
        num_tokens: (K,) tokens looked at.
        share_of_ones: (K, C).
        entropy: (K, C) bits of information a bit carries by its share of ones alone, 0 .. 1.
        distinct_tokens: (K,) exact up to MAX_HASHES, else an estimate.
        correlation: (K, C, C) Pearson correlation of bits of one token; 0 where a bit never changes.
    """

    num_tokens: tuple[int, ...]
    share_of_ones: Floats
    entropy: Floats
    distinct_tokens: tuple[int, ...]
    correlation: Floats

    @property
    def mean_entropy(self) -> tuple[float, ...]:
        """Mean entropy of a bit at each scale, 0 .. 1."""
        return tuple(float(value) for value in self.entropy.mean(axis=1))

    @property
    def dead_bits(self) -> tuple[tuple[int, int], ...]:
        """(scale, bit) of every bit that has one value in all but a share DEAD_SHARE of tokens."""
        rarer = np.minimum(self.share_of_ones, 1 - self.share_of_ones)
        return tuple((int(scale), int(bit)) for scale, bit in np.argwhere(rarer < DEAD_SHARE))

    @property
    def mean_correlation(self) -> tuple[float, ...]:
        """Mean absolute correlation of two different bits of a token, at each scale."""
        num_bits = self.correlation.shape[1]
        is_pair = ~np.eye(num_bits, dtype=bool)
        return tuple(float(np.abs(matrix[is_pair]).mean()) if num_bits > 1 else 0.0 for matrix in self.correlation)


class CodeStatistics:
    """Counts how bits are used, scale by scale. Built by whoever looks at tokens, lives as long as the look."""

    def __init__(self, patch_nums: Sequence[int], code_dim: int) -> None:
        self.patch_nums, self.code_dim = tuple(patch_nums), code_dim
        num_scales = len(self.patch_nums)
        self._num_tokens = np.zeros(num_scales, np.int64)
        self._ones = np.zeros((num_scales, code_dim), np.int64)
        self._both = np.zeros((num_scales, code_dim, code_dim), np.int64)
        self._hashes = [np.zeros(0, np.uint64) for _ in range(num_scales)]

    def add(self, bit_indices: npt.ArrayLike) -> None:
        """Counts bits (.., L, code_dim) of 0 and 1 in, of any type; prev and this alike.

        Raises:
            ValueError: the last two axes are not (L, code_dim).
        """
        bits = np.asarray(bit_indices)
        wanted = (sum(self.patch_nums), self.code_dim)
        if bits.shape[-2:] != wanted:
            raise ValueError(f"wanted bits (.., {wanted[0]}, {wanted[1]}), found {bits.shape}")
        halves = bits.reshape(-1, *wanted).astype(np.uint8)
        for scale, tokens in enumerate(np.split(halves, np.cumsum(self.patch_nums)[:-1], axis=1)):
            self._add_scale(scale, tokens.reshape(-1, self.code_dim))

    def add_packed(self, packed: npt.NDArray[np.uint8]) -> None:
        """Counts packed bits (.., L, code_dim // 8) in; see `bits.pack_bits`."""
        self.add(unpack_bits(packed))

    def merge(self, other: CodeStatistics) -> None:
        """Counts in what another one, of the same schedule, has counted."""
        self._num_tokens += other._num_tokens
        self._ones += other._ones
        self._both += other._both
        self._hashes = [_smallest(ours, theirs) for ours, theirs in zip(self._hashes, other._hashes, strict=True)]

    def figures(self) -> CodeFigures:
        """Returns the figures so far.

        Raises:
            ValueError: nothing was added.
        """
        if not self._num_tokens.any():
            raise ValueError("no token was counted")
        num_tokens = self._num_tokens[:, None]
        share = self._ones / num_tokens
        covariance = self._both / num_tokens[..., None] - share[:, :, None] * share[:, None, :]
        spread = np.sqrt(share * (1 - share))
        scale = spread[:, :, None] * spread[:, None, :]
        return CodeFigures(
            num_tokens=tuple(self._num_tokens.tolist()),
            share_of_ones=share,
            entropy=_binary_entropy(share),
            distinct_tokens=tuple(
                min(_num_distinct(hashes), int(count))
                for hashes, count in zip(self._hashes, self._num_tokens, strict=True)
            ),
            correlation=np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0),
        )

    def _add_scale(self, scale: int, tokens: npt.NDArray[np.uint8]) -> None:
        self._num_tokens[scale] += len(tokens)
        self._ones[scale] += tokens.sum(axis=0, dtype=np.int64)
        values = tokens.astype(np.float64)
        self._both[scale] += np.rint(values.T @ values).astype(np.int64)
        self._hashes[scale] = _smallest(self._hashes[scale], _token_hashes(tokens))


def _absolute_sum(values: Floats, order: int, is_counted: npt.NDArray[np.bool_]) -> Floats:
    """Sum of |differences of that order along frames|, where counted: (.., frames, M) -> (M,)."""
    total: Floats = np.abs(np.diff(values, order, axis=-2)[is_counted]).sum(axis=0)
    return total


def _ratio(part: float, whole: float) -> float:
    """part / whole; 0 where both are 0, infinite where only the whole is."""
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


def _binary_entropy(share: Floats) -> Floats:
    yes, no = (-part * np.log2(np.where(part > 0, part, 1.0)) for part in (share, 1 - share))
    return yes + no + 0.0


def _token_hashes(tokens: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """A well-mixed 64-bit number a token, equal for equal bits: (n, C) -> (n,)."""
    packed = np.packbits(tokens, axis=-1)
    missing = -packed.shape[-1] % 8
    words = np.pad(packed, ((0, 0), (0, missing))).view(np.dtype(">u8")).astype(np.uint64)
    hashes = np.zeros(len(tokens), np.uint64)
    for word in words.T:
        hashes = _mixed(hashes ^ word)
    return hashes


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One step of splitmix64: a bijection whose output bits look independent."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _smallest(ours: npt.NDArray[np.uint64], theirs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return np.unique(np.concatenate([ours, theirs]))[:MAX_HASHES]


def _num_distinct(hashes: npt.NDArray[np.uint64]) -> int:
    """Number of distinct values of which these are the smallest hashes (k minimum values)."""
    if len(hashes) < MAX_HASHES:
        return len(hashes)
    return round((MAX_HASHES - 1) * 2.0**64 / float(hashes[-1]))
