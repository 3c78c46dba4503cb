"""Whether the GPU kernels can compute a model here: sizes, device and installed packages.

Imports no Triton, so that it can be asked anywhere.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil

import torch

from bitwise_vae.config import BitwiseVAEConfig

MAX_FRAMES, HEAD_DIMS, MIN_CODE_DIM = 128, (16, 32, 64, 128), 16
"""Sizes that the kernels hold in registers."""
MIN_CAPABILITY = 8
"""NVIDIA's Ampere generation, the first that these were tried on in float16 and bfloat16."""


class KernelError(RuntimeError):
    """The kernels compute something else than torch does, on this GPU with these versions."""


def fused_kernels(device: torch.device) -> str:
    """Names the kernels that compute on a device, where a model `is_fusible`: "" for torch's own operations.

    The kernels want an NVIDIA GPU, Triton, and a C compiler, which Triton calls.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return ""
    if torch.cuda.get_device_capability(device)[0] < MIN_CAPABILITY or importlib.util.find_spec("triton") is None:
        return ""
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        return ""
    return f"triton-{importlib.metadata.version('triton')}"


def is_fusible(config: BitwiseVAEConfig) -> bool:
    """Says whether the kernels take a model of these sizes."""
    has_power_of_2 = config.code_dim & (config.code_dim - 1) == 0
    return (
        config.window_frames <= MAX_FRAMES
        and config.hidden_dim // config.num_heads in HEAD_DIMS
        and config.code_dim >= MIN_CODE_DIM
        and has_power_of_2
    )
