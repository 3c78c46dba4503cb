"""Standard output and error whose reader may go away: `| head`, a log shipper that dies, a full disk behind `>`.

A command that does work goes on without them and ends as it would have. One that only reads has nothing left to do.
Knows no command.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

EXIT_NO_READER = 141
"""What a shell shows of a program that SIGPIPE ended, as it ends most of those that only read."""


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard standard output and error of this process; what is buffered at the end is written while that may fail.

    Raises:
        SystemExit: nobody takes standard output, and `go_on_without_reader` was not called.
    """
    sys.stdout = guarded(sys.stdout, ends=True)
    sys.stderr = guarded(sys.stderr)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stdout.flush()


def go_on_without_reader() -> None:
    """From now on, swallow what nobody takes of standard output: the command does work."""
    outlet = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(outlet, _Outlet):
        outlet.ends = False


def guarded(stream: TextIO, ends: bool = False) -> TextIO:
    """Return a stream onto the same file, where it is a real one, that outlives its reader.

    Args:
        ends: the process ends at the first write that nobody takes.
    """
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or a test's
        return stream
    stream.flush()
    outlet = io.BufferedWriter(_Outlet(number, ends))
    return cast(
        TextIO,
        io.TextIOWrapper(
            outlet, stream.encoding, stream.errors, line_buffering=getattr(stream, "line_buffering", True)
        ),
    )


class _Outlet(io.FileIO):
    """A file descriptor that swallows what nobody takes; built by `guarded`, never closes it."""

    def __init__(self, number: int, ends: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.ends, self._is_gone = ends, False

    def write(self, data: Any) -> int | None:  # type: ignore[override]  # of one byte each, as BufferedWriter gives it
        if self._is_gone:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self._is_gone = True
            if self.ends:
                raise SystemExit(_end(error)) from error
            return len(data)


def _end(error: OSError) -> int:
    if error.errno == errno.EPIPE:
        return EXIT_NO_READER
    sys.stderr.write(f"error: cannot write standard output: {error.strerror}\n")
    return os.EX_IOERR
