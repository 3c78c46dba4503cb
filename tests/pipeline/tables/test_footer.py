from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources.formats.parquet_footer import ChunkClaim, chunk_claims


def footer_of(table: pa.Table, **options: Any) -> tuple[bytes, Any]:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    metadata, footer = pq.ParquetFile(stream).metadata, io.BytesIO()
    metadata.write_metadata_file(footer)
    return footer.getvalue()[4:-8], metadata


@pytest.mark.parametrize("options", [{}, {"write_statistics": False}, {"store_schema": False, "compression": "none"}])
def test_chunk_claims_are_those_of_arrow(options: dict[str, Any]) -> None:
    motion = pa.array([[[0.5, None], None], None, [[1.0, 2.0]]] * 4, pa.list_(pa.list_(pa.float32())))
    columns = {
        "motion": motion,
        "größe": ["a", None, "b"] * 4,
        "fps": [25.0] * 12,
        "deep": [{"x": True, "y": [1, 2]}] * 12,
        "far": np.arange(12, dtype=np.int64),
    }
    footer, metadata = footer_of(pa.table(columns).replace_schema_metadata({"k": "v"}), row_group_size=5, **options)
    claims = chunk_claims(footer)
    assert len(claims) == metadata.num_row_groups == 3
    for index, group in enumerate(claims):
        for number, claim in enumerate(group):
            chunk = metadata.row_group(index).column(number)
            value_bytes = {"FLOAT": 4, "DOUBLE": 8, "INT64": 8, "BOOLEAN": 1, "BYTE_ARRAY": 8}[chunk.physical_type]
            decoded = max(chunk.num_values * value_bytes, chunk.total_uncompressed_size)
            nulls = chunk.statistics.null_count if chunk.statistics else 0
            assert claim == ChunkClaim(
                tuple(chunk.path_in_schema.split(".")), decoded, chunk.total_compressed_size, nulls
            )


def test_chunk_claims_of_many_row_groups() -> None:
    footer, _ = footer_of(pa.table({"a": list(range(300))}), row_group_size=1)
    assert [claim.decoded_bytes >= 8 for (claim,) in chunk_claims(footer)] == [True] * 300


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_chunk_claims_of_damaged_bytes_is_a_value_error(cut: int) -> None:
    footer, _ = footer_of(pa.table({"a": [1.0]}))
    with pytest.raises(ValueError, match="no Parquet metadata"):
        chunk_claims(footer[:cut])
    with pytest.raises(ValueError, match="no Parquet metadata"):
        chunk_claims(b"\xff" * 50)
