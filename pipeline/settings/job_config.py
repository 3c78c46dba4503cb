"""What a person sets for a job: the layout of run.yaml, its defaults, and helpful refusals.

Knows no Ray, torch, Arrow or storage. What of it can change a byte is drawn from it in contract/resolve.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError
from pipeline.settings.deploy_config import DeployConfig
from pipeline.settings.run_config import RunConfig, Section
from pipeline.settings.where import parse_where
from pipeline.settings.yaml_text import parse_yaml, yaml_fault

MIB = 1 << 20
_SECRET_KEYS = {"storage_options", "webhook"}
"""Keys whose values may hold credentials: they are never shown."""


def _items(value: object) -> object:
    """Return the items of a list, or of a text with commas, as a tuple; anything else as it is."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return tuple(value) if isinstance(value, list | tuple) else value


class ClipList(Section):
    """Files with one clip id a line: only these, or all but these."""

    include: str | None = None
    exclude: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _file_means_include(cls, value: object) -> object:
        return {"include": value} if isinstance(value, str) else value


class AudioConfig(Section):
    """Where a clip's audio is found, and how it is kept; without a field there is none."""

    field: str | None = Field(None, description="field with the audio: numbers, wav or flac bytes, or a path")
    rate_hz: int | None = Field(None, ge=1, description="samples a second: wanted of files, and those of plain arrays")
    mode: Literal["cut", "reference"] = Field("cut", description="cut: samples a window; reference: path and range")
    encoding: Literal["int16", "flac"] = Field("int16", description="of samples that are cut")
    tolerance_s: float = Field(0.2, ge=0, description="how far audio and motion may differ in length")

    @model_validator(mode="after")
    def _of_a_field(self) -> Self:
        if self.field is None and self.model_fields_set - {"field"}:
            raise ValueError("the field with the audio is missing: name it with input.audio.field=FIELD")
        return self


class InputConfig(Section):
    """How motion is found inside the input files."""

    format: Literal["auto", "parquet", "webdataset", "npz", "npy", "lmdb"] = "auto"
    clip_id_field: str | None = Field(None, description="field with the clip id; default: clip_id, else the path")
    motion_field: str = Field("motion", description="field with the motion, (frames, dims)")
    motion_dim: int | None = Field(None, ge=1, description="dims a frame as stored; only for flat lists with columns")
    columns: str | None = Field(None, description="selection of stored dims, such as 0:104,106:108")
    fps: float | str | None = Field(None, description="frames a second: a number, or the field that holds it")
    resample: Literal["none", "linear"] = "none"
    max_abs_z: float | None = Field(10_000.0, gt=0, description="deviations from the codec's mean; null: any")
    max_frozen_frames: int | None = Field(None, ge=1, description="equal frames in a row; default: any number")
    clips: ClipList = ClipList()
    carry: tuple[str, ...] = Field((), description="fields to carry along in each window, NAME or NAME:KIND")
    audio: AudioConfig = AudioConfig()
    duplicate_ids: Literal["reject", "suffix"] = "reject"
    checksum: bool = Field(False, description="tell changed files by their content, not by etag or time of change")

    @field_validator("carry", mode="before")
    @classmethod
    def _comma_list(cls, value: object) -> object:
        return _items(value)

    @field_validator("audio", mode="before")
    @classmethod
    def _text_means_field(cls, value: object) -> object:
        return {"field": value} if isinstance(value, str) else value

    @field_validator("columns", mode="before")
    @classmethod
    def _number_or_list_means_columns(cls, value: object) -> object:
        items = value if isinstance(value, list | tuple) else [value]
        return ",".join(str(item) for item in items) if value is not None else None

    @field_validator("columns")
    @classmethod
    def _columns_parse(cls, value: str | None) -> str | None:
        if value is not None:
            parse_columns(value)
        return value


class WindowConfig(Section):
    """Where windows stand in a clip."""

    preset: Literal["training"] | None = Field(None, description="training: stride of half a window, one jitter phase")
    stride: int | None = Field(None, ge=1, description="frames between windows; default: one window length")
    tail: Literal["shift", "drop", "pad"] = "shift"
    phases: int | None = Field(None, ge=0, description="extra grids at seeded offsets per clip; default 0")
    seed: int = Field(0, ge=0, description="seed of the phases")


class UnitConfig(Section):
    """How input is cut into units of work."""

    bytes: int = Field(128 * MIB, ge=1, description="motion bytes a unit, about")
    files: int = Field(64, ge=1, description="small files a unit, on average")


def check_split_name(name: str) -> None:
    """Refuse a split name that could not be a folder, or that the `datasets` library would refuse.

    Raises:
        ConfigError: it holds other characters than letters, digits and _.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", name):
        raise ConfigError(f"split name {name!r}: use letters, digits and _ (64 at most)")


class SplitConfig(Section):
    """How clips are divided into splits."""

    by: str = Field("clip_id", min_length=1, description="clip_id, source, another column of clips, or file")
    ratios: dict[str, float] = Field({"train": 0.98, "val": 0.01, "test": 0.01})
    salt: str = ""
    file: str | None = Field(None, description="JSON: split name -> list of clip ids; with by: file")

    @field_validator("ratios")
    @classmethod
    def _order_means_nothing(cls, value: dict[str, float]) -> dict[str, float]:
        return dict(sorted(value.items()))

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if (self.by == "file") != (self.file is not None):
            raise ValueError("by: file and file: PATH go together")
        for name, ratio in self.ratios.items():
            check_split_name(name)
            if not 0 <= ratio <= 1:
                raise ValueError(f"ratio of {name} must lie in 0..1, not {ratio}")
        if not self.ratios or abs(sum(self.ratios.values()) - 1) > 1e-9:
            raise ValueError(f"ratios must sum to 1, not {sum(self.ratios.values()):g}")
        return self


class ExportConfig(Section):
    """How fragments become shards."""

    formats: tuple[Literal["parquet", "webdataset"], ...] = ("parquet", "webdataset")
    windows_per_shard: int | None = Field(
        None, ge=1, description="windows a shard, on average; default: by their bytes"
    )
    shuffle: Literal["none", "shard", "global"] = "none"
    seed: int = Field(0, ge=0, description="seed of the shuffle")
    splits: SplitConfig = SplitConfig()
    where: str = Field("", description="only what passes, such as \"speaker == 'anna' and num_frames > 500\"")
    clips: ClipList = ClipList()

    @field_validator("where", mode="before")
    @classmethod
    def _is_a_filter(cls, value: object) -> object:
        """Put it in the one spelling, so that spaces and quotes make no other dataset."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return ""
        return parse_where(value).text if isinstance(value, str) else value

    @field_validator("formats", mode="before")
    @classmethod
    def _comma_list(cls, value: object) -> object:
        items = _items(value)
        if isinstance(items, tuple):
            if not items:
                raise ValueError("name at least one format: parquet, webdataset")
            return tuple(sorted(set(items)))
        return items


Emitted = Literal["latent", "flips", "decoded_prev"]
EMITTED: tuple[Emitted, ...] = get_args(Emitted)


class FlipConfig(Section):
    """Pairs of bits for self-correction: what `emit: [flips]` stores, and what a loader draws by the same rule."""

    pairs: int = Field(4, ge=1, le=64, description="pairs a window")
    ratio: float = Field(0.3, ge=0, le=1, description="largest chance of a flip; a window and scale draws from 0 to it")
    seed: int = Field(0, ge=0, description="another number draws other flips")


class JobConfig(Section):
    """Everything a person can set for `tokenize`: the layout of run.yaml."""

    input: InputConfig = InputConfig()
    window: WindowConfig = WindowConfig()
    units: UnitConfig = UnitConfig()
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: int | None = Field(None, ge=1, description="windows a batch; default: 32 on CPU, 1024 on GPU")
    emit: tuple[Emitted, ...] = Field((), description="what to store beside the bits")
    flips: FlipConfig = FlipConfig()
    export: ExportConfig = ExportConfig()
    gate: Literal["enforce", "warn", "off"] = Field("enforce", description="what to do where decoding fails")
    max_error_ratio: float = Field(2.0, ge=1, description="times the error that the checkpoint recorded")
    max_flip_rate: float | None = Field(None, ge=0, le=1, description="share of bits that may depend on rounding")
    run: RunConfig = RunConfig()
    deploy: DeployConfig | None = Field(None, description="the cluster to run on: what `deploy render` reads")

    @field_validator("emit", mode="before")
    @classmethod
    def _emit_in_order(cls, value: object) -> object:
        items = _items(value)
        known = [item for item in EMITTED if item in items] if isinstance(items, tuple) else []
        return tuple(known) if isinstance(items, tuple) and set(items) <= set(EMITTED) else items

    @field_validator("gate", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # as YAML reads it


@dataclass(frozen=True)
class TokenizeRequest:
    """What a person asks `tokenize` for: places as they were written, and the configuration."""

    inputs: tuple[str, ...]
    output: str
    checkpoint: str
    preset: str | None
    model_config: str | None
    config: JobConfig


def parse_columns(text: str) -> tuple[int, ...]:
    """Return the indices of a column selection such as ``0:104,106:108,109``.

    Raises:
        ValueError: an item is neither a number nor a rising range.
    """
    indices: list[int] = []
    for item in text.split(","):
        start, colon, stop = item.strip().partition(":")
        if not start.isdigit() or (colon and not stop.isdigit()):
            raise ValueError(f"column selection {item!r}: write numbers and ranges such as 0:100,103")
        if colon and int(stop) <= int(start):
            raise ValueError(f"column selection {item!r} is empty: the end must lie above the start")
        indices.extend(range(int(start), int(stop)) if colon else [int(start)])
    return tuple(indices)


def load_config(text: str | None, assignments: Sequence[str] = (), name: str = "run.yaml") -> JobConfig:
    """Return the configuration of a YAML text with ``key.sub=value`` assignments laid over it.

    Args:
        text: contents of run.yaml, or None.
        assignments: `--set` items; values are read as YAML.
        name: what to call the text in messages.

    Raises:
        ConfigError: unknown key (the nearest right one is offered), wrong value, or no YAML mapping.
    """
    try:
        tree = parse_yaml(text) if text else {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {yaml_fault(error)}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} must hold keys and values, found {type(tree).__name__}")
    for assignment in assignments:
        _assign(tree, assignment)
    return config_from_tree(tree, name)


def config_from_tree(tree: Mapping[str, Any], name: str) -> JobConfig:
    """Return a validated configuration; errors name the key and offer the nearest right one.

    Raises:
        ConfigError: unknown key or wrong value.
    """
    _refuse_unknown_keys(tree, JobConfig, name, "")
    try:
        return JobConfig.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg'].removeprefix('Value error, ')}"
            + ("" if _SECRET_KEYS.intersection(item["loc"]) else f" (found {item['input']!r})")
            for item in error.errors()
        ]
        raise ConfigError(f"{name}: " + "; ".join(lines)) from error


_SHORT_FOR = {"input.audio": "field", "input.clips": "include", "export.clips": "include"}  # a bare section's key


def _assign(tree: dict[str, Any], assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {key!r}: write key=value, for example --set window.stride=50")
    *parents, leaf = key.strip().split(".")
    node = tree
    for depth, parent in enumerate(parents, start=1):
        child = node.setdefault(parent, {})
        if isinstance(child, str) and (whole := _SHORT_FOR.get(".".join(parents[:depth]))):
            child = node[parent] = {whole: child}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}=..: {parent} holds one value, not a section")
        node = child
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}=..: the value is not YAML: {yaml_fault(error)}") from error
    whole, old = _SHORT_FOR.get(key.strip()), node.get(leaf)
    node[leaf] = {**old, whole: parsed} if whole and isinstance(old, dict) and isinstance(parsed, str) else parsed


def _refuse_unknown_keys(tree: Mapping[str, Any], model: type[BaseModel], name: str, prefix: str) -> None:
    for key, value in tree.items():
        field = model.model_fields.get(str(key))
        if field is None:
            known = [*all_keys(JobConfig), *all_keys(DeployConfig, "deploy.")]
            near = difflib.get_close_matches(f"{prefix}{key}", known, n=1, cutoff=0.5) or difflib.get_close_matches(
                str(key), known, n=1, cutoff=0.5
            )
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(model.model_fields))}"
            raise ConfigError(f"{name}: unknown key {prefix + str(key)!r}; {hint}")
        for kind in (field.annotation, *get_args(field.annotation)):  # a section, or one that may be left out
            if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
                _refuse_unknown_keys(value, kind, name, f"{prefix}{key}.")


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every dotted key of a configuration model, sections included."""
    keys: list[str] = []
    for field_name, field in model.model_fields.items():
        keys.append(prefix + field_name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.extend(all_keys(field.annotation, f"{prefix}{field_name}."))
    return keys
