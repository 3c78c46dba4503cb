"""Broken Parquet files and rows inside them, each with the reason it must be dropped for."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bad_arrays import motion, spoiled

NESTED = pa.list_(pa.list_(pa.float32()))


def parquet(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def rows(*motions: Any, kind: Any = NESTED, **columns: Sequence[Any]) -> pa.Table:
    return pa.table({"motion": pa.array(list(motions), kind), "fps": [25.0] * len(motions), **columns})


def parquet_bomb() -> bytes:
    """A row of 32 million zeros, in some hundred bytes."""
    return parquet(rows(np.zeros(32 << 20, np.float32), kind=pa.list_(pa.float32())))


def fixed_bomb() -> bytes:
    """A null frame that a forged schema calls a list of 2 to the 30 numbers."""
    stream = io.BytesIO()
    table = rows([None, None])
    forged = pa.schema([("motion", pa.list_(pa.list_(pa.float32(), 1 << 30))), ("fps", pa.float64())])
    with pq.ParquetWriter(stream, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        text = base64.b64encode(forged.serialize().to_pybytes()).decode()
        writer.add_key_value_metadata({"ARROW:schema": text})
    return stream.getvalue()


def parquet_files() -> Iterator[tuple[str, bytes, str, str, str]]:
    """Name, bytes, where, reason and detail of files that are bad as a whole or in their one row group."""
    good = parquet(rows(motion().tolist()))
    flat = pa.list_(pa.float32())
    yield "no bytes", b"", "", "unreadable", "no Parquet footer"
    yield "words", b"these are words" * 100, "", "unreadable", "no Parquet footer"
    yield "cut", good[:-9], "", "truncated", "no Parquet footer"
    yield "garbled footer", good[:-200] + b"\xff" * 190 + good[-10:], "", "unreadable", "footer"
    yield "no motion", parquet(pa.table({"pose": [[1.0]]})), "", "missing_field", "found: pose"
    yield "bomb", parquet_bomb(), "rows 0 to 0", "unreadable", "the row group promises 134217"
    yield "forged list", fixed_bomb(), "rows 0 to 0", "unreadable", "the row group promises"
    yield (
        "whole numbers",
        parquet(rows([[1, 2, 3, 4]], kind=pa.list_(pa.list_(pa.int32())))),
        "row 0",
        "wrong_dtype",
        "",
    )
    yield "words for motion", parquet(pa.table({"motion": ["wave"]})), "row 0", "wrong_dtype", "found string"
    yield "uneven flat list", parquet(rows([0.0] * 47, kind=flat)), "row 0", "wrong_dim", "a multiple of 4"
    pages = bytearray(parquet(rows(motion().tolist()), compression="zstd"))
    chunk = pq.ParquetFile(io.BytesIO(bytes(pages))).metadata.row_group(0).column(0)
    pages[chunk.data_page_offset : chunk.data_page_offset + 30] = b"\xff" * 30
    yield "garbled page", bytes(pages), "rows 0 to 0", "unreadable", "the row group is damaged"


def bad_rows() -> tuple[pa.Table, list[tuple[int, str, str]], dict[str, int]]:
    """Return a table, (row, reason, detail) of its bad rows, and its good clips."""
    ragged = motion().tolist()
    ragged[3] = ragged[3][:2]
    found: list[tuple[str | None, Any, float | None, str, str]] = [
        ("row-good-first", motion().tolist(), 25.0, "", ""),
        ("row-null", None, 25.0, "missing_field", "the motion is null"),
        ("row-ragged", ragged, 25.0, "wrong_dim", "frame 3 has 2 dims, frame 0 has 4"),
        ("row-wide", motion(dims=5).tolist(), 25.0, "wrong_dim", "found 5"),
        ("row-empty", [], 25.0, "too_short", "no frame"),
        ("row-short", motion(3).tolist(), 25.0, "too_short", "3 frames"),
        ("row-nan", spoiled(np.nan).tolist(), 25.0, "non_finite", "nan at frame 7"),
        ("row-hole", [[1.0, None, 2.0, 3.0]] * 9, 25.0, "non_finite", "nan at frame 0, column 1"),
        ("row-rateless", motion().tolist(), None, "fps_missing", "no rate"),
        ("row-fast", motion().tolist(), 60.0, "fps_mismatch", "found 60"),
        ("", motion().tolist(), 25.0, "bad_clip_id", "0 characters"),
        ("row\u0007bell", motion().tolist(), 25.0, "bad_clip_id", "control character"),
        ("x" * 2000, motion().tolist(), 25.0, "bad_clip_id", "2000 characters"),
        (None, motion(9).tolist(), 25.0, "", ""),
        ("row-good-last", motion().tolist(), 25.0, "", ""),
    ]
    table = pa.table(
        {
            "clip_id": [item[0] for item in found],
            "motion": pa.array([item[1] for item in found], NESTED),
            "fps": [item[2] for item in found],
        }
    )
    bad = [(row, item[3], item[4]) for row, item in enumerate(found) if item[3]]
    return table, bad, {"row-good-first": 12, "parquet/rows#13": 9, "row-good-last": 12}
