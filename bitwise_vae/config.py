"""The configuration of a bitwise VAE: sizes, token schedule, frame rate and named motion columns.

Knows nothing of torch, files or weights: plain values, checked when they are built.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

PRETRAINED = {"demo": "demo_flame106.safetensors", "demo-arkit": "demo_arkit61.safetensors"}
"""Checkpoints inside this package, each with a card beside it, by the name that stands for a path."""


class ConfigError(ValueError):
    """A configuration that no bitwise VAE can have, or that contradicts itself."""


@dataclass(frozen=True)
class MotionGroup:
    """A named range of motion columns, `start` to `stop` exclusive, with the unit of its values."""

    name: str
    start: int
    stop: int
    unit: str


FLAME_GROUPS = (
    MotionGroup("expression", 0, 100, ""),
    MotionGroup("head_pose", 100, 103, "rad"),
    MotionGroup("jaw_pose", 103, 106, "rad"),
)

ARKIT_GROUPS = (
    MotionGroup("blend_shapes", 0, 52, ""),
    MotionGroup("head_pose", 52, 55, "rad"),
    MotionGroup("eyes", 55, 61, "rad"),
)
"""52 blend shapes as Live Link Face orders them, then yaw, pitch and roll of head, left eye and right eye."""

PRESETS: dict[str, dict[str, Any]] = {
    "artalk": {
        "num_heads": 8,
        "patch_nums": (1, 5, 25, 50, 100),
        "fps": 25.0,
        "motion_groups": FLAME_GROUPS,
    },
}

ORIGINAL_NAMES = {
    "MOTION_DIM": "motion_dim",
    "V_CODE_DIM": "code_dim",
    "V_PATCH_NUMS": "patch_nums",
    "T_HIDDEN_DIM": "hidden_dim",
    "T_DEPTH": "depth",
    "T_NUM_HEADS": "num_heads",
}
"""The original's key of each value, and ours."""

STATED_CHECKS = ("window_frames", "num_tokens")
"""Derived values that a JSON may state as well: they are compared, never stored."""


@dataclass(frozen=True)
class BitwiseVAEConfig:
    """Everything about a bitwise VAE that its weights alone do not say, and the sizes that they do.

    Built by a user, from JSON or while a checkpoint is read; checked on construction, never changed.

    Raises:
        ConfigError: a value is of the wrong kind, out of range or contradicts another.
    """

    motion_dim: int = 106
    code_dim: int = 32
    patch_nums: tuple[int, ...] = (1, 5, 25, 50, 100)
    hidden_dim: int = 512
    depth: int = 6
    num_heads: int = 8
    fps: float = 25.0
    motion_groups: tuple[MotionGroup, ...] = ()
    """Left empty: FLAME_GROUPS where motion_dim is theirs, else all columns as one group."""

    def __post_init__(self) -> None:
        for name in ("motion_dim", "code_dim", "hidden_dim", "depth", "num_heads"):
            _require_positive_int(name, getattr(self, name))
        object.__setattr__(self, "patch_nums", _checked_patch_nums(self.patch_nums))
        object.__setattr__(self, "fps", _checked_fps(self.fps))
        if self.code_dim % 8:
            raise ConfigError(f"code_dim must be a multiple of 8 (bits fill whole bytes), found {self.code_dim}")
        if self.hidden_dim % self.num_heads:
            raise ConfigError(f"hidden_dim must divide by num_heads, found {self.hidden_dim} and {self.num_heads}")
        groups = self.motion_groups or _default_groups(self.motion_dim)
        object.__setattr__(self, "motion_groups", _checked_groups(groups, self.motion_dim))

    @property
    def window_frames(self) -> int:
        """T, frames of one window: the finest scale has one token a frame."""
        return self.patch_nums[-1]

    @property
    def num_tokens(self) -> int:
        """L, tokens of one half (prev or this) over all scales."""
        return sum(self.patch_nums)

    @property
    def num_scales(self) -> int:
        """K, the number of scales."""
        return len(self.patch_nums)

    @property
    def bytes_per_half(self) -> int:
        """Bytes that the packed bits of one half take."""
        return self.num_tokens * self.code_dim // 8

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, Any]) -> BitwiseVAEConfig:
        """Builds a configuration from JSON text or its parsed mapping, in our key names or the original's.

        Raises:
            ConfigError: not JSON, an unknown key, or a value that the class refuses.
        """
        return config_from_values(values_from_json(source))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values under our key names; `from_json` reads them back."""
        values = asdict(self)
        values["patch_nums"] = list(self.patch_nums)
        values["motion_groups"] = [asdict(group) for group in self.motion_groups]
        return values


def values_from_json(source: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
    """Reads configuration values, possibly only some of them, from JSON text or its parsed mapping.

    Args:
        source: our key names, the original's (`MOTION_DIM` ..), or the original's whole file
            `{"VAE_CONFIG": {..}, ..}`, beside which our own keys (such as `fps`) may stand.

    Returns:
        Our field names, and `window_frames` and `num_tokens` where stated, with their values.

    Raises:
        ConfigError: not JSON, not an object, or an unknown key.
    """
    values = _parsed(source) if isinstance(source, str | bytes) else dict(source)
    if "VAE_CONFIG" in values:
        own = {name: value for name, value in values.items() if name in _field_names()}
        if not isinstance(values["VAE_CONFIG"], Mapping):
            raise ConfigError(f"VAE_CONFIG must be an object, found {values['VAE_CONFIG']!r}")
        values = {**values["VAE_CONFIG"], **own}
    return {_own_name(name): value for name, value in values.items()}


def config_from_values(values: Mapping[str, Any]) -> BitwiseVAEConfig:
    """Builds a configuration from our field names, and compares derived values that are stated as well.

    Raises:
        ConfigError: a value is refused, or a stated `window_frames` or `num_tokens` is another.
    """
    known = _field_names()
    fields_given = {name: value for name, value in values.items() if name in known}
    if "motion_groups" in fields_given:
        fields_given["motion_groups"] = _groups_from_json(fields_given["motion_groups"])
    config = BitwiseVAEConfig(**fields_given)
    for name in STATED_CHECKS:
        if name in values and values[name] != getattr(config, name):
            raise ConfigError(
                f"{name} {values[name]} is stated, but patch_nums {config.patch_nums} give "
                f"{getattr(config, name)}: give the schedule that the weights were trained with"
            )
    return config


def _field_names() -> list[str]:
    return [field.name for field in fields(BitwiseVAEConfig)]


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the configuration is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the configuration must be a JSON object, found {type(values).__name__}")
    return values


def _own_name(name: str) -> str:
    own_names = [*_field_names(), *STATED_CHECKS]
    if name in own_names:
        return name
    if name in ORIGINAL_NAMES:
        return ORIGINAL_NAMES[name]
    choices = {choice.lower(): choice for choice in [*own_names, *ORIGINAL_NAMES]}
    nearest = difflib.get_close_matches(str(name).lower(), choices, n=1)
    hint = f"did you mean {choices[nearest[0]]!r}?" if nearest else f"known keys: {', '.join(own_names)}"
    raise ConfigError(f"unknown configuration key {name!r}; {hint}")


def _require_positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, found {value!r}")


def _checked_patch_nums(value: object) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"patch_nums must be a list of whole numbers, found {value!r}")
    patch_nums = tuple(value)
    if not patch_nums:
        raise ConfigError("patch_nums must name at least one scale, found none")
    for patch_num in patch_nums:
        _require_positive_int("each of patch_nums", patch_num)
    if any(fine <= coarse for coarse, fine in pairwise(patch_nums)):
        raise ConfigError(f"patch_nums must increase strictly, coarse to fine, found {patch_nums}")
    return patch_nums


def _checked_fps(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ConfigError(f"fps must be a number above 0, found {value!r}")


def _default_groups(motion_dim: int) -> tuple[MotionGroup, ...]:
    if motion_dim == FLAME_GROUPS[-1].stop:
        return FLAME_GROUPS
    return (MotionGroup("motion", 0, motion_dim, ""),)


def _groups_from_json(value: object) -> tuple[MotionGroup, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"motion_groups must be a list, found {value!r}")
    return tuple(_group_from_json(group) for group in value)


def _group_from_json(value: object) -> MotionGroup:
    if isinstance(value, MotionGroup):
        return value
    wanted = ("name", "start", "stop", "unit")
    if isinstance(value, Mapping) and set(value) <= set(wanted) and set(value) >= set(wanted[:3]):
        return MotionGroup(**{"unit": "", **value})
    if isinstance(value, list | tuple) and len(value) == len(wanted):
        return MotionGroup(*value)
    raise ConfigError(f"a motion group must have name, start, stop and unit, found {value!r}")


def _checked_groups(groups: tuple[MotionGroup, ...], motion_dim: int) -> tuple[MotionGroup, ...]:
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ConfigError(f"motion groups must have different names, found {names}")
    for group in groups:
        if not isinstance(group.start, int) or not isinstance(group.stop, int):
            raise ConfigError(f"motion group {group.name!r} must start and stop at whole numbers, found {group}")
        if not 0 <= group.start < group.stop <= motion_dim:
            raise ConfigError(
                f"motion group {group.name!r} covers columns {group.start}:{group.stop}, but motion_dim is "
                f"{motion_dim}: give motion_groups that fit, or leave them out"
            )
    return groups
