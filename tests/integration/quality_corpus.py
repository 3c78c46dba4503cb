"""A codec that decodes well without training, and smooth motion for it: what tests of gate and report start from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from bitwise_vae import BitwiseVAE, BitwiseVAEConfig, MotionGroup, checkpoint_bytes, random_checkpoint
from bitwise_vae.checkpoints.digest import sample_digest
from bitwise_vae.checkpoints.quality_record import QualityRecord
from bitwise_vae.training.metrics import ReconstructionError

GROUPS = (MotionGroup("expression", 0, 2, ""), MotionGroup("head_pose", 2, 4, "rad"))
CONFIG = BitwiseVAEConfig(
    motion_dim=4, code_dim=8, patch_nums=(1, 4, 10, 20), hidden_dim=16, depth=1, num_heads=2, motion_groups=GROUPS
)
OTHER_SCHEDULE = (2, 3, 10, 20)
GAIN = 2.5
SIZES, MEANS = np.array([0.5, 0.3, 0.1, 0.02]), np.array([0.05, 0.03, 0.01, 0.002])


def smooth_motion(seed: int, num_frames: int) -> np.ndarray:
    """Sums of slow sines at 25 frames a second, (frames, 4)."""
    rng = np.random.default_rng(seed)
    rates, phases = rng.uniform(0.1, 0.6, (3, 4)), rng.uniform(0, 2 * np.pi, (3, 4))
    waves = np.sin(2 * np.pi * np.arange(num_frames)[:, None, None] / 25 * rates + phases).sum(axis=1)
    return (waves * SIZES + MEANS).astype(np.float32)


def write_corpus(folder: Path, num_clips: int = 20, scale: object = 1.0, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for n in range(first, first + num_clips):
        np.savez(folder / f"clip{n:02}.npz", motion=smooth_motion(n, 45 + 7 * (n % 10)) * np.float32(scale), fps=25.0)
    return folder


def linear_codec(mean: object = None, std: object = None) -> BitwiseVAE:
    """A codec whose encoder and decoder are linear maps and each other's inverse: two bits a column."""
    motion = np.concatenate([smooth_motion(n, 200) for n in range(50, 70)])
    model = random_checkpoint(
        CONFIG, motion.mean(axis=0) if mean is None else mean, motion.std(axis=0) if std is None else std, 0
    )
    corner = GAIN / math.sqrt(CONFIG.code_dim)
    copies = torch.cat([torch.eye(4), torch.eye(4)])  # (code, motion)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        for into, out, matrix in (
            (model.encoder.inp_mapping[0], model.encoder.code_mapping, copies * corner),
            (model.decoder.inp_mapping[0], model.decoder.out_mapping, copies.T / (2 * corner)),
        ):
            count = matrix.shape[1]
            identity = torch.eye(count)
            # LeakyReLU(x) - LeakyReLU(-x) = 1.2 x
            into.weight[: 2 * count] = torch.cat([identity, -identity])
            out.weight[:, : 2 * count] = torch.cat([matrix, -matrix], dim=1) / 1.2
    return model


def quality_of(model: BitwiseVAE) -> QualityRecord:
    """What a trainer would record: `this` of held-out windows."""
    windows = torch.from_numpy(np.stack([smooth_motion(n, 40) for n in range(100, 130)]))
    with torch.no_grad():
        bits = model.quant_to_vqidx(*windows.chunk(2, dim=1))
        decoded = model.vqidx_to_motion(*bits)[1]
    error = ReconstructionError(model.motion_mean.numpy(), model.motion_std.numpy(), GROUPS, 25.0)
    error.add(windows[:, 20:].numpy(), decoded.numpy())
    found = error.figures()
    return QualityRecord(
        found.fraction_of_mean, found.normalised_l1, found.mean_l1, 30, 600, model.patch_nums, sample_digest(model)
    )


def write_codecs(folder: Path) -> Mapping[str, Path]:
    """Write codecs, each right or wrong in one way, and return them by name."""
    good = linear_codec()
    record = quality_of(good)
    mean, std = good.motion_mean.numpy(), good.motion_std.numpy()
    degrees = np.array([1, 1, 180 / np.pi, 180 / np.pi])
    other = linear_codec()
    with torch.no_grad():
        other.encoder.code_mapping.bias[0] += 0.05
    codecs = {
        "good": checkpoint_bytes(good, record),
        "without_record": checkpoint_bytes(good),
        "random": checkpoint_bytes(random_checkpoint(CONFIG, mean, std, 0)),
        "swapped": checkpoint_bytes(linear_codec(mean=std, std=mean), record),
        "swapped_without_record": checkpoint_bytes(linear_codec(mean=std, std=mean)),
        "other_weights": checkpoint_bytes(other, record),
        "of_degrees": checkpoint_bytes(linear_codec(mean * degrees, std * degrees), quality_of(good)),
    }
    paths = {}
    for name, data in codecs.items():
        paths[name] = folder / f"{name}.safetensors"
        paths[name].write_bytes(data)
    return paths
