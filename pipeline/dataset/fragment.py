"""A fragment's bytes: a Parquet file with a seal, so that whoever reads rows knows that they are those once written.

    pages | SHA-256 of the pages | SHA-256 of the footer | footer

The seal stands where no Parquet reader looks. The footer carries the contract and the ledger of the unit's clips.
Knows no Ray, torch or storage.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.schema import CONTRACT_KEY, LEDGER_KEY, LEDGER_SCHEMA
from pipeline.contract.specs import Contract
from pipeline.dataset.ledger import table_from_ipc, table_to_ipc
from pipeline.dataset.parquet_shard import tokens_to_parquet

_END_BYTES = 8
"""Length of the footer and the magic word behind it."""
_DIGEST_BYTES = 32
_TAIL_BYTES = 64 << 10
"""What is read of a fragment first to find its footer."""


def fragment_to_bytes(tokens: pa.Table, ledger: pa.Table, contract: Contract) -> bytes:
    """Return a fragment: token rows, and in its footer the contract and the ledger of its clips."""
    footer = {LEDGER_KEY: base64.b64encode(table_to_ipc(ledger.cast(LEDGER_SCHEMA)))}
    return sealed(tokens_to_parquet(tokens, contract.footer | footer, page_checksums=True))


def sealed(parquet: bytes) -> bytes:
    """Return a Parquet file with its seal."""
    view = memoryview(parquet)
    edge = len(parquet) - _footer_bytes(view)
    pages, footer = view[:edge], view[edge:]
    return b"".join((pages, hashlib.sha256(pages).digest(), hashlib.sha256(footer).digest(), footer))


def fragment_rows(data: bytes) -> pa.Table:
    """Return the token rows of a fragment.

    Raises:
        ValueError: it holds other bytes than were written.
    """
    view = memoryview(data)
    edge = len(data) - _checked_footer(view)
    seal = edge - 2 * _DIGEST_BYTES
    if hashlib.sha256(view[:seal]).digest() != view[seal : seal + _DIGEST_BYTES]:
        raise ValueError("its pages are not those that were written")
    return pq.read_table(pa.BufferReader(data))


def fragment_ledger(file: BinaryIO) -> pa.Table:
    """Return the ledger of a fragment, reading its end alone.

    Raises:
        ValueError: its footer is not the one that was written.
    """
    metadata = _read_metadata(file).metadata
    return table_from_ipc(base64.b64decode(metadata[LEDGER_KEY]))


def fragment_contract(file: BinaryIO) -> Contract:
    """Return the contract that a fragment was written under, reading its end alone.

    Raises:
        ValueError: its footer is not the one that was written.
    """
    return Contract.model_validate_json(_read_metadata(file).metadata[CONTRACT_KEY])


def fragment_columns(file: BinaryIO, names: Sequence[str]) -> pa.Table:
    """Return some columns of the token rows of a fragment, without reading the others; pages prove themselves.

    Raises:
        ValueError: its footer is not the one that was written.
        pyarrow.ArrowException: a page is not the one that was written.
    """
    metadata = _read_metadata(file)
    return pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True).read(columns=list(names))


def _read_metadata(file: BinaryIO) -> pq.FileMetaData:
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, num_bytes - _TAIL_BYTES))
    tail = file.read()
    wanted = _footer_bytes(tail) + _DIGEST_BYTES
    if wanted > len(tail):
        file.seek(max(0, num_bytes - wanted))
        tail = file.read()
    return pq.read_metadata(pa.BufferReader(tail[-_checked_footer(tail) :]))


def _checked_footer(data: bytes | memoryview) -> int:
    """Return how many bytes at the end of a fragment are its footer.

    Raises:
        ValueError: they are not those that were written.
    """
    num_bytes = _footer_bytes(data)
    edge = len(data) - num_bytes
    if edge < _DIGEST_BYTES or hashlib.sha256(data[edge:]).digest() != data[edge - _DIGEST_BYTES : edge]:
        raise ValueError("its footer is not the one that was written")
    return num_bytes


def _footer_bytes(data: bytes | memoryview) -> int:
    end = len(data) - _END_BYTES
    return int.from_bytes(data[max(0, end) : end + 4], "little") + _END_BYTES
