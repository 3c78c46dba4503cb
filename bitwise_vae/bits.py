"""Eight bits to a byte and back, in numpy and, for accelerators, in torch.

Knows only arrays; torch is imported by nobody here, so that the numpy functions load in milliseconds.
The first bit of a token is the most significant bit of its first byte (`numpy.packbits`, big order).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def pack_bits(bits: NDArray[Any]) -> NDArray[np.uint8]:
    """Packs bits eight to a byte along the last axis.

    Args:
        bits: (.., tokens, code_dim), any integer or boolean type, 0 or 1; code_dim a multiple of 8.

    Returns:
        (.., tokens, code_dim // 8).

    Raises:
        ValueError: the last axis is no multiple of 8.
    """
    _require_whole_bytes(bits.shape[-1])
    return np.packbits(bits.astype(bool), axis=-1)


def unpack_bits(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpacks bytes into bits along the last axis: (.., tokens, code_dim // 8) -> (.., tokens, code_dim)."""
    return np.unpackbits(packed, axis=-1)


def pack_bits_torch(bits: torch.Tensor) -> torch.Tensor:
    """`pack_bits` for tensors, on their device: any type holding 0 and 1 -> uint8.

    Raises:
        ValueError: the last axis is no multiple of 8.
    """
    import torch

    _require_whole_bytes(bits.shape[-1])
    eights = bits.to(torch.uint8).reshape(*bits.shape[:-1], bits.shape[-1] // 8, 8)
    packed = eights[..., 0] << 7
    for place in range(1, 8):
        packed |= eights[..., place] << (7 - place)
    return packed


def unpack_bits_torch(packed: torch.Tensor) -> torch.Tensor:
    """`unpack_bits` for tensors, on their device: uint8 -> uint8 of 0 and 1."""
    import torch

    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(-2)


def _require_whole_bytes(code_dim: int) -> None:
    if code_dim % 8:
        raise ValueError(f"the last axis must be a multiple of 8 bits to fill whole bytes, found {code_dim}")
