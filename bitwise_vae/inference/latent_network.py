"""The networks for inference, in one of three precisions: motion windows to latent, and codes of `prev` to motion.

Compute what `BitwiseVAE.encode_latent` and `decode_quantized` do, but read no mask: prev attends to prev, this to
all, as two attentions. Know a model's weights, but neither bits nor batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitwise_vae.model import BitwiseVAE
from bitwise_vae.transformer import NEGATIVE_SLOPE, Attention, Mlp, Transformer

LinearWeights = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class BlockWeights:
    """Weights of one attention and the MLP after it, as a network copied them."""

    norm: tuple[Tensor, Tensor]
    to_qkv: LinearWeights
    to_out: LinearWeights
    widen: LinearWeights
    narrow: LinearWeights


class LatentNetwork:
    """Windows -> latent. Built by WindowEncoder, lives as long; owns a copy of the encoder's weights."""

    def __init__(self, model: BitwiseVAE, dtype: torch.dtype, device: torch.device) -> None:
        encoder = model.encoder
        self._layers = _Layers(model, encoder.inp_mapping, encoder.encoder_transformer, dtype, device)
        self._mean, self._std = _statistics(model, device)
        self._position = _copied(model.enc_pos_embed, torch.float32, device)
        self._code = _linear(encoder.code_mapping, dtype, device)

    def latent(self, windows: Tensor) -> Tensor:
        """Windows (b, 2T, M) float32, in motion units -> (b, 2T, C) float32."""
        x = (windows - self._mean) / self._std + self._position
        return F.linear(self._layers.run(x), *self._code).float()


class PrevNetwork:
    """Summed codes of `prev` -> its motion. Built by WindowEncoder for its caller; owns a copy of its weights.

    The decoder's `prev` frames attend to `prev` alone, so that the codes of `this` play no part.
    """

    def __init__(self, model: BitwiseVAE, dtype: torch.dtype, device: torch.device) -> None:
        decoder = model.decoder
        self._layers = _Layers(model, decoder.inp_mapping, decoder.decoder_transformer, dtype, device)
        self._mean, self._std = _statistics(model, device)
        self._position = _copied(model.dec_pos_embed[:, : model.window_frames], torch.float32, device)
        self._motion = _linear(decoder.out_mapping, dtype, device)

    def motion(self, codes: Tensor) -> Tensor:
        """Summed codes (b, T, C) float32 -> motion (b, T, M) float32, in motion units."""
        normalised = F.linear(self._layers.run(codes + self._position), *self._motion).float()
        return normalised * self._std + self._mean


class _Layers:
    """The linear map into a transformer, and its blocks, for the frames of `prev` or of both halves."""

    def __init__(
        self, model: BitwiseVAE, into: nn.Sequential, blocks: Transformer, dtype: torch.dtype, device: torch.device
    ) -> None:
        def block(attention: Attention, mlp: Mlp) -> BlockWeights:
            norm = (_copied(attention.norm.weight, dtype, device), _copied(attention.norm.bias, dtype, device))
            parts = (attention.to_qkv, attention.to_out, mlp[0], mlp[2])
            return BlockWeights(norm, *(_linear(part, dtype, device) for part in parts))

        layers = list(blocks)
        pairs = zip(layers[::2], layers[1::2], strict=True)
        self._dtype = dtype
        self._window_frames = model.window_frames
        self._num_heads = model.config.num_heads
        self._scale = model.config.hidden_dim**-0.5
        is_short = dtype == torch.bfloat16 and device.type == "cpu"
        self._attend = attend_by_products if is_short else attend
        self._widen = widen_in_one if is_short and has_short_products() else widen
        self._into = _linear(into[0], dtype, device)
        self._blocks = [block(cast(Attention, attention), cast(Mlp, mlp)) for attention, mlp in pairs]

    def run(self, x: Tensor) -> Tensor:
        """(b, T or 2T, dims) float32 -> (b, T or 2T, H)."""
        x = F.leaky_relu_(F.linear(x.to(self._dtype), *self._into), NEGATIVE_SLOPE)
        for block in self._blocks:
            x += self._attention(x, block)
            x += self._mlp(x, block)
        return x

    def _attention(self, x: Tensor, block: BlockWeights) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], *block.norm)
        qkv = F.linear(normed, *block.to_qkv).view(*x.shape[:2], 3, self._num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        split = self._window_frames
        halves = [self._attend(query[:, :, :split], key[:, :, :split], value[:, :, :split], self._scale)]
        if x.shape[1] > split:
            halves.append(self._attend(query[:, :, split:], key, value, self._scale))
        return F.linear(torch.cat(halves, dim=1).flatten(2), *block.to_out)

    def _mlp(self, x: Tensor, block: BlockWeights) -> Tensor:
        return F.linear(self._widen(x, *block.widen), *block.narrow)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return attention without a mask: (b, heads, frames, head_dim) each -> (b, frames of query, heads, head_dim)."""
    return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return what `attend` does, by plain products: half the time in a CPU's bfloat16 (docs/benchmarks.md)."""
    shape = query.shape
    query, key, value = (part.contiguous().flatten(0, 1) for part in (query, key, value))
    scores = torch.baddbmm(query.new_empty(()), query, key.transpose(1, 2), beta=0, alpha=scale)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.bmm(weights, value).view(shape).transpose(1, 2)


def widen(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the MLP's first linear map and its GELU: (b, frames, H) -> (b, frames, mlp_dim)."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def widen_in_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what `widen` does, rounded once: oneDNN applies the GELU to its sums, before they are bfloat16.

    Only where `has_short_products`.
    """
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh"))


def has_short_products() -> bool:
    """Return whether oneDNN is there and multiplies bfloat16 on this processor; builds without it lack the question."""
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return ask is not None and bool(ask())


def _copied(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return tensor.detach().to(device, dtype, copy=True)


def _linear(module: nn.Module, dtype: torch.dtype, device: torch.device) -> LinearWeights:
    layer = cast(nn.Linear, module)
    return _copied(layer.weight, dtype, device), None if layer.bias is None else _copied(layer.bias, dtype, device)


def _statistics(model: BitwiseVAE, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (_copied(tensor, torch.float32, device) for tensor in (model.motion_mean, model.motion_std))
    return mean, std
