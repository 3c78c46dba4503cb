"""Names and Arrow schemas of everything written: token rows, ledgers, index tables.

Knows no Ray, torch or storage. A change here moves SCHEMA_VERSION and CHANGELOG's "Output data".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.config import CodecSpec, CorpusSpec

SCHEMA_VERSION = 1

CONTRACT_KEY = b"motion_tokens.contract"
LEDGER_KEY = b"motion_tokens.ledger"

TOKEN_ROW_GROUP_ROWS = 1024
TOKEN_ROW_GROUP_BYTES = 16 << 20
"""Size of a row group at most, before compression: where rows are large, a row group has fewer of them."""

CarriedKind = Literal["string", "bool", "int64", "float64", "list<int64>", "list<float64>"]
CARRIED_TYPES: dict[CarriedKind, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "list<int64>": pa.list_(pa.int64()),
    "list<float64>": pa.list_(pa.float64()),
}
"""Kind of a carried field -> type of its column; see carried.py for what becomes what."""

_PLAIN_FIELDS = (
    pa.field("clip_id", pa.string(), nullable=False),
    pa.field("start_frame", pa.int32(), nullable=False),
    pa.field("num_frames", pa.int32(), nullable=False),
    pa.field("prev_valid_frames", pa.int16(), nullable=False),
    pa.field("this_valid_frames", pa.int16(), nullable=False),
    pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
)
BITS_COLUMNS = ("prev_bits", "this_bits")
AUDIO_ARRAYS = ("prev_audio", "this_audio")
WINDOW_NUMBERS = ("start_frame", "prev_valid_frames", "this_valid_frames", "audio_start", "audio_num_samples")
"""Columns of single values that differ between windows of a clip; all others of single values are the clip's own."""

_CUT_AUDIO = tuple(pa.field(name, pa.binary(), nullable=False) for name in AUDIO_ARRAYS)
_RATE = pa.field("audio_rate_hz", pa.int32(), nullable=False)
_DRIFT = pa.field("audio_drift_s", pa.float64(), nullable=False)
_PATH = pa.field("audio_path", pa.string(), nullable=False)
_REFERENCED_AUDIO = (
    _PATH,
    pa.field("audio_start", pa.int64(), nullable=False),
    pa.field("audio_num_samples", pa.int32(), nullable=False),
    _RATE,
)

EVERY_DATASETS_COLUMNS = frozenset([*(field.name for field in _PLAIN_FIELDS), *BITS_COLUMNS])

RESERVED_COLUMNS = frozenset(
    [field.name for field in (*_PLAIN_FIELDS, *_CUT_AUDIO, *_REFERENCED_AUDIO)]
    + [*BITS_COLUMNS, "this_latent", "flip_targets", "flip_bits", "decoded_prev_bits", "audio", _DRIFT.name]
)
"""Names that no carried column can have: each may be one of ours."""


@dataclass(frozen=True)
class ArrayColumn:
    """A column of arrays of one shape: fixed-size bytes, row-major and little-endian, in Parquet; a member in tars."""

    name: str
    member: str
    """What follows `<key>.` in a tar."""
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def array_columns(codec: CodecSpec, corpus: CorpusSpec | None = None) -> tuple[ArrayColumn, ...]:
    """Return the columns that hold arrays: bits, then what is emitted beside them.

    Args:
        codec: gives the shapes.
        corpus: says what is emitted; None: nothing.
    """
    half = (codec.num_tokens, codec.code_dim // 8)
    columns = [
        ArrayColumn("prev_bits", "prev.npy", "|u1", half),
        ArrayColumn("this_bits", "this.npy", "|u1", half),
    ]
    return (*columns, *emitted_columns(codec, corpus)) if corpus else tuple(columns)


def emitted_columns(codec: CodecSpec, corpus: CorpusSpec) -> tuple[ArrayColumn, ...]:
    """Return the columns that `emit` asks for, in order."""
    half = (codec.num_tokens, codec.code_dim // 8)
    columns: list[ArrayColumn] = []
    if "latent" in corpus.emit:
        columns.append(ArrayColumn("this_latent", "latent.npy", "<f2", (codec.window_frames, codec.code_dim)))
    if corpus.flips is not None:
        pairs = (corpus.flips.pairs, *half)
        columns.append(ArrayColumn("flip_targets", "flip_targets.npy", "|u1", pairs))
        columns.append(ArrayColumn("flip_bits", "flip_bits.npy", "|u1", pairs))
    if "decoded_prev" in corpus.emit:
        columns.append(ArrayColumn("decoded_prev_bits", "decoded_prev.npy", "|u1", half))
    return tuple(columns)


def token_schema(codec: CodecSpec, corpus: CorpusSpec | None = None) -> pa.Schema:
    """Return the columns of a token shard: those of every dataset, then emitted, carried and audio ones.

    Args:
        codec: gives the sizes.
        corpus: says what stands beside the bits; None: nothing.
    """
    columns = array_columns(codec, corpus)
    arrays = [pa.field(array.name, pa.binary(array.num_bytes), nullable=False) for array in columns]
    return pa.schema([*_PLAIN_FIELDS, *arrays, *(side_fields(corpus) if corpus else ())])


def side_fields(corpus: CorpusSpec) -> list[pa.Field]:
    """Return the columns of a token shard that come from clips as they are: carried ones, then audio."""
    fields = _carried_fields(corpus)
    if corpus.audio is not None:
        fields.extend((*_CUT_AUDIO, _RATE) if corpus.audio.mode == "cut" else _REFERENCED_AUDIO)
    return fields


def clip_schema(corpus: CorpusSpec) -> pa.Schema:
    """Return what a block carries of each kept clip: carried columns, and the audio its windows are cut from.

    Cut audio is `audio`, raw little-endian int16 samples of the whole clip; `audio_drift_s` is for the account alone.
    """
    fields = _carried_fields(corpus)
    if corpus.audio is not None:
        is_cut = corpus.audio.mode == "cut"
        fields.extend([pa.field("audio", pa.large_binary(), nullable=False) if is_cut else _PATH, _RATE, _DRIFT])
    return pa.schema(fields)


def _carried_fields(corpus: CorpusSpec) -> list[pa.Field]:
    return [pa.field(column.name, CARRIED_TYPES[column.kind]) for column in corpus.carry]


# One row a clip of a unit, dropped ones included, in reading order: token rows follow the same order.
LEDGER_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("where", pa.string(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("num_windows", pa.int32(), nullable=False),
        pa.field("motion_digest", pa.string(), nullable=False),
        pa.field("drop_reason", pa.string(), nullable=False),
        pa.field("drop_detail", pa.string(), nullable=False),
    ]
)

# OUT/index/clips.parquet: every kept or dropped clip, in order of units.
CLIP_INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("num_windows", pa.int32(), nullable=False),
        pa.field("drop_reason", pa.string(), nullable=False),
        pa.field("first_shard", pa.int32(), nullable=False),
        pa.field("first_row", pa.int32(), nullable=False),
    ]
)

# OUT/index/units.parquet
UNIT_INDEX_SCHEMA = pa.schema(
    [
        pa.field("unit_key", pa.string(), nullable=False),
        pa.field("num_clips", pa.int32(), nullable=False),
        pa.field("num_windows", pa.int64(), nullable=False),
    ]
)

# OUT/index/windows.parquet, written where windows of a clip do not stand together (shuffled exports).
WINDOW_INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("start_frame", pa.int32(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)

# OUT/quarantine.parquet
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("where", pa.string(), nullable=False),
    ]
)

# OUT/_store/<spec_id>/plans/<digest>.parquet
PLAN_SCHEMA = pa.schema(
    [
        pa.field("unit_key", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("parts", pa.string(), nullable=False),
    ]
)
