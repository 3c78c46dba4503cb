"""What plain linear coding reaches with a codec's bits: PCA, bits where the variance is, a uniform quantiser.

Knows numpy and clips in memory; no model. Two baselines come from one class: PCA of single frames (block of 1), and PCA
over time as well (block of a window), which is near what any linear code can reach on Gaussian motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitwise_vae.training.clips import MotionClips, MotionStatistics

Floats = npt.NDArray[np.float64]

MAX_BITS = 14
STEPS = np.geomspace(0.0005, 3.0, 160)
"""Candidates for the quantiser's step, in deviations of a coefficient."""


@dataclass(frozen=True)
class TransformBaseline:
    """A linear code of blocks of frames. Built by `fit_baseline`.

    A block is normalised, rotated to the principal axes of single frames, then each axis to the principal axes of its
    course over the block. Coefficient (axis, course) is rounded to the middle of one of 2 ** bits equal cells about 0;
    without bits it is 0.

    Attributes:
        frame_axes: (M, M), columns.
        time_axes: (M, block, block), one rotation an axis, columns.
        bits: (M, block) int64.
        steps: (M, block) width of a cell.
    """

    statistics: MotionStatistics
    centre: Floats
    frame_axes: Floats
    time_axes: Floats
    bits: npt.NDArray[np.int64]
    steps: Floats

    @property
    def block_frames(self) -> int:
        """Frames of a block."""
        return len(self.time_axes[0])

    def bits_per_second(self, fps: float) -> float:
        """Returns the rate."""
        return float(self.bits.sum()) * fps / self.block_frames

    def coded(self, motion: npt.NDArray[np.float32]) -> Floats:
        """Codes and decodes (frames, M), frames a multiple of the block, in motion units."""
        mean, std = self.statistics.mean.astype(np.float64), self.statistics.std.astype(np.float64)
        coefficients = self._coefficients((motion - mean) / std - self.centre)
        rounded = _rounded(coefficients, self.steps, self.bits)
        scores = np.einsum("bmc,mtc->btm", rounded, self.time_axes)
        decoded: Floats = (scores.reshape(-1, len(mean)) @ self.frame_axes.T + self.centre) * std + mean
        return decoded

    def _coefficients(self, normalised: Floats) -> Floats:
        """(frames, M) -> (blocks, M, block)."""
        return _coefficients(normalised @ self.frame_axes, self.time_axes)


def fit_baseline(
    clips: MotionClips, statistics: MotionStatistics, block_frames: int, num_bits: int, max_blocks: int
) -> TransformBaseline:
    """Fits axes, bits and steps to training clips.

    Args:
        clips: to train on.
        statistics: that frames are normalised with.
        block_frames: 1, or more for coding over time.
        num_bits: of a block.
        max_blocks: blocks that are looked at, spread evenly.
    """
    blocks = _blocks(clips, block_frames, max_blocks)
    normalised = (blocks.reshape(-1, blocks.shape[-1]) - statistics.mean.astype(np.float64)) / statistics.std
    centre = normalised.mean(axis=0)
    normalised -= centre
    _, frame_axes = np.linalg.eigh(normalised.T @ normalised / len(normalised))
    scores = (normalised @ frame_axes).reshape(len(blocks), block_frames, -1)
    courses = np.einsum("btm,bsm->mts", scores, scores, optimize=True) / len(blocks)
    _, time_axes = np.linalg.eigh(courses)
    coefficients = _coefficients(scores.reshape(-1, scores.shape[-1]), time_axes)
    deviation = np.sqrt(np.square(coefficients).mean(axis=0))
    bits = allotted_bits(deviation, num_bits)
    step_of = np.zeros(MAX_BITS + 1)
    for depth in range(1, MAX_BITS + 1):
        chosen = bits == depth
        if chosen.any():
            step_of[depth] = _best_step(coefficients[:, chosen] / deviation[chosen], depth)
    return TransformBaseline(statistics, centre, frame_axes, time_axes, bits, step_of[bits] * deviation)


def allotted_bits(deviation: Floats, num_bits: int) -> npt.NDArray[np.int64]:
    """Gives bits one by one to the coefficient whose error variance, deviation**2 / 4**bits, is largest."""
    levels = np.log2(np.maximum(deviation, 1e-12)).reshape(-1)
    gains = levels[:, None] - np.arange(MAX_BITS)  # of the next bit of each coefficient
    order = np.argsort(-gains, axis=None, kind="stable")[:num_bits]
    bits = np.bincount(order // MAX_BITS, minlength=len(levels))
    return bits.reshape(deviation.shape).astype(np.int64)


def _coefficients(scores: Floats, time_axes: Floats) -> Floats:
    blocks = scores.reshape(-1, time_axes.shape[1], scores.shape[-1])
    found: Floats = np.einsum("btm,mtc->bmc", blocks, time_axes, optimize=True)
    return found


def _rounded(values: Floats, steps: Floats, bits: npt.NDArray[np.int64]) -> Floats:
    half = 2.0 ** (bits - 1)
    cells = np.clip(np.floor(np.divide(values, steps, out=np.zeros_like(values), where=steps > 0)), -half, half - 1)
    return np.where(bits > 0, (cells + 0.5) * steps, 0.0)


def _best_step(units: Floats, depth: int) -> float:
    """The step that loses least on these coefficients of deviation 1."""
    sample = units.reshape(-1)[:: max(1, units.size // 20_000)]
    bits = np.full(sample.shape, depth)
    errors = [np.square(_rounded(sample, np.full(sample.shape, step), bits) - sample).mean() for step in STEPS]
    return float(STEPS[int(np.argmin(errors))])


def _blocks(clips: MotionClips, block_frames: int, max_blocks: int) -> Floats:
    starts = np.concatenate(
        [
            np.arange(begin, end - block_frames + 1, block_frames)
            for begin, end in zip(clips.edges[:-1], clips.edges[1:], strict=True)
        ]
    )
    if len(starts) > max_blocks:
        starts = starts[np.arange(max_blocks) * len(starts) // max_blocks]
    return clips.frames[starts[:, None] + np.arange(block_frames)].astype(np.float64)
