"""Token rows -> one Parquet shard.

Knows no Ray, torch or storage.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.contract.schema import (
    BITS_COLUMNS,
    TOKEN_ROW_GROUP_BYTES,
    TOKEN_ROW_GROUP_ROWS,
)
from pipeline.contract.specs import Contract


def shard_to_parquet(tokens: pa.Table, contract: Contract, group_rows: int = TOKEN_ROW_GROUP_ROWS) -> bytes:
    """Return a Parquet shard: token rows, the contract in its footer.

    Args:
        group_rows: rows of a row group at most.
    """
    return tokens_to_parquet(tokens, contract.footer, group_rows)


def tokens_to_parquet(
    tokens: pa.Table,
    metadata: dict[bytes, bytes],
    group_rows: int = TOKEN_ROW_GROUP_ROWS,
    group_bytes: int = TOKEN_ROW_GROUP_BYTES,
) -> bytes:
    """Return token rows as the bytes of one Parquet file: equal rows and metadata, equal bytes.

    Arrays and audio stand as they are; what is compressed are the other columns.

    Args:
        tokens: rows of `token_schema`.
        metadata: footer keys and values.
        group_rows: rows of a row group at most.
        group_bytes: what columns beside the bits take in a row group at most, unless one row takes more.
    """
    sink = pa.BufferOutputStream()
    plain = [_leaf(field) for field in tokens.schema if not _is_array(field.type)]
    texts = [field.name for field in tokens.schema if _is_text(field.type)]
    writer = pq.ParquetWriter(
        sink,
        tokens.schema,
        compression={_leaf(field): "none" if _is_array(field.type) else "zstd" for field in tokens.schema},
        use_dictionary=texts,
        write_statistics=plain,
    )
    with writer:
        writer.write_table(tokens, row_group_size=_rows_of_group(tokens, group_rows, group_bytes))
        writer.add_key_value_metadata(metadata)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _rows_of_group(tokens: pa.Table, group_rows: int, group_bytes: int) -> int:
    """Return how many rows a row group has: fewer than usual, a power of two, where more than bits makes rows large."""
    num_bytes = 0
    for field, column in zip(tokens.schema, tokens.columns, strict=True):
        if pa.types.is_binary(field.type):
            num_bytes += pc.sum(pc.cast(pc.binary_length(column), pa.int64())).as_py() or 0
        elif _is_array(field.type) and field.name not in BITS_COLUMNS:
            num_bytes += tokens.num_rows * field.type.byte_width
    fitting = group_bytes * tokens.num_rows // num_bytes if num_bytes else group_rows
    return int(min(group_rows, 1 << max(0, fitting.bit_length() - 1)))


def _is_array(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_dictionary(kind))


def _leaf(field: pa.Field) -> str:
    """Return the path of a column's values as Parquet names it."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)
