"""Files on this machine: eight verbs, each tried once; remote.py has the same for files behind fsspec.

Knows no retry: folder.py adds it. Paths are POSIX and relative to the root.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclass(frozen=True)
class StoredFile:
    """A file as listed: POSIX path relative to its Folder, size, and etag (else mtime in ns) as text."""

    path: str
    num_bytes: int
    version: str
    checksum: str = ""
    """SHA-256 of the content, empty as listed: checksums.py fills it in."""


class LocalFiles:
    """Files below a folder of this machine; built by Folder, owns nothing that stays open."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def walk(self, prefix: str) -> list[StoredFile]:
        """Return the files at any depth below `prefix`."""
        return list(self._below(self.root / prefix, frozenset()))

    def names(self, prefix: str) -> list[str]:
        """Return the names directly in `prefix`."""
        return [path.name for path in (self.root / prefix).iterdir()]

    def stat(self, path: str) -> StoredFile | None:
        """Return size and version of a file, None for a folder."""
        target = self.root / path
        return None if target.is_dir() else self._stored(target, target.stat())

    def read(self, path: str) -> bytes:
        """Return all bytes of a file."""
        return (self.root / path).read_bytes()

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of a file."""
        with (self.root / path).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def publish(self, path: str, data: bytes | memoryview) -> None:
        """Write a temporary file beside the target, then move it there in one step."""
        target = self.root / path
        with _temporary_beside(target, data) as temporary:
            temporary.replace(target)

    def publish_new(self, path: str, data: bytes | memoryview) -> bool:
        """Write a temporary file beside the target, then link it there, which only the first one can.

        Where the disk knows no links, a missing target is looked for, then written over.
        """
        target = self.root / path
        if target.exists():
            return False
        with _temporary_beside(target, data) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return temporary.stat().st_nlink > 1  # a network disk can do it and lose the answer
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if target.exists():
                    return False
                temporary.replace(target)
        return True

    def delete(self, path: str) -> None:
        """Remove a file."""
        (self.root / path).unlink()

    def _below(self, folder: Path, above: frozenset[str]) -> Iterator[StoredFile]:
        """Yield files, links to folders followed unless they lead back above."""
        real = os.path.realpath(folder)
        if real in above or not folder.is_dir():
            return
        for entry in os.scandir(folder):
            if _leads_nowhere(entry):
                continue
            if entry.is_dir():
                yield from self._below(Path(entry.path), above | {real})
            elif entry.is_file():
                with suppress(FileNotFoundError):  # gone since the folder was read
                    yield self._stored(Path(entry.path), entry.stat())

    def _stored(self, target: Path, status: os.stat_result) -> StoredFile:
        return StoredFile(target.relative_to(self.root).as_posix(), status.st_size, str(status.st_mtime_ns))


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link to itself, or through others back to itself."""
    try:
        entry.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


@contextmanager
def _temporary_beside(target: Path, data: bytes | memoryview) -> Iterator[Path]:
    """Yield a complete file on the target's disk under a name of its own, gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
