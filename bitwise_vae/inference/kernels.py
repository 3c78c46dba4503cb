"""What the fused encoder runs on a GPU: launches of the kernels in triton_kernels.py, on checked shapes.

Knows tensors, but no model: which weights go where stands in fused_network.py. Importing it needs Triton. A pair, as
triton_kernels.py says it, is a tensor of one more dimension: (2, rows, dims) float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from bitwise_vae.inference.triton_kernels import (
    GELU,
    LEAKY,
    LOW_SCALE,
    NONE,
    attend_kernel,
    gather_kernel,
    linear_kernel,
    norm_kernel,
    quantize_kernel,
)
from bitwise_vae.transformer import NEGATIVE_SLOPE

ACTIVATIONS: dict[str, Any] = {"none": NONE.value, "leaky": LEAKY.value, "gelu": GELU.value}


def cut_windows(
    frames: Tensor, spans: Tensor, statistics: tuple[Tensor, Tensor], position: Tensor, out: Tensor
) -> None:
    """Cuts windows, normalises them and adds the position embedding.

    Args:
        frames: (F, M) float32.
        spans: (n, 3) int64: rows of each window's clip, [begin, end), and the first frame of `this` from its begin.
        statistics: mean and deviation, (M,) float32 each.
        position: (2T, M) float32.
        out: (n * 2T, D) or a pair of it (2, n * 2T, D), D at least M: filled, zeros beyond M.
    """
    num_windows, window_frames = len(spans), len(position) // 2
    block_rows = 16
    gather_kernel[(num_windows, triton.cdiv(2 * window_frames, block_rows))](
        frames, spans, *statistics, position, out, _low_offset(out),
        window_frames, frames.shape[1], out.shape[-1],
        block_rows, triton.next_power_of_2(out.shape[-1]), _is_pair(out), num_warps=4,
    )  # fmt: skip


def normalise(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> None:
    """Writes LayerNorm(x + shift): x (rows, H), shift, weight and bias (H,) float32, out (rows, H) or its pair."""
    rows, dims = x.shape
    block_rows = 8
    norm_kernel[(triton.cdiv(rows, block_rows),)](
        x, shift, weight, bias, out, _low_offset(out), rows, eps,
        dims, block_rows, triton.next_power_of_2(dims), _is_pair(out), num_warps=4,
    )  # fmt: skip


def attend(qkv: Tensor, num_windows: int, heads: int, scale: float, out: Tensor) -> None:
    """Attention of both halves: qkv (rows, 3H) or its pair, rows = windows * 2T; out (rows, H) or its pair."""
    rows, width = qkv.shape[-2:]
    window_frames, head_dim = rows // num_windows // 2, width // 3 // heads
    block_frames = max(16, triton.next_power_of_2(window_frames))
    block_query = min(64, block_frames)
    attend_kernel[(num_windows * heads * 2 * triton.cdiv(window_frames, block_query),)](
        qkv, out, _low_offset(qkv), _low_offset(out), scale,
        window_frames, heads, head_dim, block_query, block_frames, _is_pair(qkv),
        num_warps=4, num_stages=2,
    )  # fmt: skip


def linear(
    a: Tensor,
    weight: Tensor,
    outs: Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> None:
    """Writes act(a weight^T + bias + residual).

    Args:
        a: (rows, K), or its pair.
        weight: (N, K), or its pair where `a` is one.
        outs: (rows, N), or a pair (2, rows, N), or one of each.
        bias: (N,) float32.
        residual: (rows, N); may be one of `outs`.
        activation: none, leaky (the encoder's slope) or gelu (tanh).
    """
    rows, dims_in = a.shape[-2:]
    dims_out = weight.shape[-2]
    block_rows, block_out, block_in = 128, min(128, max(16, triton.next_power_of_2(dims_out))), 64
    tiles = triton.cdiv(rows, block_rows) * triton.cdiv(dims_out, block_out)
    plain = next((out for out in outs if not _is_pair(out)), None)
    pair = next((out for out in outs if _is_pair(out)), None)
    unused = outs[0]
    linear_kernel[(tiles,)](
        a, weight, unused if bias is None else bias, unused if residual is None else residual,
        unused if plain is None else plain, unused if pair is None else pair,
        _low_offset(a), _low_offset(weight), 0 if pair is None else _low_offset(pair), rows,
        dims_in, dims_out, ACTIVATIONS[activation], NEGATIVE_SLOPE,
        bias is not None, residual is not None, _is_pair(a), plain is not None, pair is not None,
        block_rows, block_out, block_in, num_warps=8, num_stages=3,
    )  # fmt: skip


def quantize(latent: Tensor, patch_nums: tuple[int, ...], out: Tensor) -> None:
    """Writes the packed bits of halves, and uses the latent up.

    Args:
        latent: (halves, T, C) float32; afterwards what no scale coded.
        patch_nums: tokens a scale.
        out: (halves, L, C // 8) uint8.
    """
    # One warp: several would have to wait for each other's bits, and of four the compiler made wrong ones (Triton 3.6).
    halves, window_frames, code_dim = latent.shape
    blocks = tuple(triton.next_power_of_2(size) for size in patch_nums)
    quantize_kernel[(halves,)](
        latent, out, window_frames, code_dim, sum(patch_nums), patch_nums, blocks,
        triton.next_power_of_2(window_frames), num_warps=1, num_stages=1,
    )  # fmt: skip


def pair_of(x: Tensor) -> Tensor:
    """float32 -> its two halves, (2, ..) float16."""
    high = x.half()
    return torch.stack([high, ((x - high.float()) * LOW_SCALE.value).half()])


def versions() -> str:
    """Names what compiled the kernels."""
    return f"triton {triton.__version__}"


def _is_pair(x: Tensor) -> bool:
    return x.ndim == 3


def _low_offset(x: Tensor) -> int:
    return x.stride(0) if x.ndim == 3 else 0
