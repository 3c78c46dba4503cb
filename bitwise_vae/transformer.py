"""Encoder and decoder of the bitwise VAE: linear maps around residual attention and MLP blocks.

Module names and numerics (attention scale, where a norm stands) are part of trained weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEGATIVE_SLOPE = 0.2


def mlp_dim(hidden_dim: int) -> int:
    """Width of the MLP's inner layer."""
    return int(1.5 * hidden_dim)


class Attention(nn.Module):
    """Multi-head attention behind a LayerNorm, without the residual sum. Part of a Transformer."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = hidden_dim**-0.5
        """The whole width, not that of a head: trained weights expect it."""
        self.norm = nn.LayerNorm(hidden_dim)
        self.to_qkv = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.to_out = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, frames, H) and an additive mask (1, 1, frames, frames) -> (B, frames, H)."""
        qkv = self.to_qkv(self.norm(x)).view(*x.shape[:2], 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weighted = F.scaled_dot_product_attention(query, key, value, mask, scale=self.scale)
        attended: Tensor = self.to_out(weighted.transpose(1, 2).flatten(2))
        return attended


class Mlp(nn.Sequential):
    """Two linear layers around a GELU (tanh approximation), without norm or residual sum."""

    def __init__(self, hidden_dim: int) -> None:
        inner = mlp_dim(hidden_dim)
        super().__init__(nn.Linear(hidden_dim, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, hidden_dim))


class Transformer(nn.ModuleList):
    """`depth` times attention and MLP, each added to its input. Attention is at 2i, MLP at 2i + 1."""

    def __init__(self, hidden_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        for _ in range(depth):
            self.append(Attention(hidden_dim, num_heads))
            self.append(Mlp(hidden_dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, frames, H) and an additive mask -> (B, frames, H)."""
        for block in self:
            x = x + (block(x, mask) if isinstance(block, Attention) else block(x))
        return x


class Encoder(nn.Module):
    """Normalised motion with position -> latent, one vector of code_dim a frame."""

    def __init__(self, motion_dim: int, code_dim: int, hidden_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.inp_mapping = nn.Sequential(nn.Linear(motion_dim, hidden_dim), nn.LeakyReLU(NEGATIVE_SLOPE))
        self.encoder_transformer = Transformer(hidden_dim, depth, num_heads)
        self.code_mapping = nn.Linear(hidden_dim, code_dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, frames, M) and an additive mask -> (B, frames, C)."""
        latent: Tensor = self.code_mapping(self.encoder_transformer(self.inp_mapping(x), mask))
        return latent


class Decoder(nn.Module):
    """Summed codes with position -> normalised motion."""

    def __init__(self, motion_dim: int, code_dim: int, hidden_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.inp_mapping = nn.Sequential(nn.Linear(code_dim, hidden_dim), nn.LeakyReLU(NEGATIVE_SLOPE))
        self.decoder_transformer = Transformer(hidden_dim, depth, num_heads)
        self.out_mapping = nn.Linear(hidden_dim, motion_dim)
        nn.init.xavier_uniform_(self.out_mapping.weight, gain=0.05)
        nn.init.zeros_(self.out_mapping.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, frames, C) and an additive mask -> (B, frames, M)."""
        motion: Tensor = self.out_mapping(self.decoder_transformer(self.inp_mapping(x), mask))
        return motion


def prev_this_mask(window_frames: int) -> Tensor:
    """Builds the additive mask (1, 1, 2T, 2T): prev rows see prev, this rows see both; -inf elsewhere."""
    mask = torch.zeros(1, 1, 2 * window_frames, 2 * window_frames)
    mask[:, :, :window_frames, window_frames:] = -torch.inf
    return mask
