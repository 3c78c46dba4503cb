"""Checkpoints: bytes of a file to a checked BitwiseVAE and back, and the digests that name its weights.

Opens local paths only; everything else goes through bytes. Never runs code that a file holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors.torch import save as save_safetensors
from torch import Tensor

from bitwise_vae.checkpoints.quality_record import METADATA_KEY, QualityRecord
from bitwise_vae.checkpoints.shapes import Overrides, config_from_shapes, require_state, stated_layers
from bitwise_vae.checkpoints.tensors import CheckpointError, tensors_from_bytes, vae_state
from bitwise_vae.config import PRETRAINED, BitwiseVAEConfig
from bitwise_vae.model import BitwiseVAE
from bitwise_vae.transformer import prev_this_mask

__all__ = [
    "CheckpointError",
    "checkpoint_bytes",
    "load_checkpoint",
    "pretrained_bytes",
    "pretrained_path",
    "random_checkpoint",
    "read_checkpoint",
    "round_weights",
    "statistics_digest",
    "weights_digest",
    "write_checkpoint",
]


RANDOM_GAINS = {"to_qkv": 2.0, "code_mapping": 0.03, "out_mapping": 0.3}
"""Gains of random weights: attention that chooses, latents as long as codes, motion within a few deviations."""


def load_checkpoint(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    overrides: Overrides = None,
    *,
    preset: str | None = None,
) -> BitwiseVAE:
    """Reads a model from a local path, with the JSON of its name beside it if any, or from bytes.

    Args:
        source: a path that ends in .pt, .pth or .safetensors; or the content of such a file.
        overrides: configuration values (mapping or JSON, some or all) that win over all others.
        preset: a name in PRESETS.

    Raises:
        CheckpointError: see `read_checkpoint`; or the path cannot be read.
    """
    if isinstance(source, bytes):
        return read_checkpoint(source, "checkpoint bytes", None, overrides, preset=preset)
    if not isinstance(source, str | os.PathLike):
        name = str(getattr(source, "name", "checkpoint file"))
        return read_checkpoint(source.read(), name, None, overrides, preset=preset)
    path = Path(source)
    sidecar = path.with_suffix(".json")
    try:
        data = path.read_bytes()
        sidecar_json = sidecar.read_text(encoding="utf-8") if sidecar.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return read_checkpoint(data, str(path), sidecar_json, overrides, preset=preset)


def pretrained_bytes(name: str) -> bytes:
    """Returns the content of a checkpoint inside this package.

    Args:
        name: a key of PRETRAINED.
    """
    return pretrained_path(name).read_bytes()


def pretrained_path(name: str) -> Path:
    """Returns where a checkpoint inside this package stands; `name` is a key of PRETRAINED."""
    return Path(__file__).parent / "pretrained" / PRETRAINED[name]


def read_checkpoint(
    data: bytes,
    name: str,
    sidecar_json: str | None = None,
    overrides: Overrides = None,
    *,
    preset: str | None = None,
) -> BitwiseVAE:
    """Reads a model from a checkpoint's bytes, in evaluation mode on the CPU, as float32.

    Sizes are read off the weights; num_heads, patch_nums, fps and motion_groups come from safetensors
    metadata (key `config`, JSON), sidecar, preset and overrides, the later winning. An absent fps is 25.

    Args:
        data: a whole .pt, .pth or .safetensors file.
        name: its name; stands in messages, and its suffix says the format (the content does without one).
        sidecar_json: content of the JSON beside it.
        overrides: configuration values (mapping or JSON, some or all).
        preset: a name in PRESETS.

    Raises:
        CheckpointError: an unreadable file, another architecture, missing or contradicting configuration,
            a shape that does not fit it, or numbers that no model can have.
    """
    content, metadata = tensors_from_bytes(data, name)
    state = vae_state(content, name)
    layers = stated_layers(metadata, sidecar_json, preset, overrides, name)
    return _model_from_state(config_from_shapes(state, layers, name), state, name)


def checkpoint_bytes(
    model: BitwiseVAE, record: QualityRecord | None = None, dtype: torch.dtype = torch.float32
) -> bytes:
    """Writes a model as safetensors with its configuration: `read_checkpoint` needs nothing else.

    Args:
        model: on any device.
        record: what is known of its quality; read back by `quality_record.record_from_bytes`.
        dtype: that weights are stored as; the motion statistics stay float32. See `round_weights`.

    Raises:
        CheckpointError: a weight is not exactly representable in that type.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if dtype != torch.float32:
        state = {name: _stored(name, tensor, dtype) for name, tensor in state.items()}
    values = {**model.config.to_dict(), "num_tokens": model.config.num_tokens}
    metadata = {"config": json.dumps(values, sort_keys=True)}
    if record is not None:
        metadata[METADATA_KEY] = record.to_json()
    return _with_sorted_metadata(save_safetensors(state, metadata))


def _with_sorted_metadata(data: bytes) -> bytes:
    """Returns a safetensors file whose metadata stand in order: the library writes them in a random one."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def round_weights(model: BitwiseVAE, dtype: torch.dtype) -> None:
    """Rounds all weights, in place, to numbers that a smaller type holds; the motion statistics stay as they are."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))


def write_checkpoint(model: BitwiseVAE, path: str | os.PathLike[str]) -> None:
    """Writes `checkpoint_bytes` to a local path that ends in .safetensors, whole or not at all.

    Raises:
        CheckpointError: the path has another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: checkpoints are written as safetensors, name it {path.stem}.safetensors")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(checkpoint_bytes(model))
    partial.replace(path)


def weights_digest(model: BitwiseVAE) -> str:
    """SHA-256 (hex) over name, type, shape and bytes of all parameters and of the motion statistics."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "attn_mask"}
    return _digest(state)


def statistics_digest(model: BitwiseVAE) -> str:
    """SHA-256 (hex) over motion_mean and motion_std alone."""
    return _digest({"motion_mean": model.motion_mean, "motion_std": model.motion_std})


def random_checkpoint(config: BitwiseVAEConfig, mean: ArrayLike, std: ArrayLike, seed: int) -> BitwiseVAE:
    """Makes an untrained model whose bits tell windows apart, for tests, demos and benchmarks.

    Equal arguments give equal weights on any machine: all draws are uniform, from a generator of their own.

    Args:
        config: the sizes.
        mean: (M,) of the motion, in its units.
        std: (M,) likewise, above 0.
        seed: any whole number.

    Raises:
        CheckpointError: the statistics do not fit the configuration, or are no finite numbers above 0.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in _blank_model(config).state_dict().items()}
    state = {name: _random_weight(name, shape, generator) for name, shape in shapes.items()}
    state["attn_mask"] = prev_this_mask(config.window_frames)
    state["motion_mean"] = torch.from_numpy(np.array(mean, dtype=np.float32))
    state["motion_std"] = torch.from_numpy(np.array(std, dtype=np.float32))
    return _model_from_state(config, state, "random checkpoint")


def _random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    draws = torch.rand(shape, generator=generator) * 2 - 1
    if name.endswith("norm.weight"):
        return 1 + 0.2 * draws
    if len(shape) == 1:
        return 0.2 * draws
    if name.endswith("pos_embed"):
        return draws / math.sqrt(shape[-1])
    gain = next((gain for part, gain in RANDOM_GAINS.items() if part in name), 1.0)
    return draws * gain * math.sqrt(3 / shape[-1])


def _model_from_state(config: BitwiseVAEConfig, state: Mapping[str, Tensor], name: str) -> BitwiseVAE:
    """Builds the model around copies of the tensors."""
    model = _blank_model(config)
    require_state(state, model.state_dict(), name)
    copies = {key: tensor.to(torch.float32, copy=True).contiguous() for key, tensor in state.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def _blank_model(config: BitwiseVAEConfig) -> BitwiseVAE:
    """Builds a model whose weights mean nothing; the caller's random numbers go on where they were.

    Not on torch's meta device, which imports a compiler first: 5 s on a GPU host.
    """
    with torch.random.fork_rng(devices=[]):
        return BitwiseVAE(config)


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if name in ("motion_mean", "motion_std"):
        return tensor
    stored = tensor.to(dtype)
    if not torch.equal(stored.to(tensor.dtype), tensor):
        raise CheckpointError(f"{name} would change when stored as {dtype}: round the weights before they are measured")
    return stored


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
