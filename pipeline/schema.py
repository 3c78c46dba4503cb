"""Names and Arrow schemas of everything written: token rows, ledgers, index tables.

Knows no Ray, torch or storage. A change here moves SCHEMA_VERSION and CHANGELOG's "Output data".
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1

CONTRACT_KEY = b"motion_tokens.contract"
LEDGER_KEY = b"motion_tokens.ledger"

TOKEN_ROW_GROUP_ROWS = 1024


def token_schema(half_bytes: int) -> pa.Schema:
    """Return the columns of a token shard.

    Args:
        half_bytes: packed bytes of one half of a window, ``num_tokens * code_dim / 8``.
    """
    bits = pa.binary(half_bytes)
    return pa.schema(
        [
            pa.field("clip_id", pa.string(), nullable=False),
            pa.field("start_frame", pa.int32(), nullable=False),
            pa.field("num_frames", pa.int32(), nullable=False),
            pa.field("prev_valid_frames", pa.int16(), nullable=False),
            pa.field("this_valid_frames", pa.int16(), nullable=False),
            pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("prev_bits", bits, nullable=False),
            pa.field("this_bits", bits, nullable=False),
        ]
    )


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
