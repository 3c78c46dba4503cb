"""TokenSpec, ExportSpec and the contract: what can change a fragment, only a shard, and who computed it.

Knows no Ray, torch or Arrow. RunConfig, which never changes a byte, stands in settings/run_config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.contract.schema import CONTRACT_KEY, SCHEMA_VERSION, CarriedKind
from pipeline.hashing import canonical_json, digest_of
from pipeline.settings.job_config import Emitted, SplitConfig


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CodecSpec(_Spec):
    """Identity of the codec: equal means that tokens mean the same."""

    weights: str
    statistics: str
    motion_dim: int
    code_dim: int
    patch_nums: tuple[int, ...]
    hidden_dim: int
    depth: int
    num_heads: int
    fps: float
    schema_version: int = SCHEMA_VERSION

    @property
    def window_frames(self) -> int:
        """Frames of one half of a window."""
        return self.patch_nums[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of one half of a window, all scales."""
        return sum(self.patch_nums)

    @property
    def half_bytes(self) -> int:
        """Packed bytes of one half of a window."""
        return self.num_tokens * self.code_dim // 8


class WindowRule(_Spec):
    """Where windows stand, resolved: nothing is left to defaults."""

    stride: int
    tail: Literal["shift", "drop", "pad"]
    phases: int
    seed: int


class FlipRule(_Spec):
    """Which flip pairs are stored; see flip_seeds.py for their seeds."""

    pairs: int
    ratio: float
    seed: int


class CarriedColumn(_Spec):
    """A field of clips that is carried along, and the type of its column."""

    name: str
    kind: CarriedKind


class AudioRule(_Spec):
    """Which audio is carried along, and how it is kept."""

    field: str
    rate_hz: int | None
    mode: Literal["cut", "reference"]
    encoding: Literal["int16", "flac"]
    tolerance_s: float


class CorpusSpec(_Spec):
    """Everything beside the codec that can change a fragment."""

    motion_field: str
    clip_id_field: str | None
    motion_dim: int | None
    format: str
    columns: tuple[int, ...] | None
    fps: float | str | None
    resample: Literal["none", "linear"]
    max_abs_z: float | None
    max_frozen_frames: int | None
    clips: str = Field(description="digest of the id lists, empty without")
    window: WindowRule
    unit_bytes: int
    unit_files: int
    precision: Literal["float32", "float16", "bfloat16"]
    batch_size: int
    emit: tuple[Emitted, ...] = ()
    flips: FlipRule | None = None
    """None where no flips are emitted."""
    carry: tuple[CarriedColumn, ...] = ()
    audio: AudioRule | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what came later and is not asked for: datasets from before it keep their spec_id."""
        tree: dict[str, Any] = serialize(self)
        return {name: value for name, value in tree.items() if name not in _LATER or value}


_LATER = ("emit", "flips", "carry", "audio")
"""Fields that came after the first datasets. A new one stands here, and has a default."""


class TokenSpec(_Spec):
    """Codec and corpus: two fragments of equal spec and unit are equal byte for byte."""

    codec: CodecSpec
    corpus: CorpusSpec

    @property
    def spec_id(self) -> str:
        """Hash that names the token store."""
        return digest_of(self.model_dump(mode="json"))


class Numerics(_Spec):
    """Where the arithmetic ran: equal bits are promised for equal numerics only."""

    device: str
    torch: str
    pyarrow: str
    kernels: str = ""
    """Name and version of what computes instead of torch's own operations, empty without."""

    @model_serializer(mode="wrap")
    def _without_absent_kernels(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = serialize(self)
        return {name: value for name, value in tree.items() if name != "kernels" or value}


class Contract(_Spec):
    """What stands in every footer: what the tokens are and how they were computed."""

    codec: CodecSpec
    corpus: CorpusSpec
    numerics: Numerics

    @property
    def spec(self) -> TokenSpec:
        """The part of the contract that names the token store."""
        return TokenSpec(codec=self.codec, corpus=self.corpus)

    @property
    def footer(self) -> dict[bytes, bytes]:
        """Key and value under which a Parquet footer holds it."""
        return {CONTRACT_KEY: canonical_json(self.model_dump(mode="json")).encode()}

    def is_in(self, footer: Mapping[bytes, bytes] | None) -> bool:
        """Return whether a Parquet footer holds this contract."""
        return (footer or {}).items() >= self.footer.items()

    def differences(self, other: Contract) -> list[str]:
        """Return ``field: ours, theirs`` for every field that differs."""
        return _differences(self.model_dump(mode="json"), other.model_dump(mode="json"), "")


GLOBAL_ORDER = 2
"""Which formula `shuffle: global` draws its order with; 1, which is not named in dataset.json, ranked hashes."""


class ExportSpec(_Spec):
    """Everything else that can change a shard."""

    formats: tuple[Literal["parquet", "webdataset"], ...]
    windows_per_shard: int
    shuffle: Literal["none", "shard", "global"]
    seed: int
    splits: SplitConfig
    split_file: str = Field(description="digest of the split file, empty without")
    duplicate_ids: Literal["reject", "suffix"]
    where: str = ""
    clips: str = Field("", description="digest of the export's id lists, empty without")
    schema_version: int = SCHEMA_VERSION

    @property
    def export_id(self) -> str:
        """Hash that names this way of exporting."""
        return digest_of(self.described())

    def described(self) -> dict[str, Any]:
        """Return the spec as dataset.json states it: the split file counts by content, not by path.

        A filter stands there only where there is one, so that datasets from before filters keep their export_id; the
        order of a global shuffle only with such a shuffle.
        """
        tree = self.model_dump(mode="json")
        tree["splits"].pop("file")
        order = {"global_order": GLOBAL_ORDER} if self.shuffle == "global" else {}
        return {name: value for name, value in tree.items() if value or name not in ("where", "clips")} | order


def _differences(ours: Any, theirs: Any, name: str) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(set(ours) | set(theirs))
        return [
            line
            for key in keys
            for line in _differences(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if ours == theirs else [f"{name}: {canonical_json(ours)} here, {canonical_json(theirs)} there"]
