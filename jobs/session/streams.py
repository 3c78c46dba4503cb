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
from pathlib import Path
from typing import Any, TextIO

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
        outlet = _outlet_of(sys.stdout)
        if outlet is not None and outlet.ends and outlet.exit_code:  # a thread met it
            raise SystemExit(outlet.exit_code)


def go_on_without_reader() -> None:
    """From now on, swallow what nobody takes of standard output: the command does work."""
    outlet = _outlet_of(sys.stdout)
    if outlet is not None:
        outlet.ends = False


def guarded(stream: TextIO | None, ends: bool = False) -> TextIO:
    """Return a stream onto the same file that outlives its reader; a test's stream is left as it is.

    Args:
        stream: None where the process was started without.
        ends: the process ends at the first write that nobody takes.
    """
    if stream is None:
        return Path(os.devnull).open("w")
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or a test's
        return stream
    stream.flush()
    outlet = io.BufferedWriter(_Outlet(number, ends))
    is_unbuffered = bool(getattr(stream, "write_through", False))
    is_by_line = bool(getattr(stream, "line_buffering", True)) or not ends
    return io.TextIOWrapper(
        outlet, stream.encoding, stream.errors, line_buffering=is_by_line or is_unbuffered, write_through=is_unbuffered
    )


def part_with(stream: TextIO) -> None:
    """Write what a guarded stream holds, and nothing any more: its file is about to be closed."""
    stream.flush()
    outlet = _outlet_of(stream)
    if outlet is not None:
        outlet.is_gone = True


class _Outlet(io.FileIO):
    """A file descriptor that swallows what nobody takes; built by `guarded`, never closes it."""

    def __init__(self, number: int, ends: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.ends, self.is_gone, self.exit_code = ends, False, 0

    def write(self, data: Any) -> int | None:  # type: ignore[override]  # of one byte each, as BufferedWriter gives it
        if self.is_gone:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.is_gone = self.ends or error.errno == errno.EPIPE  # a disk may have space again
            if self.ends:
                self.exit_code = _end(error)
                raise SystemExit(self.exit_code) from error
            return len(data)


def _outlet_of(stream: TextIO) -> _Outlet | None:
    outlet = getattr(getattr(stream, "buffer", None), "raw", None)
    return outlet if isinstance(outlet, _Outlet) else None


def _end(error: OSError) -> int:
    if error.errno == errno.EPIPE:
        return EXIT_NO_READER
    sys.stderr.write(f"error: cannot write standard output: {error.strerror}\n")
    return os.EX_IOERR
