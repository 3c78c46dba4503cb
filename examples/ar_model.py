"""A small next-scale transformer over the bits of `this`, given `prev`: all tokens of a scale at once, coarse to fine.

Knows features and masks of the loader; no files, dataset or training.
Source: next-scale prediction (VAR, arXiv 2404.02905), bitwise heads (Infinity, arXiv 2412.04431).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitwise_vae.quantizer import pool_frames
from pipeline.loader import TokenFeatures

Audio = tuple[Tensor, Tensor] | None
"""Sound of prev and of this, as `audio_bands` gives it; None without."""

AUDIO_BANDS = 32
KERNEL = 5
"""Tokens of its own scale's inputs that an embedded token is made of."""


@dataclass(frozen=True)
class ModelSizes:
    """How large the transformer is."""

    width: int
    depth: int
    num_heads: int
    dropout: float


SIZES = {
    "small": ModelSizes(width=128, depth=3, num_heads=4, dropout=0.1),
    "large": ModelSizes(width=768, depth=12, num_heads=12, dropout=0.1),
}
"""`small` trains on two cores in minutes; `large` (86 M weights) wants a GPU and a corpus of its size."""


class NextScaleModel(nn.Module):
    """Chances of the bits of every token, from `prev` and from the scales before the token's own.

    Built by a trainer or a sampler; owns its weights. Letters as in `TokenFeatures`, H the width.
    """

    def __init__(self, features: TokenFeatures, sizes: ModelSizes, log_odds: Tensor, has_audio: bool = False) -> None:
        """Initialise so that the untrained model predicts `log_odds`.

        Args:
            features: schedule of the codec.
            sizes: of the transformer.
            log_odds: (L, C) of a 1, token by token, where nothing else is known.
            has_audio: whether sound of both halves is given.
        """
        super().__init__()
        self.features, width = features, sizes.width
        code_dim, patch_nums = features.code_dim, features.patch_nums
        self.start = nn.Parameter(torch.randn(patch_nums[0], width) * 0.02)
        self.embed_scales = nn.ModuleList(_local(code_dim, width) for _ in patch_nums[1:])
        self.embed_prev = nn.Conv1d(code_dim, width, KERNEL, stride=2, padding=KERNEL // 2)
        self.num_context = (features.window_frames - 1) // 2 + 1
        self.embed_audio = nn.Linear(AUDIO_BANDS, width) if has_audio else None
        self.places = nn.Parameter(torch.randn(self.num_context + features.num_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, code_dim, bias=False)
        nn.init.zeros_(self.head.weight)
        self.log_odds = nn.Parameter(log_odds.clone())
        self.dropout = nn.Dropout(sizes.dropout)
        self.register_buffer("mask", features.block_causal_mask(self.num_context), persistent=False)

    def forward(self, prev: Tensor, inputs: Tensor, audio: Audio = None) -> Tensor:
        """Return the log-odds of every bit of `this`.

        Args:
            prev: (B, T, C) summed code feature of `prev`.
            inputs: (B, L - patch_nums[0], C) as `TokenFeatures.next_scale_features` gives it.
            audio: (B, T, AUDIO_BANDS) each.

        Returns:
            (B, L, C).
        """
        gain = self.features.code_dim**0.5  # a code's values are 1 / sqrt(C)
        context = self.embed_prev(prev.mT * gain).mT
        parts = (inputs * gain).split(self.features.patch_nums[1:], dim=1)
        scales = [self.start.expand(len(prev), -1, -1)]
        scales += [embed(part.mT).mT for embed, part in zip(self.embed_scales, parts, strict=True)]
        if self.embed_audio is not None and audio is not None:
            before, now = (self.embed_audio(sound) for sound in audio)
            context = context + pool_frames(before, self.num_context)
            scales = [scale + pool_frames(now, scale.shape[1]) for scale in scales]
        x = self.dropout(torch.cat([context, *scales], dim=1) + self.places)
        for block in self.blocks:
            x = block(x, self.mask)
        tokens = self.norm(x[:, self.num_context :])
        logits: Tensor = self.head(tokens).float() + self.log_odds
        return logits

    @torch.inference_mode()
    def sample(
        self, prev: Tensor, generator: torch.Generator, audio: Audio = None, guide: tuple[Tensor, float] | None = None
    ) -> Tensor:
        """Draw `this` behind a `prev`, scale by scale.

        Args:
            prev: (B, T, C) summed code feature.
            generator: on the CPU, whose numbers are equal on every device.
            audio: see `forward`.
            guide: summed code feature (1, T, C) of the null code, and the strength of classifier-free guidance. At 1
                nothing changes, above it bits follow `prev` more than the model says, at 0 they do not follow it.

        Returns:
            bits (B, L, C) uint8.
        """
        patch_nums, num_tokens = self.features.patch_nums, self.features.num_tokens
        bits = torch.zeros(len(prev), 0, self.features.code_dim, dtype=torch.uint8, device=prev.device)
        inputs = prev.new_zeros(len(prev), num_tokens - patch_nums[0], self.features.code_dim)
        for scale, size in enumerate(patch_nums):
            if scale:
                known = self.features.next_scale_features(bits, scale)
                inputs[:, : known.shape[1]] = known  # zeros behind them: no token sees a later scale
            logits = self(prev, inputs, audio)
            if guide is not None:
                null, strength = guide
                without = self(null.expand_as(prev), inputs, audio)
                logits = without + strength * (logits - without)
            chance = logits[:, bits.shape[1] : bits.shape[1] + size].sigmoid().cpu()
            drawn = torch.rand(chance.shape, generator=generator) < chance
            bits = torch.cat([bits, drawn.to(bits)], dim=1)
        return bits


def audio_bands(samples: Tensor, num_frames: int) -> Tensor:
    """Return loudness by frequency of every frame: (B, n) int16 -> (B, num_frames, AUDIO_BANDS) float32, about 0 to 1.

    Each frame has its own n / num_frames samples; bands are of equal width from 0 Hz to half the rate.
    """
    hop = samples.shape[1] // num_frames
    frames = samples[:, : hop * num_frames].view(-1, num_frames, hop).float() / 32768
    power = torch.fft.rfft(frames * torch.hann_window(hop, device=samples.device)).abs().square()
    bands = F.adaptive_avg_pool1d(power.flatten(0, 1), AUDIO_BANDS).view(-1, num_frames, AUDIO_BANDS)
    return (torch.log10(bands + 1e-6) + 6) / 10


class _Block(nn.Module):
    """Attention under a mask and an MLP, each behind a norm and added to its input."""

    def __init__(self, sizes: ModelSizes) -> None:
        super().__init__()
        width = sizes.width
        self.num_heads = sizes.num_heads
        self.norm, self.to_qkv, self.to_out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, H) under mask (N, N) -> (B, N, H)."""
        qkv = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(dim=2))
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.dropout(self.to_out(seen.transpose(1, 2).flatten(2)))
        after: Tensor = x + self.dropout(self.mlp(x))
        return after


def _local(code_dim: int, width: int) -> nn.Conv1d:
    """Embeds the tokens of a scale, each with its neighbours' inputs, which are as much known as its own."""
    return nn.Conv1d(code_dim, width, KERNEL, padding=KERNEL // 2)
