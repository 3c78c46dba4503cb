"""The bitwise VAE: motion windows to bits and back, and the operations that an AR model calls.

Follows the original in names, numerics and state-dict keys; knows no files.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitwise_vae import flips
from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.quantizer import MultiScaleQuantizer
from bitwise_vae.transformer import Decoder, Encoder, prev_this_mask


class TrainingOutput(NamedTuple):
    """What a training forward of the model gives.

    motion (B, 2T, M): the decoded window, in motion units. prev_bits, this_bits (B, L, C) int32.
    prev_losses, this_losses (K,): the quantizer's, one a scale.
    latent_gap (B, 2T): squared distance of a frame's latent and the sum of its codes, the latter without gradient.
    """

    motion: Tensor
    prev_bits: Tensor
    this_bits: Tensor
    prev_losses: Tensor
    this_losses: Tensor
    latent_gap: Tensor


class BitwiseVAE(nn.Module):
    """Codes windows of motion as bits over several time scales.

    Built from a configuration for training, or by `load_checkpoint`; owns weights and motion statistics.
    A window is 2T frames: the T frames of `prev` and the T frames of `this` that follow them.
    """

    enc_pos_embed: nn.Parameter
    dec_pos_embed: nn.Parameter
    attn_mask: Tensor
    motion_mean: Tensor
    motion_std: Tensor

    def __init__(self, config: BitwiseVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.motion_dim, self.code_dim = config.motion_dim, config.code_dim
        self.patch_nums = config.patch_nums
        self.window_frames = config.window_frames
        sizes = (config.motion_dim, config.code_dim, config.hidden_dim, config.depth, config.num_heads)
        self.encoder = Encoder(*sizes)
        self.decoder = Decoder(*sizes)
        self.quantizer = MultiScaleQuantizer(config.patch_nums)
        self.enc_pos_embed = _position_embedding(config.window_frames, config.motion_dim)
        self.dec_pos_embed = _position_embedding(config.window_frames, config.code_dim)
        self.register_buffer("attn_mask", prev_this_mask(config.window_frames))
        self.register_buffer("motion_mean", torch.zeros(config.motion_dim))
        self.register_buffer("motion_std", torch.ones(config.motion_dim))

    def norm_with_stats(self, motion: Tensor) -> Tensor:
        """Motion units -> zero mean and unit deviation a column: (.., M) -> (.., M)."""
        return (motion - self.motion_mean) / self.motion_std

    def unnorm_with_stats(self, motion: Tensor) -> Tensor:
        """The inverse of `norm_with_stats`: (.., M) -> (.., M)."""
        return motion * self.motion_std + self.motion_mean

    def forward(self, motion: Tensor) -> TrainingOutput:
        """Codes and decodes windows for training: (B, 2T, M) motion -> decoded motion, bits, losses.

        Under autocast the quantizer still computes in the type of the weights.
        """
        latent = self.encode_latent(motion).to(self.motion_mean.dtype)
        prev, this = latent.chunk(2, dim=1)
        with torch.autocast(motion.device.type, enabled=False):
            prev_codes, this_codes = self.quantizer(prev), self.quantizer(this)
        quantized = torch.cat([prev_codes.quantized, this_codes.quantized], dim=1)
        gap = (latent - quantized.detach()).square().sum(dim=-1)
        decoded = self.decode_quantized(quantized)
        return TrainingOutput(decoded, prev_codes.bits, this_codes.bits, prev_codes.losses, this_codes.losses, gap)

    def encode_latent(self, motion: Tensor) -> Tensor:
        """Motion (B, 2T, M), or (B, T, M) of `prev` alone -> latent (B, 2T or T, C)."""
        num_frames = motion.shape[1]
        wanted = (self.window_frames, 2 * self.window_frames)
        if motion.ndim != 3 or num_frames not in wanted or motion.shape[2] != self.motion_dim:
            raise ValueError(
                f"wanted motion (B, {wanted[0]} or {wanted[1]}, {self.motion_dim}), found {tuple(motion.shape)}"
            )
        x = self.norm_with_stats(motion) + self.enc_pos_embed[:, :num_frames]
        latent: Tensor = self.encoder(x, self.attn_mask[:, :, :num_frames, :num_frames])
        return latent

    def decode_quantized(self, quantized: Tensor) -> Tensor:
        """Summed codes (B, 2T, C) of prev and this -> motion (B, 2T, M)."""
        return self.unnorm_with_stats(self.decoder(quantized + self.dec_pos_embed, self.attn_mask))

    def quant_to_vqidx(self, prev_motion: Tensor, this_motion: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Motion of both halves -> their bits.

        Args:
            prev_motion: (B, T, M).
            this_motion: (B, T, M), or None to code `prev` alone.

        Returns:
            prev bits and this bits, (B, L, C) int32 each; the second is None without `this_motion`.
        """
        if this_motion is None:
            return self.quantizer.bits_from_latent(self.encode_latent(prev_motion)), None
        prev, this = self._latent_halves(prev_motion, this_motion)
        return self.quantizer.bits_from_latent(prev), self.quantizer.bits_from_latent(this)

    def vqidx_to_motion(self, prev_bits: Tensor, this_bits: Tensor) -> tuple[Tensor, Tensor]:
        """Bits (B, L, C) of both halves -> their motion, (B, T, M) each."""
        halves = [self.quantizer.quantized_from_bits(self._checked(bits)) for bits in (prev_bits, this_bits)]
        prev, this = self.decode_quantized(torch.cat(halves, dim=1)).chunk(2, dim=1)
        return prev, this

    def vqidx_to_ms_vqfeat(self, bits: Tensor) -> Tensor:
        """Bits (B, L, C) -> what predicts scales 1 to K - 1 in an AR model: (B, L - patch_nums[0], C)."""
        return self.quantizer.next_scale_features(self._checked(bits), len(self.patch_nums) - 1)

    def vqidx_to_ar_vqfeat(self, pidx: int, bits: Tensor) -> Tensor:
        """The same from the bits of scales 0 to `pidx`, as far as they are generated.

        Args:
            pidx: the last generated scale, 0 to K - 2.
            bits: (B, at least the tokens of scales 0 to pidx, C).

        Returns:
            (B, sum of patch_nums[1] .. patch_nums[pidx + 1], C).

        Raises:
            ValueError: pidx is out of range, or bits are missing.
        """
        if not 0 <= pidx < len(self.patch_nums) - 1:
            raise ValueError(f"pidx must be 0 to {len(self.patch_nums) - 2}, found {pidx}")
        num_wanted = sum(self.patch_nums[: pidx + 1])
        if bits.shape[1] < num_wanted:
            raise ValueError(f"scales 0 to {pidx} have {num_wanted} tokens, found {bits.shape[1]}")
        return self.quantizer.next_scale_features(bits, pidx + 1)

    def flip_quant_to_vqidx(
        self,
        prev_motion: Tensor,
        this_motion: Tensor,
        flip_ratio: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Bits of `this` with each bit flipped by chance, each scale coding what the flipped ones left.

        Args:
            prev_motion: (B, T, M).
            this_motion: (B, T, M).
            flip_ratio: chance of a flip, 0 to 1, the same at every scale.
            generator: on the model's device; torch's global one if None.

        Returns:
            (B, L, C) int32.
        """
        _, this = self._latent_halves(prev_motion, this_motion)
        return self.quantizer.flipped_bits_from_latent(this, flip_ratio, generator)

    def flip_pairs(self, latent: Tensor, flip_ratio: float, seeds: flips.Seeds) -> tuple[Tensor, Tensor]:
        """Reproducible (target, flipped) bits of a latent (B, T, C) of `this`; see `flips.flip_pairs`."""
        return flips.flip_pairs(latent, self.patch_nums, flip_ratio, seeds)

    def _latent_halves(self, prev_motion: Tensor, this_motion: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.encode_latent(torch.cat([prev_motion, this_motion], dim=1))
        prev, this = latent.chunk(2, dim=1)
        return prev, this

    def _checked(self, bits: Tensor) -> Tensor:
        wanted = (self.config.num_tokens, self.code_dim)
        if bits.ndim != 3 or bits.shape[1:] != wanted:
            raise ValueError(f"wanted bits (B, {wanted[0]}, {wanted[1]}), found {tuple(bits.shape)}")
        return bits


def _position_embedding(window_frames: int, dim: int) -> nn.Parameter:
    embedding = torch.empty(1, 2 * window_frames, dim)
    nn.init.trunc_normal_(embedding, std=(1 / dim / 3) ** 0.5)
    return nn.Parameter(embedding)
