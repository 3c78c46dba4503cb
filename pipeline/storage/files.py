"""Files on this machine: a few verbs, each tried once; remote.py has the same for files behind fsspec.

Knows no retry: folder.py adds it. Paths are POSIX and relative to the root. What was published survives a power cut:
files and the folders that name them are synced.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

LOCK_PATH = "runs/.lock"
"""Of the file that is locked while names change hands; below the root."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
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
        staged = self.stage(path, data)
        try:
            self.commit(path, staged)
        finally:
            staged.unlink(missing_ok=True)

    def stage(self, path: str, data: bytes | memoryview) -> Path:
        """Write a temporary file beside the target, and return it for `commit`."""
        target = self.root / path
        _make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def commit(self, path: str, staged: Path) -> None:
        """Move a staged file to its target in one step.

        Raises:
            FileNotFoundError: it was committed or discarded before.
        """
        target = self.root / path
        staged.replace(target)
        _sync_folder(target.parent)

    def discard(self, path: str, staged: Path) -> None:
        """Remove a staged file that is not wanted."""
        del path
        staged.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process into such a block on this root meanwhile; without effect where the disk has no locks."""
        path = self.root / LOCK_PATH
        _make_folder(path.parent)
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            yield

    def publish_new(self, path: str, data: bytes | memoryview) -> bool:
        """Write a temporary file beside the target, then link it there, which only the first one can.

        Where the disk knows no links, a missing target is looked for, then written over.
        """
        target = self.root / path
        if target.exists():
            return False
        temporary = self.stage(path, data)
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
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def delete(self, path: str) -> None:
        """Remove a file."""
        (self.root / path).unlink()

    def swap(self, path: str, standing: bytes | None, data: bytes | None) -> bool:
        """Replace a file if it holds `standing` still; called within `locked`. None stands for no file."""
        return replace_standing(self, path, standing, data)

    def abandon_uploads(self) -> int:
        """Return 0: a local disk has no uploads that others may end."""
        return 0

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


class _Verbs(Protocol):
    def read(self, path: str) -> bytes: ...
    def publish(self, path: str, data: bytes | memoryview) -> None: ...
    def delete(self, path: str) -> None: ...


def replace_standing(files: _Verbs, path: str, standing: bytes | None, data: bytes | None) -> bool:
    """Look what a file holds, then replace it if that is `standing`; return whether `data` stands. None: no file."""
    try:
        found: bytes | None = files.read(path)
    except FileNotFoundError:
        found = None
    if found != standing:
        return found == data
    if data is not None:
        files.publish(path, data)
    elif found is not None:
        files.delete(path)
    return True


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link to itself, or through others back to itself."""
    try:
        entry.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they survive a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where it can be asked for."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # one that may be written but not read
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(number)
