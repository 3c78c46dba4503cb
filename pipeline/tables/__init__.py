"""The only door to what Arrow decodes: Parquet files and IPC streams, as plain types.

Extension types that this process has registered never touch them: their names and metadata stay behind as plain data.
Begin with `plain`. Knows no file system and no clip.
"""

from __future__ import annotations

from pipeline.tables.footer import ChunkClaim, CutTableError, DamagedTableError, Footer, RowGroupClaim
from pipeline.tables.parquet import metadata_of, open_parquet, read_footer, read_table
from pipeline.tables.plain import Extension, extension_of
from pipeline.tables.streams import read_stream

__all__ = [
    "ChunkClaim",
    "CutTableError",
    "DamagedTableError",
    "Extension",
    "Footer",
    "RowGroupClaim",
    "extension_of",
    "metadata_of",
    "open_parquet",
    "read_footer",
    "read_stream",
    "read_table",
]
