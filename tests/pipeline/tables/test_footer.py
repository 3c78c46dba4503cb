from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.tables import ChunkClaim, CutTableError, DamagedTableError, metadata_of, open_parquet, read_footer


def parquet_of(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def mixed_table() -> pa.Table:
    motion = pa.array([[[0.5, None], None], None, [[1.0, 2.0]]] * 4, pa.list_(pa.list_(pa.float32())))
    columns = {
        "motion": motion,
        "größe": ["a", None, "b"] * 4,
        "fps": [25.0] * 12,
        "deep": [{"x": True, "y": [1, 2]}] * 12,
        "far": np.arange(12, dtype=np.int64),
        "fixed": pa.array([b"abcd"] * 12, pa.binary(4)),
    }
    return pa.table(columns).replace_schema_metadata({"k": "v"})


@pytest.mark.parametrize("options", [{}, {"write_statistics": False}, {"store_schema": False, "compression": "none"}])
def test_read_footer_claims_what_arrow_reads(options: dict[str, Any]) -> None:
    data = parquet_of(mixed_table(), row_group_size=5, **options)
    footer, metadata = read_footer(io.BytesIO(data)), pq.read_metadata(io.BytesIO(data))
    assert footer.num_rows == metadata.num_rows == 12
    assert len(footer.groups) == metadata.num_row_groups == 3
    for index, group in enumerate(footer.groups):
        assert (group.num_rows, group.num_bytes) == (
            metadata.row_group(index).num_rows,
            metadata.row_group(index).total_byte_size,
        )
        for number, claim in enumerate(group.chunks):
            chunk = metadata.row_group(index).column(number)
            value_bytes = {"FLOAT": 4, "DOUBLE": 8, "INT64": 8, "BOOLEAN": 1}.get(chunk.physical_type, 8)
            decoded = max(chunk.num_values * value_bytes, chunk.total_uncompressed_size)
            nulls = chunk.statistics.null_count if chunk.statistics else 0
            assert claim == ChunkClaim(
                tuple(chunk.path_in_schema.split(".")), decoded, chunk.total_compressed_size, nulls
            )


def test_read_footer_of_many_row_groups_and_of_none() -> None:
    many = read_footer(io.BytesIO(parquet_of(pa.table({"a": list(range(300))}), row_group_size=1)))
    assert [group.chunks[0].decoded_bytes >= 8 for group in many.groups] == [True] * 300
    empty = read_footer(io.BytesIO(parquet_of(pa.table({"a": pa.array([], pa.int64())}))))
    assert empty.num_rows == 0


def test_read_footer_of_the_end_alone() -> None:
    data = parquet_of(mixed_table())
    assert read_footer(io.BytesIO(data[-4000:]), len(data)) == read_footer(io.BytesIO(data))


def test_a_damaged_table_is_told_as_arrow_tells_it() -> None:
    """So whoever expects Arrow's errors, or a ValueError, meets no other."""
    for kind in (DamagedTableError, CutTableError):
        assert issubclass(kind, ValueError)
        assert issubclass(kind, pa.ArrowException)


def test_read_footer_of_a_cut_file_is_told_from_others() -> None:
    data = parquet_of(mixed_table())
    with pytest.raises(CutTableError, match="no Parquet footer"):
        read_footer(io.BytesIO(data[:-1]))
    for other in (b"", b"PAR1", b"no parquet", b"\0" * 100):
        with pytest.raises(DamagedTableError, match="no Parquet footer"):
            read_footer(io.BytesIO(other))
    with pytest.raises(DamagedTableError, match="no Parquet footer"):
        read_footer(io.BytesIO(b"PAR1" + b"\xff\xff\xff\x7fPAR1"))
    with pytest.raises(DamagedTableError, match="footer is"):
        read_footer(io.BytesIO(b"PAR1" + b"\xff" * 50 + (50).to_bytes(4, "little") + b"PAR1"))


def test_read_footer_of_a_chunk_beyond_the_pages_is_refused() -> None:
    data = parquet_of(mixed_table())
    cut = b"PAR1" + data[-8 - int.from_bytes(data[-8:-4], "little") :]  # the footer is whole, pages are gone
    with pytest.raises(DamagedTableError, match="a column lies outside the file"):
        read_footer(io.BytesIO(cut))


def test_a_mutated_footer_is_read_or_refused() -> None:
    """Every byte of it, changed: Arrow is asked for nothing that would end the process."""
    data = parquet_of(mixed_table(), row_group_size=5)
    length = int.from_bytes(data[-8:-4], "little")
    chance, num_read = random.Random(3), 0
    for at in range(len(data) - 8 - length, len(data) - 8):
        for value in {0, 0xFF, 0x7F, data[at] ^ 1, chance.randrange(256)} - {data[at]}:
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                metadata = metadata_of(read_footer(io.BytesIO(changed)))
                num_read += open_parquet(io.BytesIO(changed), metadata).read(use_threads=False).num_rows > 0
            except (OSError, pa.ArrowException):
                continue
    assert num_read > 0
