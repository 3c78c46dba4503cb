"""Reproducible bit flips for self-correction training: (target, flipped) pairs drawn from seeds.

Knows only latents. Every step is an elementwise float64 or integer operation in a fixed order, so that equal
seeds and latents give equal bits on any device. Source: bitwise self-correction, Infinity (arXiv 2412.04431).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB

Seeds = Tensor | NDArray[np.int64] | NDArray[np.uint64] | Sequence[int]


def flip_pairs(latent: Tensor, patch_nums: Sequence[int], flip_ratio: float, seeds: Seeds) -> tuple[Tensor, Tensor]:
    """Quantizes with random flips; each scale codes what the flipped codes before it left.

    Args:
        latent: (B, T, C) of one half, any float type; computed in float64.
        patch_nums: tokens a scale, the last is T.
        flip_ratio: 0 to 1; per window and scale the chance of a flip is uniform in [0, flip_ratio].
        seeds: one 64-bit number a window; a window's result depends on its own seed and latent only.

    Returns:
        Target bits before the flip and bits after it, (B, L, C) int32 each. The last scale has no flips.

    Raises:
        ValueError: the ratio is no probability, or there is not one seed a window.
    """
    if not 0 <= flip_ratio <= 1:
        raise ValueError(f"flip_ratio must be within 0 and 1, found {flip_ratio}")
    keys = mix64(_seed_tensor(seeds, latent))
    residual = latent.double()
    _, num_frames, code_dim = latent.shape
    corner = code_dim**-0.5
    targets, flipped = [], []
    first_counter = len(patch_nums)
    for scale_idx, patch_num in enumerate(patch_nums):
        target = _pool_in_order(residual, patch_num) > 0
        num_draws = patch_num * code_dim
        after = target
        if scale_idx < len(patch_nums) - 1:
            ratio = _uniform(keys, scale_idx, 1)[:, :, None] * flip_ratio
            draws = _uniform(keys, first_counter, num_draws).view(-1, patch_num, code_dim)
            after = target ^ (draws < ratio)
        first_counter += num_draws
        code = (after.double() * 2 - 1) * corner
        residual = residual - _spread_in_order(code, num_frames)
        targets.append(target.int())
        flipped.append(after.int())
    return torch.cat(targets, dim=1), torch.cat(flipped, dim=1)


def _seed_tensor(seeds: Seeds, latent: Tensor) -> Tensor:
    if not isinstance(seeds, Tensor):
        words = [int(seed) & 0xFFFFFFFFFFFFFFFF for seed in seeds]
        seeds = torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))
    if seeds.shape != (latent.shape[0],):
        raise ValueError(f"wanted one seed a window, {latent.shape[0]} in all, found shape {tuple(seeds.shape)}")
    return seeds.to(device=latent.device, dtype=torch.int64)


def _signed(word: int) -> int:
    """The int64 of the same 64 bits, since torch multiplies signed numbers (and wraps)."""
    word &= 0xFFFFFFFFFFFFFFFF
    return word - (1 << 64) if word >> 63 else word


def _shift_right(words: Tensor, places: int) -> Tensor:
    """Logical shift of 64-bit words that are held as int64."""
    return (words >> places) & ((1 << (64 - places)) - 1)


def mix64(words: Tensor) -> Tensor:
    """Return the output function of splitmix64 (Steele, Lea and Flood, 2014): int64 of 64-bit words, any shape."""
    words = (words ^ _shift_right(words, 30)) * _signed(MIX_1)
    words = (words ^ _shift_right(words, 27)) * _signed(MIX_2)
    return words ^ _shift_right(words, 31)


def _uniform(keys: Tensor, first_counter: int, num_draws: int) -> Tensor:
    """Numbers in [0, 1) of counters first_counter.. under each key: (B,) -> (B, num_draws) float64."""
    counters = torch.arange(first_counter + 1, first_counter + 1 + num_draws, device=keys.device)
    words = mix64(keys[:, None] + counters * _signed(GOLDEN_GAMMA))
    return _shift_right(words, 11).double() * 2.0**-53


def _pool_in_order(frames: Tensor, num_tokens: int) -> Tensor:
    """Adaptive average pooling along time, each token's frames added first to last."""
    num_frames = frames.shape[1]
    token = np.arange(num_tokens)
    begin = token * num_frames // num_tokens
    size = -((-(token + 1) * num_frames) // num_tokens) - begin
    total = frames[:, begin]
    for step in range(1, int(size.max())):
        longer = np.flatnonzero(size > step)
        total[:, longer] = total[:, longer] + frames[:, begin[longer] + step]
    return total / torch.from_numpy(size.astype(np.float64)).to(frames.device)[:, None]


def _spread_in_order(tokens: Tensor, num_frames: int) -> Tensor:
    """Linear interpolation along time (align_corners false), as two products and one sum."""
    num_tokens = tokens.shape[1]
    if num_tokens == num_frames:
        return tokens
    place = np.maximum((np.arange(num_frames) + 0.5) * num_tokens / num_frames - 0.5, 0.0)
    left = place.astype(np.int64)
    right = np.minimum(left + 1, num_tokens - 1)
    share = torch.from_numpy(place - left).to(tokens.device)[:, None]
    return tokens[:, left] * (1.0 - share) + tokens[:, right] * share
