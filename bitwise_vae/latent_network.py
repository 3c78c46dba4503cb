"""The encoder for inference: motion windows to their latent, in one of three precisions.

Computes what `BitwiseVAE.encode_latent` does, but reads no mask: prev attends to prev, this to all, as two
attentions. Knows a model's weights, but neither bits nor batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitwise_vae.model import BitwiseVAE
from bitwise_vae.transformer import NEGATIVE_SLOPE, Attention, Mlp

LinearWeights = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class BlockWeights:
    """Weights of one attention and the MLP after it, as LatentNetwork copied them."""

    norm: tuple[Tensor, Tensor]
    to_qkv: LinearWeights
    to_out: LinearWeights
    widen: LinearWeights
    narrow: LinearWeights


class LatentNetwork:
    """Windows -> latent. Built by WindowEncoder, lives as long; owns a copy of the encoder's weights."""

    def __init__(self, model: BitwiseVAE, dtype: torch.dtype, device: torch.device) -> None:
        def copied(tensor: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return tensor.detach().to(device, dtype, copy=True)

        def linear(module: nn.Module) -> LinearWeights:
            layer = cast(nn.Linear, module)
            return copied(layer.weight), None if layer.bias is None else copied(layer.bias)

        def block(attention: Attention, mlp: Mlp) -> BlockWeights:
            norm = (copied(attention.norm.weight), copied(attention.norm.bias))
            qkv, out = linear(attention.to_qkv), linear(attention.to_out)
            return BlockWeights(norm, qkv, out, widen=linear(mlp[0]), narrow=linear(mlp[2]))

        layers = list(model.encoder.encoder_transformer)
        pairs = zip(layers[::2], layers[1::2], strict=True)
        self._dtype = dtype
        self._window_frames = model.window_frames
        self._num_heads = model.config.num_heads
        self._scale = model.config.hidden_dim**-0.5
        self._mean = copied(model.motion_mean, torch.float32)
        self._std = copied(model.motion_std, torch.float32)
        self._position = copied(model.enc_pos_embed, torch.float32)
        self._input = linear(model.encoder.inp_mapping[0])
        self._blocks = [block(cast(Attention, attention), cast(Mlp, mlp)) for attention, mlp in pairs]
        self._code = linear(model.encoder.code_mapping)

    def latent(self, windows: Tensor) -> Tensor:
        """Windows (b, 2T, M) float32, in motion units -> (b, 2T, C) float32."""
        x = ((windows - self._mean) / self._std + self._position).to(self._dtype)
        x = F.leaky_relu_(F.linear(x, *self._input), NEGATIVE_SLOPE)
        for block in self._blocks:
            x += self._attention(x, block)
            x += self._mlp(x, block)
        return F.linear(x, *self._code).float()

    def _attention(self, x: Tensor, block: BlockWeights) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], *block.norm)
        qkv = F.linear(normed, *block.to_qkv).view(*x.shape[:2], 3, self._num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        split = self._window_frames
        prev = self._attend(query[:, :, :split], key[:, :, :split], value[:, :, :split])
        this = self._attend(query[:, :, split:], key, value)
        return F.linear(torch.cat([prev, this], dim=1).flatten(2), *block.to_out)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(b, heads, frames, head_dim) each -> (b, frames of query, heads, head_dim)."""
        attended = F.scaled_dot_product_attention(query, key, value, scale=self._scale)
        return attended.transpose(1, 2)

    def _mlp(self, x: Tensor, block: BlockWeights) -> Tensor:
        inner = F.gelu(F.linear(x, *block.widen), approximate="tanh")
        return F.linear(inner, *block.narrow)
