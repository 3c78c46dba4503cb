"""A fragment's bytes: a Parquet file with a seal, so that whoever reads rows knows that they are those once written.

    pages | SHA-256 of each column chunk | their number | SHA-256 of all that follows the pages | footer

The seal stands where no Parquet reader looks. The footer carries the contract and the ledger of the unit's clips.
Knows no Ray, torch or storage.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.schema import CONTRACT_KEY, LEDGER_KEY, LEDGER_SCHEMA
from pipeline.contract.specs import Contract
from pipeline.dataset.ledger import table_from_ipc, table_to_ipc
from pipeline.dataset.parquet_shard import tokens_to_parquet
from pipeline.tables import metadata_of, open_parquet, read_footer

_MAGIC = b"PAR1"
_END_BYTES = 8
"""Length of the footer and the magic word behind it."""
_DIGEST_BYTES, _COUNT_BYTES = 32, 4
_TAIL_BYTES = 64 << 10
"""What is read of a fragment first to find its footer."""


def fragment_to_bytes(tokens: pa.Table, ledger: pa.Table, contract: Contract) -> bytes:
    """Return a fragment: token rows, and in its footer the contract and the ledger of its clips."""
    footer = {LEDGER_KEY: base64.b64encode(table_to_ipc(ledger.cast(LEDGER_SCHEMA)))}
    return sealed(tokens_to_parquet(tokens, contract.footer | footer))


def sealed(parquet: bytes) -> bytes:
    """Return a Parquet file with its seal."""
    view = memoryview(parquet)
    edge = len(parquet) - _footer_bytes(view)
    chunks = _chunks(metadata_of(read_footer(pa.BufferReader(parquet))))
    digests = [hashlib.sha256(view[begin:end]).digest() for _, begin, end in chunks]
    seal, footer = b"".join([*digests, len(digests).to_bytes(_COUNT_BYTES, "little")]), view[edge:]
    return b"".join((view[:edge], seal, hashlib.sha256(seal + footer).digest(), footer))


def fragment_rows(data: bytes) -> pa.Table:
    """Return the token rows of a fragment.

    Raises:
        ValueError: it holds other bytes than were written.
    """
    tail = _tail(io.BytesIO(data))
    if not data.startswith(_MAGIC):
        raise ValueError("it does not begin as it was written")
    view = memoryview(data)
    for (name, begin, end), digest in zip(tail.chunks, tail.digests, strict=True):
        _check(name, view[begin:end], digest)
    return open_parquet(pa.BufferReader(data), tail.metadata).read()


def fragment_ledger(file: BinaryIO) -> pa.Table:
    """Return the ledger of a fragment, reading its end alone.

    Raises:
        ValueError: its footer is not the one that was written.
    """
    return table_from_ipc(base64.b64decode(_tail(file).metadata.metadata[LEDGER_KEY]))


def fragment_contract(file: BinaryIO) -> Contract:
    """Return the contract that a fragment was written under, reading its end alone.

    Raises:
        ValueError: its footer is not the one that was written.
    """
    return Contract.model_validate_json(_tail(file).metadata.metadata[CONTRACT_KEY])


def fragment_columns(file: BinaryIO, names: Sequence[str]) -> pa.Table:
    """Return some columns of the token rows of a fragment, without reading the others.

    Raises:
        ValueError: they, or its footer, are not those that were written.
    """
    tail = _tail(file)
    data = bytearray(tail.num_bytes)  # zeros that nobody looks at take no memory
    data[len(data) - len(tail.footer) :] = tail.footer
    for (name, begin, end), digest in zip(tail.chunks, tail.digests, strict=True):
        if name.partition(".")[0] in names:
            file.seek(begin)
            data[begin:end] = _check(name, file.read(end - begin), digest)
    return open_parquet(pa.BufferReader(data), tail.metadata).read(columns=list(names))


@dataclass(frozen=True)
class _Tail:
    """What follows the pages, proved."""

    num_bytes: int
    """Of the whole fragment."""
    footer: bytes
    digests: tuple[bytes, ...]
    """Of each column chunk."""

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        return metadata_of(read_footer(pa.BufferReader(self.footer), self.num_bytes))

    @property
    def chunks(self) -> list[tuple[str, int, int]]:
        return _chunks(self.metadata)


def _tail(file: BinaryIO) -> _Tail:
    """Read and prove what follows the pages of a fragment.

    Raises:
        ValueError: it is not what was written.
    """
    num_bytes = file.seek(0, os.SEEK_END)
    end = _read_end(file, num_bytes, _TAIL_BYTES)
    edge = _footer_bytes(end) + _DIGEST_BYTES + _COUNT_BYTES
    end = end if edge <= len(end) else _read_end(file, num_bytes, edge)
    count = int.from_bytes(end[len(end) - edge : len(end) - edge + _COUNT_BYTES], "little")
    wanted = edge + count * _DIGEST_BYTES
    end = end if wanted <= len(end) else _read_end(file, num_bytes, wanted)
    seal, rest = end[len(end) - wanted : len(end) - edge + _COUNT_BYTES], end[len(end) - edge + _COUNT_BYTES :]
    proof, footer = rest[:_DIGEST_BYTES], rest[_DIGEST_BYTES:]
    if wanted > len(end) or hashlib.sha256(seal + footer).digest() != proof:
        raise ValueError("its footer is not the one that was written")
    digests = tuple(seal[start : start + _DIGEST_BYTES] for start in range(0, count * _DIGEST_BYTES, _DIGEST_BYTES))
    return _Tail(num_bytes, footer, digests)


def _read_end(file: BinaryIO, num_bytes: int, wanted: int) -> bytes:
    file.seek(max(0, num_bytes - wanted))
    return file.read(wanted)


def _check(name: str, data: bytes | memoryview, digest: bytes) -> bytes | memoryview:
    if hashlib.sha256(data).digest() != digest:
        raise ValueError(f"column {name} is not what was written")
    return data


def _chunks(metadata: pq.FileMetaData) -> list[tuple[str, int, int]]:
    """Return name, begin and end of every column chunk, bytes."""
    found: list[tuple[str, int, int]] = []
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            found.append((chunk.path_in_schema, begin, begin + chunk.total_compressed_size))
    return found


def _footer_bytes(data: bytes | memoryview) -> int:
    end = len(data) - _END_BYTES
    return int.from_bytes(data[max(0, end) : end + 4], "little") + _END_BYTES
