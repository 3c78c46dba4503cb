"""The bitwise VAE: motion windows to bits and back. Knows torch and numpy, but no corpus, storage or cluster.

Names are imported on first use, so that pure modules such as `bits` load without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitwise_vae.bits import pack_bits, pack_bits_torch, unpack_bits, unpack_bits_torch
    from bitwise_vae.checkpoint import (
        CheckpointError,
        checkpoint_bytes,
        load_checkpoint,
        random_checkpoint,
        read_checkpoint,
        statistics_digest,
        weights_digest,
        write_checkpoint,
    )
    from bitwise_vae.config import PRESETS, BitwiseVAEConfig, ConfigError, MotionGroup
    from bitwise_vae.encode import WindowEncoder
    from bitwise_vae.flips import flip_pairs
    from bitwise_vae.model import BitwiseVAE

_HOMES = {
    "bits": ("pack_bits", "pack_bits_torch", "unpack_bits", "unpack_bits_torch"),
    "checkpoint": (
        "CheckpointError",
        "checkpoint_bytes",
        "load_checkpoint",
        "random_checkpoint",
        "read_checkpoint",
        "statistics_digest",
        "weights_digest",
        "write_checkpoint",
    ),
    "config": ("PRESETS", "BitwiseVAEConfig", "ConfigError", "MotionGroup"),
    "encode": ("WindowEncoder",),
    "flips": ("flip_pairs",),
    "model": ("BitwiseVAE",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "PRESETS",
    "BitwiseVAE",
    "BitwiseVAEConfig",
    "CheckpointError",
    "ConfigError",
    "MotionGroup",
    "WindowEncoder",
    "checkpoint_bytes",
    "flip_pairs",
    "load_checkpoint",
    "pack_bits",
    "pack_bits_torch",
    "random_checkpoint",
    "read_checkpoint",
    "statistics_digest",
    "unpack_bits",
    "unpack_bits_torch",
    "weights_digest",
    "write_checkpoint",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
