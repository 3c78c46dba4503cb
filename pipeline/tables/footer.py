"""What a Parquet footer claims of its column chunks, read without Arrow's accessors.

Those end the process where a chunk's entry is damaged. Input is a footer that Arrow wrote again as it understood it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12

# Bytes of a value by Parquet's physical type; texts and fixed bytes count as one reference.
_VALUE_BYTES = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8}
_REFERENCE_BYTES = 8


@dataclass(frozen=True)
class ChunkClaim:
    """A column of a row group: its path in the schema, bytes of its values once decoded, and bytes as stored."""

    path: tuple[str, ...]
    decoded_bytes: int
    stored_bytes: int
    num_nulls: int


def chunk_claims(footer: bytes | memoryview) -> list[list[ChunkClaim]]:
    """Return the claims of every row group.

    Args:
        footer: thrift bytes of a FileMetaData, without length and magic.

    Raises:
        ValueError: it is none.
    """
    try:
        groups = _Thrift(footer).struct().get(4, [])
        return [[_claim(chunk[3]) for chunk in group[1] if 3 in chunk] for group in groups]
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ValueError(f"the footer is no Parquet metadata: {type(error).__name__}") from error


def _claim(chunk: dict[int, Any]) -> ChunkClaim:
    num_values, encoded_bytes, stored_bytes = chunk[5], chunk[6], chunk[7]
    value_bytes = _VALUE_BYTES.get(chunk[1], _REFERENCE_BYTES)
    path = tuple(part.decode("utf-8", "replace") for part in chunk[3])
    num_nulls = chunk.get(12, {}).get(3, 0)
    return ChunkClaim(path, max(num_values * value_bytes, encoded_bytes), max(0, stored_bytes), num_nulls)


class _Thrift:
    """Built for one message; reads structs as dicts by field number, lists as lists, texts as bytes."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._at = data, 0
        self._readers: dict[int, Callable[[], Any]] = {
            _TRUE: self._byte,
            _FALSE: self._byte,
            _BYTE: self._byte,
            4: self._number,
            5: self._number,
            6: self._number,
            _DOUBLE: self._double,
            _BINARY: self._text,
            _LIST: self._list,
            _SET: self._list,
            _MAP: self._map,
            _STRUCT: self.struct,
        }

    def struct(self) -> dict[int, Any]:
        """Return the fields of the struct that begins here."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            number = number + step if step else self._number()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._readers[kind]()
        return fields

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _number(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _double(self) -> float:
        self._at += 8
        return float(struct.unpack_from("<d", self._data, self._at - 8)[0])

    def _text(self) -> bytes:
        size = self._varint()
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def _list(self) -> list[Any]:
        head = self._byte()
        size, read = head >> 4, self._readers[head & 15]
        return [read() for _ in range(self._varint() if size == 15 else size)]

    def _map(self) -> dict[Any, Any]:
        size = self._varint()
        if not size:
            return {}
        kinds = self._byte()
        read_key, read_value = self._readers[kinds >> 4], self._readers[kinds & 15]
        return {read_key(): read_value() for _ in range(size)}
