"""What a token shard holds, boiled down for comparison: clips, windows, and a digest of all rows.

Knows no Ray, torch or storage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contract.columns import token_schema
from pipeline.contract.specs import Contract
from pipeline.contract.windows import valid_frames
from pipeline.dataset.manifest import ShardFile
from pipeline.dataset.tar_shard import table_of_tar
from pipeline.errors import VerifyError
from pipeline.export.layout import mixed_hash
from pipeline.hashing import canonical_json, hash64
from pipeline.tables import open_parquet


@dataclass(frozen=True)
class ShardContent:
    """Per clip: first row, windows, sum of their hashes; and one digest of all rows in order."""

    clip_ids: Sequence[str]
    first_rows: np.ndarray
    num_windows: np.ndarray
    window_sums: np.ndarray
    rows_digest: str


def content_of_parquet(data: bytes, contract: Contract) -> ShardContent:
    """Return what a Parquet shard holds.

    Raises:
        VerifyError: its contract or columns are not the dataset's.
    """
    file = open_parquet(pa.BufferReader(data))
    if not contract.is_in(file.metadata.metadata):
        raise VerifyError("the contract in the footer is not the dataset's")
    return _content_of_rows(file.read(), contract)


def content_of_tar(data: bytes, shard: ShardFile, contract: Contract) -> ShardContent:
    """Return what a tar shard holds.

    Raises:
        VerifyError: its samples are not whole.
    """
    table = table_of_tar(data, contract.codec, contract.corpus, shard.path)
    return _content_of_rows(table, contract)


def _content_of_rows(table: pa.Table, contract: Contract) -> ShardContent:
    schema = token_schema(contract.codec, contract.corpus)
    if not table.schema.equals(schema):
        raise VerifyError(f"columns are {table.schema.names}, wanted {schema.names} of their types")
    codes = table["clip_id"].combine_chunks().dictionary_encode()
    index = codes.indices.to_numpy()
    starts = table["start_frame"].to_numpy().astype(np.int64)
    frames = table["num_frames"].to_numpy().astype(np.int64)
    hashes = _window_hashes(
        starts, frames, table["prev_valid_frames"].to_numpy(), table["this_valid_frames"].to_numpy()
    )
    sums = np.zeros(len(codes.dictionary), np.uint64)
    np.add.at(sums, index, hashes)
    digest = hashlib.sha256()
    for name in schema.names:
        digest.update(_column_bytes(table[name]))
    counts = np.bincount(index, minlength=len(codes.dictionary))
    first_rows = np.unique(index, return_index=True)[1]
    return ShardContent(codes.dictionary.to_pylist(), first_rows, counts, sums, digest.hexdigest())


def _column_bytes(column: pa.ChunkedArray) -> bytes:
    """Return bytes that are equal for equal columns of one schema, however they are chunked or encoded."""
    kind = column.type
    if column.null_count or (pa.types.is_nested(kind) and not pa.types.is_dictionary(kind)):
        return canonical_json(column.to_pylist()).encode()
    if pa.types.is_dictionary(kind):
        column = column.cast(pa.string())
    if pa.types.is_fixed_size_binary(kind):
        return b"".join(_fixed_bytes(chunk, kind.byte_width) for chunk in column.chunks)
    if pa.types.is_string(column.type) or pa.types.is_binary(kind):
        lengths: bytes = pc.binary_length(column).to_numpy().tobytes()
        return lengths + b"".join(_text_bytes(chunk) for chunk in column.chunks)
    numbers: bytes = column.to_numpy().tobytes()
    return numbers


def _fixed_bytes(chunk: pa.Array, width: int) -> memoryview:
    return memoryview(chunk.buffers()[1])[chunk.offset * width : (chunk.offset + len(chunk)) * width]


def _text_bytes(chunk: pa.Array) -> memoryview:
    _, edges, data = chunk.buffers()
    if not len(chunk) or data is None:
        return memoryview(b"")
    places = np.frombuffer(edges, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return memoryview(data)[places[0] : places[-1]]


def window_sum(starts: np.ndarray, num_frames: int, window_frames: int) -> int:
    """Return the sum of window hashes that a clip with these windows must have, modulo 2**64.

    Args:
        starts: (num_windows,) start frames.
    """
    prev_valid, this_valid = valid_frames(starts, num_frames, window_frames)
    frames = np.full(len(starts), num_frames, np.int64)
    return int(np.add.reduce(_window_hashes(starts, frames, prev_valid, this_valid), dtype=np.uint64))


def _window_hashes(starts: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Return one 64-bit number a window that depends on its start, its clip's length and its valid frames."""
    hashes = mixed_hash(hash64("window"), starts)
    for column in columns:
        hashes = mixed_hash(0, (hashes ^ column.astype(np.int64).view(np.uint64)).view(np.int64))
    return hashes
