"""Sampled windows decoded again, and how far they come from what was recorded.

Knows no Ray or storage. Every error is measured against keeping the checkpoint's mean, as trainers do, and against
keeping the sample's own: that one sees motion which is small beside the statistics, as in other units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bitwise_vae.bits import unpack_bits
from bitwise_vae.model import BitwiseVAE
from bitwise_vae.training.metrics import ErrorFigures, ReconstructionError
from pipeline.quality.sample import WindowSample

DECODE_WINDOWS = 8
"""Windows decoded together."""

Float32s = NDArray[np.float32]


@dataclass(frozen=True)
class GroupFigures:
    """How one motion group of the sample came back."""

    name: str
    unit: str
    fraction_of_mean: float | None
    """Error as a share of that of keeping the checkpoint's mean; None where the group never leaves it."""
    fraction_of_own_mean: float | None
    """Error as a share of that of keeping the group's mean in the sample; None where the group does not move."""
    deviation_ratio: float
    """Median over columns of the sample's deviation in deviations of the checkpoint: 1 where they agree."""


@dataclass(frozen=True)
class SampleFigures:
    """What a decoded sample came to; built by `measure_sample`."""

    as_trained: ErrorFigures
    """In the checkpoint's mean and deviation."""
    fraction_of_own_mean: float | None
    """Error as a share of that of keeping the sample's own mean; None where nothing moves."""
    groups: tuple[GroupFigures, ...]


def decode_sample(model: BitwiseVAE, bits: NDArray[np.uint8], num_scales: int | None = None) -> Float32s:
    """Return the motion of both halves: packed bits (n, 2, half_bytes) -> (n, 2T, M).

    Args:
        model: where to decode.
        bits: as they are stored.
        num_scales: the scales to use, coarse to fine; None: all.
    """
    config = model.config
    decoded = np.zeros((len(bits), 2 * config.window_frames, config.motion_dim), np.float32)
    for first in range(0, len(bits), DECODE_WINDOWS):
        rows = slice(first, first + DECODE_WINDOWS)
        decoded[rows] = decode_windows(model, bits[rows], num_scales)
    return decoded


def decode_windows(model: BitwiseVAE, bits: NDArray[np.uint8], num_scales: int | None = None) -> Float32s:
    """Return the motion of both halves of one batch: packed bits (n, 2, half_bytes) -> (n, 2T, M).

    Args:
        model: where to decode.
        bits: as they are stored.
        num_scales: the scales to use, coarse to fine; None: all.
    """
    config = model.config
    num_tokens = sum(config.patch_nums[:num_scales])
    indices = unpack_bits(bits.reshape(len(bits), 2, config.num_tokens, config.code_dim // 8))[:, :, :num_tokens]
    with torch.inference_mode():
        some = torch.from_numpy(indices).to(model.motion_mean.device)
        halves = [model.quantizer.quantized_from_bits(some[:, half]) for half in range(2)]
        decoded: Float32s = model.decode_quantized(torch.cat(halves, dim=1)).cpu().numpy()
    return decoded


def measure_sample(model: BitwiseVAE, sample: WindowSample, decoded: Float32s) -> SampleFigures:
    """Compare decoded with recorded motion of `this`, where frames are real.

    Raises:
        ValueError: the sample is empty.
    """
    config = model.config
    mean, std = (tensor.cpu().numpy().astype(np.float64) for tensor in (model.motion_mean, model.motion_std))
    error = ReconstructionError(mean, std, config.motion_groups, config.fps)
    is_compared = sample.is_compared
    error.add(sample.motion, decoded, is_compared)
    frames, found = (motion[is_compared].astype(np.float64) for motion in (sample.motion, decoded))
    own_mean, own_std = frames.mean(axis=0), frames.std(axis=0)
    lost = np.abs(frames - found).mean(axis=0) / std
    from_mean = np.abs(frames - mean).mean(axis=0) / std
    weight = std / np.maximum(own_std, std)  # no column counts for more than what it moves
    moved = np.abs(frames - own_mean).mean(axis=0) / std
    groups = []
    for group in config.motion_groups:
        columns = slice(group.start, group.stop)
        groups.append(
            GroupFigures(
                group.name,
                group.unit,
                _fraction(lost[columns], from_mean[columns]),
                _fraction((lost * weight)[columns], (moved * weight)[columns]),
                float(np.median((own_std / std)[columns])),
            )
        )
    return SampleFigures(error.figures(), _fraction(lost * weight, moved * weight), tuple(groups))


STILL = 1e-4
"""Mean movement, in deviations, below which there is nothing to compare with."""


def _fraction(lost: NDArray[np.float64], moved: NDArray[np.float64]) -> float | None:
    return float(lost.sum() / moved.sum()) if moved.mean() > STILL else None
