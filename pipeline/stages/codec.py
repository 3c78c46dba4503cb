"""The codec of a job: its checkpoint read through storage, its identity, and where it will compute.

Knows no Ray or Arrow tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from bitwise_vae.checkpoints.checkpoint import (
    CheckpointError,
    checkpoint_bytes,
    pretrained_bytes,
    read_checkpoint,
    statistics_digest,
    weights_digest,
)
from bitwise_vae.checkpoints.quality_record import QualityRecord, record_from_bytes
from bitwise_vae.config import PRESETS, PRETRAINED, ConfigError, values_from_json
from bitwise_vae.inference.fusible import fused_kernels
from bitwise_vae.model import BitwiseVAE
from pipeline.contract.specs import CodecSpec, Contract, Numerics
from pipeline.errors import CodecError, InputNotFoundError, OutputMismatchError
from pipeline.storage import read_bytes, read_text, without_secrets


@dataclass(frozen=True)
class Codec:
    """A checkpoint that was read and checked: weights as safetensors bytes, and their identity."""

    data: bytes
    spec: CodecSpec
    mean: NDArray[np.float32]
    """(motion_dim,) of the motion that the codec was trained on."""
    std: NDArray[np.float32]
    """(motion_dim,) likewise, above 0."""
    record: QualityRecord | None = None
    """What the trainer measured, where the checkpoint carries it."""


def open_codec(
    checkpoint: str,
    *,
    preset: str | None = None,
    model_config: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Codec:
    """Read a checkpoint from disk or object storage.

    Args:
        checkpoint: path or URL of a .pt, .pth or .safetensors file; or a name in PRETRAINED.
        preset: name of a preset that says what shapes cannot.
        model_config: path or URL of a JSON configuration, ours or the original's; wins over the preset.
        options: fsspec options.

    Raises:
        InputNotFoundError: a file is missing.
        CodecError: the checkpoint or its configuration does not fit; the message says where.
    """
    is_ours = checkpoint in PRETRAINED
    data = pretrained_bytes(checkpoint) if is_ours else read_bytes(checkpoint, options)
    if preset is not None and preset not in PRESETS:
        raise CodecError(f"unknown preset {preset!r}; there are: {', '.join(sorted(PRESETS))}")
    overrides: dict[str, Any] = {}
    if model_config is not None:
        try:
            overrides = values_from_json(read_text(model_config, options))
        except ConfigError as error:
            raise CodecError(f"{model_config}: {error}") from error
    try:
        name = PRETRAINED[checkpoint] if is_ours else without_secrets(checkpoint)
        sidecar = None if is_ours else _sidecar(checkpoint, options)
        model = read_checkpoint(data, name, sidecar, overrides, preset=preset)
        record = record_from_bytes(data, name) if data[8:9] == b"{" else None  # else no safetensors
    except (CheckpointError, ConfigError) as error:
        raise CodecError(str(error)) from error
    return codec_of_model(model, record)


def require_same_codec(codec: Codec, contract: Contract, dataset: str) -> None:
    """Make sure that a dataset's tokens are those of a codec.

    Args:
        dataset: its place, for the message.

    Raises:
        OutputMismatchError: weights, statistics, schedule or sizes differ; the message names the fields.
    """
    differences = contract.model_copy(update={"codec": codec.spec}).differences(contract)
    if differences:
        raise OutputMismatchError(
            f"{dataset} was made with another codec than this checkpoint: {'; '.join(differences[:5])}."
            " Next: name the checkpoint it was made with"
        )


def codec_of_model(model: BitwiseVAE, record: QualityRecord | None = None) -> Codec:
    """Return a model's weights and identity, and what is recorded of its quality."""
    config = model.config
    spec = CodecSpec(
        weights=weights_digest(model),
        statistics=statistics_digest(model),
        motion_dim=config.motion_dim,
        code_dim=config.code_dim,
        patch_nums=config.patch_nums,
        hidden_dim=config.hidden_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        fps=config.fps,
    )
    mean, std = model.motion_mean.cpu().numpy(), model.motion_std.cpu().numpy()
    return Codec(checkpoint_bytes(model), spec, mean, std, record)


def numerics_here(device: torch.device) -> Numerics:
    """Return what decides about the last bit on this machine and device."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}"
    return Numerics(device=name, torch=torch.__version__, pyarrow=pa.__version__, kernels=fused_kernels(device))


def pick_device() -> torch.device:
    """Return the GPU that this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _sidecar(checkpoint: str, options: Mapping[str, Any] | None) -> str | None:
    """Return the JSON of the same name beside a checkpoint, where there is one."""
    if "?" in checkpoint:
        return None  # a signed address is good for the file alone
    beside = checkpoint.removesuffix(PurePosixPath(checkpoint).suffix) + ".json"
    try:
        return read_text(beside, options)
    except InputNotFoundError:
        return None
