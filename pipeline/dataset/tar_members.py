"""Members of a tar in bulk: headers, contents and padding of thousands at once, and where members of a tar stand.

Knows no Arrow, window or storage. Bytes are those that `tarfile` writes: a ustar header of a plain file without clock,
owner or machine.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)
"""What stands behind the last member."""

_NAME, _SIZE, _CHECKSUM, _PREFIX = slice(0, 100), slice(124, 135), slice(148, 156), slice(345, 500)
_SIZE_DIGITS, _CHECKSUM_DIGITS = 11, 6
_SPACE = ord(" ")


@dataclass(frozen=True)
class Members:
    """Names and places of the members of a tar, in order; built by `plain_members`."""

    names: Sequence[str]
    begins: Sequence[int]
    """Where contents begin."""
    sizes: Sequence[int]


def members_of(names: Sequence[str], contents: Sequence[bytes]) -> list[bytes]:
    """Return header, content and padding of each member, joined.

    Args:
        names: ASCII, 100 characters at most.

    Raises:
        ValueError: a name is too long for a header.
    """
    headers = headers_of(names, np.array([len(content) for content in contents], np.int64)).tobytes()
    return [
        b"".join((headers[number * BLOCK : (number + 1) * BLOCK], content, _PADDING[-len(content) % BLOCK]))
        for number, content in enumerate(contents)
    ]


@dataclass(frozen=True)
class ArrayMembers:
    """Members whose contents are of one size: a common head and bytes of their own; built by whoever writes a tar."""

    names: Sequence[str]
    head: bytes
    """Stands at the beginning of each content."""
    values: Bytes
    """(num_members, num_bytes)."""

    @property
    def num_bytes(self) -> int:
        """Size of a member: header, content and padding."""
        size = len(self.head) + int(self.values.shape[1])
        return BLOCK + size + -size % BLOCK

    def write(self, members: Bytes) -> None:
        """Fill in the members, (num_members, num_bytes), which are zeros."""
        head, size = len(self.head), len(self.head) + self.values.shape[1]
        members[:, :BLOCK] = headers_of(self.names, np.full(len(self.values), size, np.int64))
        members[:, BLOCK : BLOCK + head] = np.frombuffer(self.head, np.uint8)
        members[:, BLOCK + head : BLOCK + size] = self.values


def tar_of(columns: Sequence[ArrayMembers | Sequence[bytes]], num_samples: int) -> bytearray:
    """Return a tar of samples: of each, its member of every column.

    Args:
        columns: joined members (of no one size, one or several a sample), or members of one size.
    """
    widths = [_width_of(column, num_samples) for column in columns]
    if None not in widths:
        return _filled(columns, [width or 0 for width in widths], num_samples)
    parts: list[Sequence[bytes | Bytes]] = []
    for column, width in zip(columns, widths, strict=True):
        if isinstance(column, ArrayMembers):
            members = np.zeros((num_samples, width or 0), np.uint8)
            column.write(members)
            parts.append(list(members))
        else:
            parts.append(column)
    return bytearray().join(chain(chain.from_iterable(zip(*parts, strict=True)), (END,)))


def _width_of(column: ArrayMembers | Sequence[bytes], num_samples: int) -> int | None:
    """Return the bytes of each sample's members, None where they differ."""
    if isinstance(column, ArrayMembers):
        return column.num_bytes
    sizes = {len(members) for members in column}
    return sizes.pop() if num_samples and len(sizes) == 1 else None


def _filled(columns: Sequence[ArrayMembers | Sequence[bytes]], widths: Sequence[int], num_samples: int) -> bytearray:
    """Return a tar of samples of one size, each byte of it written once: memory is what large shards wait for."""
    num_bytes = num_samples * sum(widths)
    tar = bytearray(num_bytes + len(END))
    samples = np.frombuffer(tar, np.uint8)[:num_bytes].reshape(num_samples, -1)
    begin = 0
    for column, width in zip(columns, widths, strict=True):
        target = samples[:, begin : begin + width]
        if isinstance(column, ArrayMembers):
            column.write(target)
        else:
            target[:] = np.frombuffer(b"".join(column), np.uint8).reshape(num_samples, width)
        begin += width
    return tar


def headers_of(names: Sequence[str], sizes: NDArray[np.int64]) -> Bytes:
    """Return the headers of plain files, (num_members, 512).

    Raises:
        ValueError: a name is too long for a header.
    """
    width = _NAME.stop
    if any(len(name) > width for name in names):
        longest = max(names, key=len)
        raise ValueError(f"a member's name may have {width} characters, found {len(longest)}: {longest}")
    headers = np.tile(_TEMPLATE, (len(names), 1))
    headers[:, _NAME] = np.array(names, dtype=f"S{width}").view(np.uint8).reshape(-1, width)
    headers[:, _SIZE] = _octal(sizes, _SIZE_DIGITS)
    checksums = headers.sum(axis=1, dtype=np.int64)
    headers[:, _CHECKSUM] = np.frombuffer(b"000000\0 ", np.uint8)
    headers[:, _CHECKSUM.start : _CHECKSUM.start + _CHECKSUM_DIGITS] = _octal(checksums, _CHECKSUM_DIGITS)
    return headers


def plain_members(data: bytes) -> Members | None:
    """Return the members of a tar whose headers are those that `headers_of` gives; None for any other tar."""
    names: list[str] = []
    begins: list[int] = []
    sizes: list[int] = []
    at, end = 0, len(data) - BLOCK
    try:
        while at <= end and data[at]:
            size = int(data[at + _SIZE.start : at + _SIZE.stop], 8)
            names.append(data[at : at + _NAME.stop].rstrip(b"\0").decode("ascii"))
            begins.append(at + BLOCK)
            sizes.append(size)
            at += BLOCK + size + -size % BLOCK
    except ValueError:
        return None
    if data[at:] != END:
        return None
    found = np.frombuffer(data, np.uint8)
    for first in range(0, len(names), _CHECKED_AT_ONCE):
        last = min(first + _CHECKED_AT_ONCE, len(names))
        headers = np.stack([found[begin - BLOCK : begin] for begin in begins[first:last]])
        if not np.array_equal(headers, headers_of(names[first:last], np.array(sizes[first:last], np.int64))):
            return None
    return Members(names, begins, sizes)


def _octal(numbers: NDArray[np.int64], num_digits: int) -> Bytes:
    """Return the last octal digits of numbers as text, (n, num_digits)."""
    digits = (numbers[:, None] >> (3 * np.arange(num_digits - 1, -1, -1))) & 7
    return (digits + ord("0")).astype(np.uint8)


def _template() -> Bytes:
    """Return a header of `tarfile` without name and size, its checksum as the spaces that count for it."""
    info = tarfile.TarInfo("")
    info.mode = 0o644
    header = np.frombuffer(info.tobuf(tarfile.USTAR_FORMAT), np.uint8).copy()
    header[_SIZE] = 0
    header[_CHECKSUM] = _SPACE
    return header


_TEMPLATE = _template()
_PADDING = [b"\0" * num_bytes for num_bytes in range(BLOCK)]
_CHECKED_AT_ONCE = 4096
