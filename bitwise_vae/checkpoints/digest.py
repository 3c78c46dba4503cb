"""The bits of a built-in sample that every machine can make again: they tell trained weights from all others."""

from __future__ import annotations

import copy
import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from bitwise_vae.bits import pack_bits_torch
from bitwise_vae.model import BitwiseVAE

SAMPLE_SEED, SAMPLE_WINDOWS, SAMPLE_WAVES = 106, 2, 6


def sample_windows(model: BitwiseVAE) -> Tensor:
    """Makes smooth motion about a model's own mean, the same on every machine: (SAMPLE_WINDOWS, 2T, M) float64."""
    rng = np.random.Generator(np.random.PCG64(SAMPLE_SEED))
    shape = (SAMPLE_WINDOWS, 1, model.motion_dim, SAMPLE_WAVES)
    periods, phases = rng.uniform(0.2, 2.0, shape), rng.uniform(0, 2 * math.pi, shape)
    time = np.arange(2 * model.window_frames).reshape(1, -1, 1, 1) / model.window_frames
    waves = np.sin(2 * math.pi * time / periods + phases).sum(axis=-1) * math.sqrt(2 / SAMPLE_WAVES)
    mean, std = (tensor.detach().cpu().double() for tensor in (model.motion_mean, model.motion_std))
    return mean + std * torch.from_numpy(waves)


def sample_digest(model: BitwiseVAE) -> str:
    """SHA-256 (hex) over schedule, shape and bits of `sample_windows`, encoded in float64 on the CPU.

    It is equal for equal weights, statistics and schedule on every machine; another schedule gives another one
    even where all shapes agree.
    """
    exact = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        prev, this = exact.quant_to_vqidx(*sample_windows(model).chunk(2, dim=1))
    if this is None:
        raise RuntimeError("bits of both halves were asked for")
    packed = pack_bits_torch(torch.stack([prev, this], dim=1))
    digest = hashlib.sha256(f"{list(model.patch_nums)} {tuple(packed.shape)}\n".encode())
    digest.update(packed.numpy().tobytes())
    return digest.hexdigest()
