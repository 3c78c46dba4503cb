"""Files on this machine and files behind fsspec: the same seven verbs, each tried once.

Knows no retry: folder.py adds it. Paths are POSIX and relative to the root.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RequestError
from pipeline.storage.retries import without_secrets

_TIME_KEYS = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")


@dataclass(frozen=True)
class StoredFile:
    """A file as listed: POSIX path relative to its Folder, size, and etag (else mtime in ns) as text."""

    path: str
    num_bytes: int
    version: str


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
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, path: str) -> None:
        """Remove a file."""
        (self.root / path).unlink()

    def _below(self, folder: Path, above: frozenset[str]) -> Iterator[StoredFile]:
        """Yield files, links to folders followed unless they lead back above."""
        real = os.path.realpath(folder)
        if real in above or not folder.is_dir():
            return
        for entry in os.scandir(folder):
            if entry.is_dir():
                yield from self._below(Path(entry.path), above | {real})
            elif entry.is_file():
                with suppress(FileNotFoundError):  # gone since the folder was read
                    yield self._stored(Path(entry.path), entry.stat())

    def _stored(self, target: Path, status: os.stat_result) -> StoredFile:
        return StoredFile(target.relative_to(self.root).as_posix(), status.st_size, str(status.st_mtime_ns))


class RemoteFiles:
    """Files below an fsspec URL; built by Folder, connects once a process, pickles as URL and options."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self.options = {**options, "use_listings_cache": False}
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def walk(self, prefix: str) -> list[StoredFile]:
        """Return the files at any depth below `prefix`."""
        filesystem, target = self._at(prefix)
        start = len(self._at("")[1]) + 1
        try:
            found = filesystem.find(target, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [
            _stored(name[start:], info)
            for name, info in found.items()
            if info["type"] == "file" and name != target and not name.endswith("/")
        ]

    def names(self, prefix: str) -> list[str]:
        """Return the names directly in `prefix`."""
        filesystem, target = self._at(prefix)
        found = [name.rstrip("/") for name in filesystem.ls(target, detail=False)]
        return [name.rpartition("/")[2] for name in found if name != target]

    def stat(self, path: str) -> StoredFile | None:
        """Return size and version of a file, None for a folder."""
        filesystem, target = self._at(path)
        info = filesystem.info(target)
        return _stored(path, info) if info["type"] == "file" else None

    def read(self, path: str) -> bytes:
        """Return all bytes of a file."""
        filesystem, target = self._at(path)
        return bytes(filesystem.cat_file(target))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of a file."""
        filesystem, target = self._at(path)
        return bytes(filesystem.cat_file(target, start=start, end=stop))

    def publish(self, path: str, data: bytes | memoryview) -> None:
        """Send complete bytes in one call, which object stores make visible at once."""
        filesystem, target = self._at(path)
        filesystem.pipe_file(target, bytes(data))

    def delete(self, path: str) -> None:
        """Remove a file."""
        filesystem, target = self._at(path)
        filesystem.rm_file(target)

    def _at(self, path: str) -> tuple[Any, str]:
        """Return the filesystem of this process and `path` in its terms."""
        if self._opened is None or self._opened[0] != os.getpid():
            from fsspec.core import url_to_fs

            try:
                filesystem, root = url_to_fs(self.url, **self.options)
            except (ValueError, ImportError) as error:
                raise RequestError(f"{without_secrets(self.url)}: {error}") from error
            self._opened = (os.getpid(), filesystem, root.rstrip("/"))
        _, filesystem, root = self._opened
        return filesystem, f"{root}/{path}" if path else root


def _stored(path: str, info: Mapping[str, Any]) -> StoredFile:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return StoredFile(path, int(info["size"]), str(etag).strip('"'))
    changed = next((info[key] for key in _TIME_KEYS if info.get(key)), "")
    if hasattr(changed, "timestamp"):
        changed = changed.timestamp()
    version = str(int(changed * 1e9)) if isinstance(changed, float | int) else str(changed)
    return StoredFile(path, int(info["size"]), version)
