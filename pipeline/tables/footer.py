"""What a Parquet footer claims, read and checked without Arrow's accessors.

Those end the process where an entry is damaged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

# Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12

# Bytes of a value by Parquet's physical type; texts and fixed bytes count as one reference.
_VALUE_BYTES = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8}
_REFERENCE_BYTES = 8
_NUM_TYPES, _FIXED = 8, 7
_NUM_CODECS = 8
_MAX_DEPTH = 64
"""Of structs in a message, and of groups in a schema."""
_MAX_INT64, _MAX_INT32 = (1 << 63) - 1, (1 << 31) - 1
_FIRST_PAGE = 4
"""Pages begin behind the magic word."""


class DamagedTableError(pa.ArrowInvalid):  # type: ignore[misc]
    """What was read is no table, or contradicts itself; a ValueError too, as Arrow's own."""


class CutTableError(DamagedTableError):
    """A file begins as a table, and ends early."""


@dataclass(frozen=True)
class ChunkClaim:
    """A column of a row group: its path in the schema, bytes of its values once decoded, and bytes as stored."""

    path: tuple[str, ...]
    decoded_bytes: int
    stored_bytes: int
    num_nulls: int


@dataclass(frozen=True)
class RowGroupClaim:
    """A row group: its rows, bytes of all columns once decoded, and its columns."""

    num_rows: int
    num_bytes: int
    chunks: tuple[ChunkClaim, ...]


@dataclass(frozen=True)
class Footer:
    """A footer that does not contradict itself, nor the size of its file."""

    thrift: bytes
    num_rows: int
    groups: tuple[RowGroupClaim, ...]


def parse_footer(thrift: bytes, edge: int) -> Footer:
    """Return a checked footer.

    Args:
        thrift: bytes of a FileMetaData, without length and magic.
        edge: where the footer begins in the file; pages end before it.

    Raises:
        DamagedTableError: it is none, or claims what cannot be.
    """
    try:
        message = _Thrift(thrift).struct()
        leaves = _leaves(message[2])
        groups = tuple(_group(group, leaves, edge) for group in message.get(4, []))
        num_rows = _number(message[3], _MAX_INT64)
        _require(sum(group.num_rows for group in groups) == num_rows, "its row groups have other rows than the file")
        _require(8 not in message, "it is encrypted")
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError, struct.error, UnicodeDecodeError) as error:
        raise DamagedTableError(f"the footer is no Parquet metadata: {type(error).__name__}") from error
    return Footer(bytes(thrift), num_rows, groups)


@dataclass(frozen=True)
class _Leaf:
    kind: int
    path: tuple[bytes, ...]


def _leaves(elements: list[dict[int, Any]]) -> list[_Leaf]:
    """Return the columns of a schema, which is a tree written in depth first order."""
    following = iter(elements)

    def below(path: tuple[bytes, ...], depth: int) -> Iterator[_Leaf]:
        _require(depth < _MAX_DEPTH, "its schema is too deep")
        element = next(following, None)
        if element is None:
            raise DamagedTableError("the footer is damaged: its schema ends early")
        name = path if depth == 0 else (*path, element[4])
        _require(all(type(part) is bytes for part in name), "a column has no name")
        _require(0 <= element.get(3, 0) <= 2, "a repetition is unknown")
        if 1 in element:  # a column
            _require(not element.get(5), "a column has columns of its own")
            kind = _number(element[1], _NUM_TYPES - 1)
            if kind == _FIXED:
                _require(1 <= element.get(2, 0) <= _MAX_INT32, "a fixed size is missing")
            yield _Leaf(kind, name)
            return
        for _ in range(_number(element.get(5, 0), len(elements))):
            yield from below(name, depth + 1)

    found = list(below((), 0))
    _require(next(following, None) is None, "its schema goes on behind its end")
    return found


def _group(group: dict[int, Any], leaves: list[_Leaf], edge: int) -> RowGroupClaim:
    chunks = group[1]
    _require(len(chunks) == len(leaves), "a row group has other columns than the schema")
    num_rows = _number(group[3], _MAX_INT64)
    claims = tuple(_claim(chunk, leaf, edge) for chunk, leaf in zip(chunks, leaves, strict=True))
    return RowGroupClaim(num_rows, _number(group[2], _MAX_INT64), claims)


def _claim(chunk: dict[int, Any], leaf: _Leaf, edge: int) -> ChunkClaim:
    _require(1 not in chunk, "a column lies in another file")
    _require(not {8, 9} & chunk.keys(), "a column is encrypted")
    column = chunk[3]
    _require(column[1] == leaf.kind, "a column has another type than the schema")
    _require(tuple(column[3]) == leaf.path, "a column has another path than the schema")
    _number(column[4], _NUM_CODECS - 1)
    num_values, encoded_bytes, stored_bytes = (_number(column[field], _MAX_INT64) for field in (5, 6, 7))
    begin = _number(column[9], _MAX_INT64)
    if column.get(11):
        begin = min(begin, _number(column[11], _MAX_INT64))
    first = _FIRST_PAGE if num_values else 0  # a column without values may have no page to point at
    _require(not stored_bytes or first <= begin <= edge - stored_bytes, "a column lies outside the file")
    _require(stored_bytes > 0 or num_values == 0, "a column of no bytes has values")
    value_bytes = _VALUE_BYTES.get(leaf.kind, _REFERENCE_BYTES)
    num_nulls = _number(column.get(12, {}).get(3, 0), _MAX_INT64)
    path = tuple(part.decode("utf-8", "replace") for part in leaf.path)
    return ChunkClaim(path, max(num_values * value_bytes, encoded_bytes), stored_bytes, num_nulls)


def _number(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise DamagedTableError(f"the footer is damaged: a number is {value!r}"[:200])
    return value


def _require(is_so: bool, fault: str) -> None:
    if not is_so:
        raise DamagedTableError(f"the footer is damaged: {fault}")


class _Thrift:
    """Built for one message; reads structs as dicts by field number, lists as lists, texts as bytes."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._at, self._depth = data, 0, 0
        self._readers: dict[int, Callable[[], Any]] = {
            _TRUE: self._byte,
            _FALSE: self._byte,
            _BYTE: self._byte,
            4: self._signed,
            5: self._signed,
            6: self._signed,
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
        self._depth += 1
        _require(self._depth <= _MAX_DEPTH, "it is too deep")
        while head := self._byte():
            kind, step = head & 15, head >> 4
            number = number + step if step else self._signed()
            _require(number not in fields, "a field stands twice")
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._readers[kind]()
        self._depth -= 1
        return fields

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            _require(shift < 70, "a number is too long")
        return value | byte << shift

    def _signed(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _double(self) -> float:
        self._at += 8
        return float(struct.unpack_from("<d", self._data, self._at - 8)[0])

    def _text(self) -> bytes:
        size = self._varint()
        self._check_room(size)
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def _list(self) -> list[Any]:
        head = self._byte()
        size, read = head >> 4, self._readers[head & 15]
        size = self._varint() if size == 15 else size
        self._check_room(size)
        return [read() for _ in range(size)]

    def _map(self) -> dict[Any, Any]:
        size = self._varint()
        if not size:
            return {}
        self._check_room(size)
        kinds = self._byte()
        read_key, read_value = self._readers[kinds >> 4], self._readers[kinds & 15]
        return {read_key(): read_value() for _ in range(size)}

    def _check_room(self, size: int) -> None:
        """Make sure that so many bytes are left: everything takes one at least."""
        _require(size <= len(self._data) - self._at, "it ends early")
