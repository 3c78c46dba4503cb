"""Which configuration a checkpoint's tensors have: what their shapes say, joined with what was stated.

Knows names and shapes of tensors, but no file formats. Every contradiction raises, with both sides named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitwise_vae.checkpoints.tensors import CheckpointError
from bitwise_vae.config import PRESETS, BitwiseVAEConfig, ConfigError, config_from_values, values_from_json
from bitwise_vae.transformer import prev_this_mask

HOW_TO_STATE = "give --preset artalk for the released weights, or --model-config FILE (JSON)"
NOT_IN_SHAPES = ("num_heads", "patch_nums")

Overrides = BitwiseVAEConfig | Mapping[str, Any] | str | None


class Layer(NamedTuple):
    """Configuration values and where they were stated; later layers win."""

    source: str
    values: Mapping[str, Any]


class Fact(NamedTuple):
    """A size that shapes show; `seen` says where, for messages."""

    field: str
    value: int
    seen: str


def stated_layers(
    metadata: Mapping[str, str], sidecar_json: str | None, preset: str | None, overrides: Overrides, name: str
) -> list[Layer]:
    """Collects what was stated about a checkpoint, the later winning.

    Raises:
        CheckpointError: an unknown preset, or values that cannot be read.
    """
    if preset is not None and preset not in PRESETS:
        raise CheckpointError(f"{name}: no preset {preset!r}; there is {', '.join(PRESETS)}")
    given = overrides.to_dict() if isinstance(overrides, BitwiseVAEConfig) else overrides
    return [
        _layer("the file's metadata", metadata.get("config"), name),
        _layer("the JSON beside it", sidecar_json, name),
        _layer(f"--preset {preset}", PRESETS[preset] if preset else None, name),
        _layer("--model-config", given, name),
    ]


def config_from_shapes(state: Mapping[str, Tensor], layers: Iterable[Layer], name: str) -> BitwiseVAEConfig:
    """Joins the sizes that a state dict shows with stated values.

    Args:
        state: tensors by state-dict name.
        layers: stated values, the later winning; an absent fps is 25.
        name: of the file, for messages.

    Raises:
        CheckpointError: num_heads or patch_nums are stated nowhere, or a stated value contradicts a shape.
    """
    stated = {field: (value, layer.source) for layer in layers for field, value in layer.values.items()}
    missing = [field for field in NOT_IN_SHAPES if field not in stated]
    if missing:
        raise CheckpointError(
            f"{name}: {' and '.join(missing)} cannot be read off the weights and are stated nowhere: {HOW_TO_STATE}"
        )
    facts = _facts(state, name)
    for fact in facts:
        if fact.field in stated and stated[fact.field][0] != fact.value:
            value, source = stated[fact.field]
            raise CheckpointError(
                f"{name}: {source} says {fact.field} {value}, but {fact.seen}: "
                "correct the configuration or take the file that belongs to it"
            )
    values = {field: value for field, (value, _) in stated.items()}
    sizes = {fact.field: fact.value for fact in facts}
    window_frames = sizes.pop("window_frames")
    try:
        config = config_from_values({**values, **sizes})
    except ConfigError as error:
        raise CheckpointError(f"{name}: {error}; {HOW_TO_STATE}") from error
    if config.window_frames != window_frames:
        raise CheckpointError(
            f"{name}: {stated['patch_nums'][1]} says patch_nums {config.patch_nums}, a window of "
            f"{config.window_frames} frames, but enc_pos_embed is for {window_frames}: {HOW_TO_STATE}"
        )
    return config


def require_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> None:
    """Compares a state dict with the one that the configuration asks for, and looks at its numbers.

    Args:
        state: found, by name.
        wanted: shapes, by name (any values).
        name: of the file, for messages.

    Raises:
        CheckpointError: a name is missing or unknown, a shape is another, a number is not finite, a deviation
            is not above 0, or the attention mask is another.
    """
    for problem, keys in (
        ("lacks", wanted.keys() - state.keys()),
        ("also holds", state.keys() - wanted.keys()),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise CheckpointError(
                f"{name}: {problem} {len(keys)} tensors, among them {some}: it is another model or was cut; "
                "save the whole state dict of a bitwise VAE"
            )
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            raise CheckpointError(
                f"{name}: {key} should have shape {tuple(tensor.shape)} by the configuration, found "
                f"{tuple(state[key].shape)}: the file contradicts itself; take it from where it was trained"
            )
        if key != "attn_mask" and not torch.isfinite(state[key]).all():
            raise CheckpointError(
                f"{name}: {key} holds numbers that are not finite: training diverged or the file is damaged; "
                "take an earlier checkpoint"
            )
    deviation = state["motion_std"]
    if not (deviation > 0).all():
        column = int((deviation <= 0).nonzero()[0])
        raise CheckpointError(
            f"{name}: motion_std must be above 0, found {deviation[column]} in column {column}: compute the "
            "statistics again and give constant columns a deviation of 1"
        )
    mask = state["attn_mask"]
    if not torch.equal(mask.float(), prev_this_mask(mask.shape[-1] // 2)):
        raise CheckpointError(
            f"{name}: attn_mask is not that of a bitwise VAE (prev sees prev, this sees both): another model"
        )


def _layer(source: str, values: Mapping[str, Any] | str | None, name: str) -> Layer:
    try:
        return Layer(source, {} if values is None else values_from_json(values))
    except ConfigError as error:
        raise CheckpointError(f"{name}: {source}: {error}") from error


def _facts(state: Mapping[str, Tensor], name: str) -> list[Fact]:
    attention = r"encoder\.encoder_transformer\.\d+\.to_qkv\.weight"
    depth = sum(re.fullmatch(attention, key) is not None for key in state)
    facts = [Fact("depth", depth, f"the encoder has {depth} attention layers")]
    for field, key, axis in (
        ("motion_dim", "encoder.inp_mapping.0.weight", 1),
        ("hidden_dim", "encoder.inp_mapping.0.weight", 0),
        ("code_dim", "encoder.code_mapping.weight", 0),
        ("window_frames", "enc_pos_embed", 1),
    ):
        shape = tuple(state[key].shape) if key in state else ()
        if len(shape) <= axis:
            raise CheckpointError(f"{name}: {key} is missing or has no axis {axis}: not a whole bitwise VAE")
        size = shape[axis] // 2 if field == "window_frames" else shape[axis]
        facts.append(Fact(field, size, f"{key} has shape {shape}, which makes it {size}"))
    return facts
