"""Names and Arrow schemas of everything written: token rows, ledgers, index tables.

Knows no Ray, torch or storage. A change here moves SCHEMA_VERSION and CHANGELOG's "Output data".
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

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

PLAIN_FIELDS = (
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

CUT_AUDIO_FIELDS = tuple(pa.field(name, pa.binary(), nullable=False) for name in AUDIO_ARRAYS)
RATE_FIELD = pa.field("audio_rate_hz", pa.int32(), nullable=False)
DRIFT_FIELD = pa.field("audio_drift_s", pa.float64(), nullable=False)
PATH_FIELD = pa.field("audio_path", pa.string(), nullable=False)
REFERENCED_AUDIO_FIELDS = (
    PATH_FIELD,
    pa.field("audio_start", pa.int64(), nullable=False),
    pa.field("audio_num_samples", pa.int32(), nullable=False),
    RATE_FIELD,
)

EVERY_DATASETS_COLUMNS = frozenset([*(field.name for field in PLAIN_FIELDS), *BITS_COLUMNS])

RESERVED_COLUMNS = frozenset(
    [field.name for field in (*PLAIN_FIELDS, *CUT_AUDIO_FIELDS, *REFERENCED_AUDIO_FIELDS)]
    + [*BITS_COLUMNS, "this_latent", "flip_targets", "flip_bits", "decoded_prev_bits", "audio", DRIFT_FIELD.name]
)
"""Names that no carried column can have: each may be one of ours."""


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
