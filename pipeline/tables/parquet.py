"""Parquet files -> readers and tables of plain types, their footers checked before Arrow follows them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.tables.footer import CutTableError, DamagedTableError, Footer, parse_footer
from pipeline.tables.plain import plain_footer

_MAGIC = b"PAR1"
_END_BYTES = 8
"""Length of the footer and the magic word behind it."""


def read_footer(file: BinaryIO, file_bytes: int | None = None) -> Footer:
    """Return what a Parquet file says of itself, checked: every chunk lies in the file, and fits its schema.

    Args:
        file: seekable; the file, or its end.
        file_bytes: of the whole file, where this is its end.

    Raises:
        CutTableError: the file begins as Parquet, and ends early.
        DamagedTableError: it is none, or contradicts itself.
        OSError: what `file` raised.
    """
    held_bytes = file.seek(0, os.SEEK_END)
    num_bytes = held_bytes if file_bytes is None else file_bytes
    file.seek(max(0, held_bytes - _END_BYTES))
    end = file.read(_END_BYTES)
    length = int.from_bytes(end[:4], "little")
    edge = num_bytes - _END_BYTES - length
    if end[4:] != _MAGIC or edge < len(_MAGIC) or length > held_bytes - _END_BYTES:
        file.seek(0)
        is_cut = file.read(len(_MAGIC)) == _MAGIC and end[-len(_MAGIC) :] != _MAGIC
        kind = CutTableError if is_cut else DamagedTableError
        raise kind(f"no Parquet footer at the end of {num_bytes} bytes")
    file.seek(held_bytes - _END_BYTES - length)
    return parse_footer(file.read(length), edge)


def metadata_of(footer: Footer) -> pq.FileMetaData:
    """Return a checked footer as Arrow has it, without extension types.

    Raises:
        pa.ArrowException, OSError: Arrow does not take it.
    """
    return pq.read_metadata(pa.BufferReader(plain_footer(footer.thrift)))


def open_parquet(file: Any, metadata: pq.FileMetaData | None = None, **options: Any) -> pq.ParquetFile:
    """Return a reader of plain types.

    Args:
        file: seekable.
        metadata: of `metadata_of`, where the footer was read already.
        options: of `pyarrow.parquet.ParquetFile`.

    Raises:
        pa.ArrowException, OSError: it is no Parquet file, or is damaged.
    """
    metadata = metadata or metadata_of(read_footer(file))
    return pq.ParquetFile(file, metadata=metadata, arrow_extensions_enabled=False, **options)


def read_table(
    data: bytes | memoryview, columns: Sequence[str] | None = None, schema: pa.Schema | None = None
) -> pa.Table:
    """Return the rows of a Parquet file's bytes.

    Args:
        columns: to be read, all where none are given.
        schema: that the columns must have.

    Raises:
        pa.ArrowException, OSError: it is none, is damaged, or has another schema.
    """
    file = open_parquet(pa.BufferReader(pa.py_buffer(data)))
    table = file.read(columns=None if columns is None else list(columns))
    return table if schema is None else table.cast(schema)
