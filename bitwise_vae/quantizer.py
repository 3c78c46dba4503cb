"""Binary spherical quantization over several time scales, each coding what the coarser ones left.

No parameters and no randomness; one half (prev or this) at a time.
Source: BSQ (arXiv 2406.07548), next-scale residuals as in VAR (2404.02905) and Infinity (2412.04431).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENTROPY_WEIGHT = 0.1
COMMIT_WEIGHT = 0.2
INVERSE_TEMPERATURE = 100.0
LOG_EPSILON = 1e-8


class QuantizerOutput(NamedTuple):
    """What a training forward of the quantizer gives.

    quantized (B, T, C): summed codes, with a straight-through gradient. bits (B, L, C) int32.
    losses (K,): one a scale.
    """

    quantized: Tensor
    bits: Tensor
    losses: Tensor


def pool_frames(frames: Tensor, num_tokens: int) -> Tensor:
    """Area-interpolates along time: (B, T, C) -> (B, num_tokens, C)."""
    if frames.shape[1] == num_tokens:
        return frames
    pooled: Tensor = F.interpolate(frames.transpose(1, 2), size=num_tokens, mode="area")
    return pooled.transpose(1, 2)


def spread_tokens(tokens: Tensor, num_frames: int) -> Tensor:
    """Interpolates linearly along time (align_corners false): (B, tokens, C) -> (B, num_frames, C)."""
    if tokens.shape[1] == num_frames:
        return tokens
    spread: Tensor = F.interpolate(tokens.transpose(1, 2), size=num_frames, mode="linear")
    return spread.transpose(1, 2)


def code_from_bits(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Maps bits to the corners of the unit sphere: 1 -> +1/sqrt(C), 0 -> -1/sqrt(C), C the last axis."""
    corner = 1 / math.sqrt(bits.shape[-1])
    return (bits.to(dtype) * 2 - 1) * corner


class MultiScaleQuantizer(nn.Module):
    """Turns a latent into bits scale by scale and back. Built by BitwiseVAE, lives as long as it."""

    def __init__(self, patch_nums: Sequence[int]) -> None:
        super().__init__()
        self.patch_nums = tuple(patch_nums)
        self.window_frames = self.patch_nums[-1]

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """Quantizes for training: latent (B, T, C) -> summed codes, bits and losses."""
        residual, quantized = latent, torch.zeros_like(latent)
        bits, losses = [], []
        for patch_num in self.patch_nums:
            unit = F.normalize(pool_frames(residual, patch_num), dim=-1)
            scale_bits = unit > 0
            code = code_from_bits(scale_bits, latent.dtype)
            losses.append(_scale_loss(unit, code))
            straight = unit + (code - unit).detach()
            spread = spread_tokens(straight, self.window_frames)
            quantized = quantized + spread
            residual = residual - spread.detach()
            bits.append(scale_bits.int())
        return QuantizerOutput(quantized, torch.cat(bits, dim=1), torch.stack(losses))

    def bits_from_latent(self, latent: Tensor) -> Tensor:
        """Quantizes for tokens, without losses: latent (B, T, C) -> bits (B, L, C) int32."""
        residual, bits = latent, []
        for patch_num in self.patch_nums:
            scale_bits = pool_frames(residual, patch_num) > 0
            residual = residual - spread_tokens(code_from_bits(scale_bits, latent.dtype), self.window_frames)
            bits.append(scale_bits.int())
        return torch.cat(bits, dim=1)

    def flipped_bits_from_latent(
        self, latent: Tensor, flip_ratio: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Like `bits_from_latent`, but each bit is flipped with probability `flip_ratio`.

        Each scale codes what the flipped codes before it left.
        """
        residual, bits = latent, []
        for patch_num in self.patch_nums:
            scale_bits = pool_frames(residual, patch_num) > 0
            chance = torch.rand(scale_bits.shape, generator=generator, device=latent.device)
            scale_bits = scale_bits ^ (chance < flip_ratio)
            residual = residual - spread_tokens(code_from_bits(scale_bits, latent.dtype), self.window_frames)
            bits.append(scale_bits.int())
        return torch.cat(bits, dim=1)

    def quantized_from_bits(self, bits: Tensor) -> Tensor:
        """Sums the codes of all scales at frame rate: bits (B, L, C) -> (B, T, C) float32."""
        return self._running_sums(bits)[-1]

    def next_scale_features(self, bits: Tensor, num_scales: int) -> Tensor:
        """What predicts each next scale: the sum of scales 0..k, pooled to the size of scale k + 1.

        Args:
            bits: (B, tokens, C), of the first `num_scales` scales at least.
            num_scales: how many scales are read, 1 to K - 1.

        Returns:
            (B, sum of patch_nums[1] .. patch_nums[num_scales], C) float32.
        """
        sums = self._running_sums(bits[:, : sum(self.patch_nums[:num_scales])])
        next_sizes = self.patch_nums[1 : num_scales + 1]
        return torch.cat([pool_frames(total, size) for total, size in zip(sums, next_sizes, strict=True)], dim=1)

    def _running_sums(self, bits: Tensor) -> list[Tensor]:
        sums: list[Tensor] = []
        begin = 0
        for patch_num in self.patch_nums:
            if begin == bits.shape[1]:
                break
            code = code_from_bits(bits[:, begin : begin + patch_num])
            spread = spread_tokens(code, self.window_frames)
            sums.append(sums[-1] + spread if sums else spread)
            begin += patch_num
        return sums


def _scale_loss(unit: Tensor, code: Tensor) -> Tensor:
    """Entropy and commitment of one scale: unit vectors and codes (B, p, C) -> scalar.

    Source: BSQ (arXiv 2406.07548), with the factorised entropies of independent bits.
    """
    commit = (code.detach() - unit).square().sum(dim=-1).mean()
    chance = torch.sigmoid(-4 * unit * unit.shape[-1] ** -0.5 * INVERSE_TEMPERATURE)
    sample_entropy = _binary_entropy(chance).sum(dim=-1).mean()
    codebook_entropy = _binary_entropy(chance.mean(dim=(0, 1))).sum()
    entropy = (sample_entropy - codebook_entropy) / INVERSE_TEMPERATURE
    return ENTROPY_WEIGHT * entropy + COMMIT_WEIGHT * commit


def _binary_entropy(chance: Tensor) -> Tensor:
    yes = chance * torch.log(chance + LOG_EPSILON)
    no = (1 - chance) * torch.log(1 - chance + LOG_EPSILON)
    return -(yes + no)
