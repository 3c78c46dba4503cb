"""Packed bits of a batch -> what an autoregressive model reads and predicts, on the device where the bits are.

Knows torch and the schedule of a codec; no storage, shard, order or model. Every value equals, element for element,
what `bitwise_vae` computes from unpacked bits: it is the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwise_vae.bits import unpack_bits_torch
from bitwise_vae.flips import flip_pairs
from bitwise_vae.quantizer import MultiScaleQuantizer
from pipeline.contract.flip_seeds import flip_seeds
from pipeline.contract.specs import CodecSpec, FlipRule
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class TrainingTensors:
    """One batch as a next-scale model takes it; `..` is (B,), or (B, windows a sample)."""

    prev: Tensor
    """(.., T, C) float32: summed code feature of `prev`, the context."""
    inputs: Tensor
    """(.., L - patch_nums[0], C) float32: what predicts the tokens of scales 1 to K - 1; scale 0 has a start token."""
    targets: Tensor
    """(.., L, C) uint8 of 0 and 1: the bits to predict."""
    prev_valid: Tensor
    """(.., L) bool: tokens of `prev` that cover a real frame."""
    this_valid: Tensor
    """(.., L) bool: tokens of `this` that do; a loss counts no others."""
    style: Tensor | None
    """(B, T, C) float32: summed code feature of the style window, where the batch has one."""


@dataclass(frozen=True)
class TokenFeatures:
    """The schedule of a codec, and the features and masks that follow from it. A trainer builds one for its life.

    Letters: T frames of a half, L tokens of a half, C bits of a token, K scales; `..` any leading axes.
    """

    patch_nums: tuple[int, ...]
    code_dim: int

    @classmethod
    def of_codec(cls, codec: CodecSpec) -> TokenFeatures:
        """Build from the codec of a dataset's contract, as `TokenDataset.codec` gives it."""
        return cls(codec.patch_nums, codec.code_dim)

    @property
    def num_tokens(self) -> int:
        """L."""
        return sum(self.patch_nums)

    @property
    def window_frames(self) -> int:
        """T."""
        return self.patch_nums[-1]

    def unpack(self, packed: Tensor) -> Tensor:
        """Unpack bits: (.., L, C / 8) uint8 -> (.., L, C) uint8 of 0 and 1.

        Raises:
            ConfigError: the bits are of another schedule.
        """
        wanted = (self.num_tokens, self.code_dim // 8)
        if packed.dtype != torch.uint8 or tuple(packed.shape[-2:]) != wanted:
            raise ConfigError(
                f"wanted packed bits (.., {wanted[0]}, {wanted[1]}) uint8, found {tuple(packed.shape)} {packed.dtype}:"
                " build TokenFeatures from the codec of the dataset that the batch is of"
            )
        return unpack_bits_torch(packed)

    def next_scale_features(self, bits: Tensor, num_scales: int | None = None) -> Tensor:
        """Return what predicts each next scale: the sum of scales 0..k, pooled to the size of scale k + 1.

        As `BitwiseVAE.vqidx_to_ms_vqfeat`; with `num_scales` as `vqidx_to_ar_vqfeat`, while bits are being generated.

        Args:
            bits: (.., L, C), or those of the first `num_scales` scales at least.
            num_scales: how many scales are read, 1 to K - 1; None: K - 1.

        Returns:
            (.., sum of patch_nums[1] .. patch_nums[num_scales], C) float32.
        """
        count = len(self.patch_nums) - 1 if num_scales is None else num_scales
        if not 1 <= count <= len(self.patch_nums) - 1:
            raise ConfigError(f"num_scales must be 1 to {len(self.patch_nums) - 1}, found {num_scales}")
        return _over_leading(bits, 2, lambda flat: self._quantizer.next_scale_features(flat, count))

    def code_feature(self, bits: Tensor) -> Tensor:
        """Return the summed code feature of a half: bits (.., L, C) -> (.., T, C) float32, what the decoder reads."""
        return _over_leading(bits, 2, self._quantizer.quantized_from_bits)

    def levels(self, device: torch.device | str = "cpu") -> Tensor:
        """Return (L,) int64: the scale of every token."""
        sizes = torch.tensor(self.patch_nums, device=device)
        return torch.repeat_interleave(torch.arange(len(self.patch_nums), device=device), sizes)

    def block_causal_mask(self, num_context: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """Return (num_context + L, the same) bool, True where a row may see a column.

        Context stands in front: all rows see it, and it sees itself alone. A token sees the inputs of its own scale and
        of earlier ones. `torch.nn.functional.scaled_dot_product_attention` takes it as it is.
        """
        context = torch.full((num_context,), -1, device=device)
        levels = torch.cat([context, self.levels(device)])
        return levels[None, :] <= levels[:, None]

    def prev_valid(self, valid_frames: Tensor) -> Tensor:
        """Return which tokens of `prev` cover a real frame, zeros standing first: valid_frames (..) -> (.., L) bool."""
        _, end = self._spans(valid_frames.device)
        return end > self.window_frames - valid_frames.unsqueeze(-1)

    def this_valid(self, valid_frames: Tensor) -> Tensor:
        """Return which tokens of `this` cover a real frame, zeros standing last: valid_frames (..) -> (.., L) bool."""
        begin, _ = self._spans(valid_frames.device)
        return begin < valid_frames.unsqueeze(-1)

    def flip_pairs(
        self, latent: Tensor, clip_ids: Sequence[str], start_frames: Tensor, rule: FlipRule, pair: int
    ) -> tuple[Tensor, Tensor]:
        """Draw self-correction pairs from stored latents: bit for bit those that `emit: [flips]` stores.

        Args:
            latent: (.., T, C) float16 as stored, the column `this_latent`.
            clip_ids: one for each of the first axis.
            start_frames: (..).
            rule: ratio and seed; `pairs` bounds what is stored, not what is drawn.
            pair: number of the pair; a trainer may draw another one every epoch.

        Returns:
            Targets (before the flips, each scale after the flips of coarser ones) and flipped bits, (.., L, C) uint8.

        Raises:
            ConfigError: the latent is not as stored, so that bits would differ from stored pairs.
        """
        wanted = (self.window_frames, self.code_dim)
        if latent.dtype != torch.float16 or tuple(latent.shape[-2:]) != wanted:
            raise ConfigError(
                f"wanted the stored latent (.., {wanted[0]}, {wanted[1]}) float16, found {tuple(latent.shape)}"
                f" {latent.dtype}: take the column this_latent as the loader gives it"
            )
        leading = latent.shape[:-2]
        starts = start_frames.reshape(-1).tolist()
        repeated = np.repeat(np.array(clip_ids, object), len(starts) // max(1, len(clip_ids))).tolist()
        seeds = flip_seeds(rule.seed, repeated, starts, pair)
        drawn = flip_pairs(latent.reshape(-1, *wanted), self.patch_nums, rule.ratio, seeds)
        target, flipped = (bits.to(torch.uint8).reshape(*leading, *bits.shape[1:]) for bits in drawn)
        return target, flipped

    def training_tensors(
        self, batch: dict[str, Any], device: torch.device | str = "cpu", pair: tuple[Tensor, Tensor] | None = None
    ) -> TrainingTensors:
        """Move a batch to the device and return all that a next-scale model trains on.

        Args:
            batch: of a `TokenStream` or of `collate`.
            device: bits travel packed and are unpacked there.
            pair: targets and flipped bits (.., L, C) of `flip_pairs`, or unpacked stored ones: then inputs are made of
                the flipped bits (bitwise self-correction, arXiv 2412.04431). None: both are the clean bits.

        Returns:
            Everything on the device.
        """

        def moved(name: str) -> Tensor:
            tensor: Tensor = batch[name]
            return tensor.to(device, non_blocking=True)

        if pair is None:
            target = read = self.unpack(moved("this_bits"))
        else:
            target, read = (bits.to(device, non_blocking=True) for bits in pair)
        return TrainingTensors(
            prev=self.code_feature(self.unpack(moved("prev_bits"))),
            inputs=self.next_scale_features(read),
            targets=target,
            prev_valid=self.prev_valid(moved("prev_valid_frames")),
            this_valid=self.this_valid(moved("this_valid_frames")),
            style=self.code_feature(self.unpack(moved("style_bits"))) if "style_bits" in batch else None,
        )

    @cached_property
    def _quantizer(self) -> MultiScaleQuantizer:
        return MultiScaleQuantizer(self.patch_nums)

    def _spans(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the first frame of every token and the one behind its last, (L,) each: what pooling averages."""
        frames, begins, ends = self.window_frames, [], []
        for size in self.patch_nums:
            begins += [token * frames // size for token in range(size)]
            ends += [-(-(token + 1) * frames // size) for token in range(size)]
        return torch.tensor(begins, device=device), torch.tensor(ends, device=device)


def _over_leading(values: Tensor, num_own: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Call a function of (B, ..) with all leading axes as one: the last `num_own` axes are its own."""
    leading = values.shape[:-num_own]
    found = function(values.reshape(-1, *values.shape[-num_own:]))
    return found.reshape(*leading, *found.shape[1:])
