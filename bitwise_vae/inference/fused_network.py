"""The encoder for GPUs, fused: windows cut from frames, normalised and carried through to latents and packed bits.

Computes what `LatentNetwork` computes, in fewer passes over memory: see `FusedNetwork`. Knows a model's weights and
the kernels, but no streams or batches of a job. Importing it needs Triton.

What is folded: the biases behind attention and MLP are never added to the frames. They are the same for every frame,
so that their running sum, the shift, is added where a LayerNorm reads and goes through the weights into the bias of
the linear map where one does. So each sum of a block and its input is one matrix product that adds to what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from bitwise_vae.bits import pack_bits_torch, unpack_bits_torch
from bitwise_vae.inference import kernels
from bitwise_vae.inference.fusible import KernelError
from bitwise_vae.inference.latent_network import LatentNetwork
from bitwise_vae.inference.window_spans import spans_of_windows
from bitwise_vae.model import BitwiseVAE
from bitwise_vae.transformer import Attention, Mlp, mlp_dim

ALIGNED_DIMS = 16
"""Motion is filled up with zeros to a multiple of this: cuBLAS and the copy engines want rows that begin so."""
CHECKED_WINDOWS, POISON = 16, 170
MAX_ERROR, MAX_ROUNDED_ERROR, MAX_BITS = 1e-3, 0.1, 1e-4
"""Far above rounding (5e-6, 8e-3 and none) and far below a fault."""


@dataclass(frozen=True)
class _Block:
    """Weights of one attention and the MLP after it; those of linear maps as the kernels take them."""

    norm: tuple[Tensor, Tensor]
    shift: Tensor
    """(H,) float32: what the frames lack before the norm."""
    to_qkv: Tensor
    to_out: Tensor
    widen: Tensor
    widen_bias: Tensor
    narrow: Tensor


class FusedNetwork:
    """Frames and spans -> latent and bits of a fixed number of windows.

    Built by WindowEncoder for a GPU, lives as long; owns a copy of the encoder's weights and every buffer that a pass
    needs, so that a pass allocates nothing and may be recorded. One pass at a time: results stand in its buffers.

    In float16 and bfloat16 frames are held in that type and cuBLAS multiplies. In float32 all products are of pairs;
    see kernels.py.
    """

    def __init__(self, model: BitwiseVAE, dtype: torch.dtype, device: torch.device, num_windows: int) -> None:
        """Copies and folds the weights.

        Args:
            dtype: float32, float16 or bfloat16.
            num_windows: in every pass.
        """
        config = model.config
        self.config, self.num_windows = config, num_windows
        self._is_exact = dtype == torch.float32
        self._dtype, self._device = torch.float16 if self._is_exact else dtype, device
        self._scale = config.hidden_dim**-0.5
        self._statistics = (_float32(model.motion_mean, device), _float32(model.motion_std, device))
        self._position = _float32(model.enc_pos_embed[0], device)
        encoder = model.encoder
        self._input_dims = -(-config.motion_dim // ALIGNED_DIMS) * ALIGNED_DIMS
        into = cast(nn.Linear, encoder.inp_mapping[0])
        filled = nn.functional.pad(into.weight.detach(), (0, self._input_dims - config.motion_dim))
        self._into, self._into_bias = self._weight(filled), _float32(into.bias, device)
        layers = list(encoder.encoder_transformer)
        shift = torch.zeros(config.hidden_dim, dtype=torch.float64)
        self._blocks = []
        for attention, mlp in zip(layers[::2], layers[1::2], strict=True):
            block, shift = self._folded(cast(Attention, attention), cast(Mlp, mlp), shift)
            self._blocks.append(block)
        self._eps = cast(Attention, layers[0]).norm.eps
        self._code = self._weight(encoder.code_mapping.weight)
        self._code_bias = _float32(_bias_behind(encoder.code_mapping, shift), device)
        self._allocate()

    def latent(self, frames: Tensor, spans: Tensor) -> Tensor:
        """Cuts and encodes windows.

        Args:
            frames: (F, M) float32, in motion units.
            spans: (num_windows, 3) int64: rows [begin, end) of each window's clip, and the first frame of `this`
                from its begin; equal begin and end stand for a window of zeros.

        Returns:
            (num_windows, 2T, C) float32, valid until the next pass.
        """
        kernels.cut_windows(frames, spans, self._statistics, self._position, self._input)
        kernels.linear(self._input, self._into, [self._x], bias=self._into_bias, activation="leaky")
        for block in self._blocks:
            kernels.normalise(self._x, block.shift, *block.norm, self._eps, self._normed)
            self._attention(block)
            self._mlp(block)
        kernels.linear(self._x_pair, self._code, [self._latent], bias=self._code_bias)
        return self._latent.view(self.num_windows, -1, self.config.code_dim)

    def quantize(self, latent: Tensor, packed: Tensor) -> None:
        """Writes packed bits (num_windows, 2, L, C // 8) of a latent (num_windows, 2T, C), and uses the latent up."""
        halves = latent.view(-1, self.config.window_frames, self.config.code_dim)
        kernels.quantize(halves, self.config.patch_nums, packed.view(len(halves), -1, self.config.code_dim // 8))

    def check(self, model: BitwiseVAE) -> None:
        """Makes sure, on random motion, that compiled kernels compute what torch's own operations do.

        Compilers have faults too, and a wrong kernel would spoil a corpus without a word.

        Args:
            model: the weights that this network was made of.

        Raises:
            KernelError: the latent or its bits differ by more than rounding.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (self.num_windows, 2 * self.config.window_frames, self.config.motion_dim)
        mean, std = self._statistics
        steps = torch.randn(shape, generator=generator).cumsum(dim=1).to(self._device) / shape[1] ** 0.5
        spans = spans_of_windows(self.num_windows, self.config.window_frames).to(self._device)
        windows = steps * std + mean
        latent = self.latent(windows.flatten(0, 1), spans).clone()
        some = min(CHECKED_WINDOWS, self.num_windows)
        wanted = LatentNetwork(model, torch.float32, self._device).latent(windows[:some])
        found = float((latent[:some] - wanted).norm() / wanted.norm())
        halves = latent.reshape(-1, self.config.window_frames, self.config.code_dim)
        wanted_bits = pack_bits_torch(model.quantizer.bits_from_latent(halves))
        bits = torch.full_like(wanted_bits, POISON)
        self.quantize(latent, bits)
        share = float(unpack_bits_torch(bits ^ wanted_bits).float().mean())
        allowed = MAX_ERROR if self._is_exact else MAX_ROUNDED_ERROR
        if not found <= allowed or share > MAX_BITS:
            raise KernelError(
                f"the kernels compute another code than torch on this GPU: latents are {found:.2g} of their size apart,"
                f" {allowed:g} are allowed, and of bits of equal latents"
                f" {share:.2g} differ, {MAX_BITS:g} are allowed. Next: use other versions than torch"
                f" {torch.__version__} and {kernels.versions()}, or uninstall triton to compute without kernels"
            )

    def _attention(self, block: _Block) -> None:
        heads = self.config.num_heads
        if self._is_exact:
            kernels.linear(self._normed, block.to_qkv, [self._qkv])
        else:
            torch.mm(self._normed, block.to_qkv.t(), out=self._qkv)
        kernels.attend(self._qkv, self.num_windows, heads, self._scale, self._attended)
        if self._is_exact:
            kernels.linear(self._attended, block.to_out, [self._x, self._x_pair], residual=self._x)
        else:
            self._x.addmm_(self._attended, block.to_out.t())

    def _mlp(self, block: _Block) -> None:
        if self._is_exact:
            kernels.linear(self._x_pair, block.widen, [self._inner], bias=block.widen_bias, activation="gelu")
            outs = [self._x, self._x_pair] if block is self._blocks[-1] else [self._x]
            kernels.linear(self._inner, block.narrow, outs, residual=self._x)
        else:
            torch._addmm_activation(block.widen_bias, self._x, block.widen.t(), use_gelu=True, out=self._inner)
            self._x.addmm_(self._inner, block.narrow.t())

    def _folded(self, attention: Attention, mlp: Mlp, shift: Tensor) -> tuple[_Block, Tensor]:
        """Returns the weights of a block, and what the frames lack behind it, (H,) float64."""
        widen, narrow = cast(nn.Linear, mlp[0]), cast(nn.Linear, mlp[2])
        inside = shift + _float64(attention.to_out.bias)
        bias = _float32(_bias_behind(widen, inside), self._device)
        block = _Block(
            norm=(_float32(attention.norm.weight, self._device), _float32(attention.norm.bias, self._device)),
            shift=_float32(shift, self._device),
            to_qkv=self._weight(attention.to_qkv.weight),
            to_out=self._weight(attention.to_out.weight),
            widen=self._weight(widen.weight),
            widen_bias=bias if self._is_exact else bias.to(self._dtype),
            narrow=self._weight(narrow.weight),
        )
        return block, inside + _float64(narrow.bias)

    def _weight(self, weight: Tensor) -> Tensor:
        """Returns a weight (N, K) as products take it: in the type of the frames, or as a pair."""
        on_device = _float32(weight, self._device)
        return kernels.pair_of(on_device) if self._is_exact else on_device.to(self._dtype)

    def _allocate(self) -> None:
        config = self.config
        rows, hidden = self.num_windows * 2 * config.window_frames, config.hidden_dim

        def held(dims: int) -> Tensor:
            shape = (2, rows, dims) if self._is_exact else (rows, dims)
            return torch.empty(shape, dtype=self._dtype, device=self._device)

        self._input, self._normed, self._attended = held(self._input_dims), held(hidden), held(hidden)
        self._qkv, self._inner = held(3 * hidden), held(mlp_dim(hidden))
        self._x = torch.empty(rows, hidden, dtype=torch.float32 if self._is_exact else self._dtype, device=self._device)
        self._x_pair = held(hidden) if self._is_exact else self._x
        self._latent = torch.empty(rows, config.code_dim, device=self._device)


def _float32(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device, torch.float32, copy=True)


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _bias_behind(layer: nn.Linear, shift: Tensor) -> Tensor:
    """Returns a linear map's bias with what it makes of a shift (K,) float64 of its input: (N,) float64."""
    return _float64(layer.bias) + _float64(layer.weight) @ shift
