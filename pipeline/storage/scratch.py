"""Scratch: bytes put aside on this machine's disk, so that memory need not hold them.

Knows nothing of what the bytes mean. The file has no name, so nothing is left of it, however the process ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import OutputError


@contextmanager
def scratch_named() -> Iterator[None]:
    """Tell of an error of the disk within the block that it is the temporary folder's.

    Raises:
        OutputError: the disk is full, or there is no folder to write to.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot put data aside in the temporary folder: {error.strerror or error}; free space there or"
            " set TMPDIR to another disk, then run the same command again"
        ) from error


class Scratch:
    """Built by whoever gathers more than memory should hold; owns an unnamed file in the system's temporary folder."""

    def __init__(self) -> None:
        with scratch_named():
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        """For writers that want a file."""

    def append(self, data: bytes | memoryview) -> tuple[int, int]:
        """Put bytes behind those that are there, and return where they begin and end.

        Raises:
            OutputError: the disk is full.
        """
        with scratch_named():
            begin = self.file.seek(0, os.SEEK_END)
            self.file.write(data)
            self.file.flush()
            return begin, self.file.tell()

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes [begin, end)."""
        self.file.seek(begin)
        return self.file.read(end - begin)

    def view(self) -> memoryview:
        """Return all bytes that are there now; the disk holds them, memory only what is being looked at."""
        self.file.flush()
        num_bytes = self.file.seek(0, os.SEEK_END)
        if not num_bytes:
            return memoryview(b"")
        return memoryview(mmap.mmap(self.file.fileno(), num_bytes, access=mmap.ACCESS_READ))
