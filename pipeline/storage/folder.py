"""Folder: files of one place, local or remote, read and written with retries; and single named files.

Knows nothing of inputs, outputs or formats.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline.errors import InputFormatError, InputNotFoundError, RequestError, StorageError, UploadAbandonedError
from pipeline.storage.files import LocalFiles, StoredFile
from pipeline.storage.remote import RemoteFiles, S3Files
from pipeline.storage.retries import RETRY_POLICY, RetryPolicy, with_retries, without_secrets

Result = TypeVar("Result")

READ_BLOCK_BYTES = 4 << 20
WRITE_THREADS = 8
BATCH = 100
"""Files that are deleted after one look whether they still may be."""
SCHEMES: dict[str, type[RemoteFiles]] = {"s3": S3Files, "s3a": S3Files}
"""Who speaks to a place by its scheme, where that is more than fsspec knows of all places."""
WHOLE = ("abfs", "abfss", "az", "gcs", "gs", "memory", "oss")
"""Further schemes of places whose files appear whole: object stores that show what was sent once all of it is there."""


class Folder:
    """A place that holds files; paths given to it are POSIX and relative to it.

    Anyone builds it from a path or URL. It pickles as text and connects once a process; nothing to close.

    Args:
        url: local path, or any fsspec URL; a relative path counts from the present working folder.
        options: passed to fsspec; local paths need none.
        retries: how long to wait and try where storage does not answer.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, retries: RetryPolicy = RETRY_POLICY) -> None:
        local = _local_part(url)
        self.options, self.retries = dict(options or {}), retries
        self.url = url.rstrip("/") if local is None else str(Path(local).absolute())
        self._files: LocalFiles | RemoteFiles
        if local is not None:
            self._files = LocalFiles(self.url)
        else:
            kind = SCHEMES.get(self.url.partition("://")[0], RemoteFiles)
            self._files = kind(self.url, self.options, retries)

    def __repr__(self) -> str:
        return f"Folder({without_secrets(self.url)!r})"

    def __str__(self) -> str:
        return without_secrets(self.url)

    def child(self, sub: str) -> Folder:
        """Return the folder `sub` inside this one."""
        return Folder(self.url_of(sub), self.options, self.retries)

    def url_of(self, path: str) -> str:
        """Return the full path or URL of a file."""
        return f"{self.url.rstrip('/')}/{path}" if path else self.url

    def path_below(self, other: Folder) -> str | None:
        """Return the path of this folder relative to another that holds it, "" for the same; else None."""
        ours, theirs = self.local_path(""), other.local_path("")
        if ours is not None and theirs is not None:
            inner, outer = Path(ours).resolve(), Path(theirs).resolve()
            return "/".join(inner.relative_to(outer).parts) if inner.is_relative_to(outer) else None
        if ours is not None or theirs is not None:
            return None
        inside = f"{self.url}/".startswith(f"{other.url.rstrip('/')}/")
        return self.url[len(other.url.rstrip("/")) + 1 :] if inside else None

    def local_path(self, path: str) -> str | None:
        """Return the file's path on this machine, None where it is remote."""
        return self.url_of(path) if isinstance(self._files, LocalFiles) else None

    def require_whole(self) -> None:
        """Make sure that files appear here only once they are whole, as whoever learns by listing must know.

        Raises:
            RequestError: they may appear while they are written.
        """
        scheme = self.url.partition("://")[0]
        if not isinstance(self._files, LocalFiles) and scheme not in (*SCHEMES, *WHOLE):
            known = ", ".join(sorted({*SCHEMES, *WHOLE} - {"memory"}))
            raise RequestError(
                f"{self}: files of {scheme} may be seen while they are written, so that half of one could be taken for"
                f" all of it; an output stands on a disk or on {known}: write there, then copy"
            )

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        """Return every file at any depth below `prefix`, sorted by path; [] where it is missing."""
        return sorted(self._retry(self._files.walk, "list", prefix), key=lambda file: file.path)

    def list_names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of files and folders directly in `prefix`; [] where it is missing."""
        try:
            return sorted(self._retry(self._files.names, "list", prefix))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stat(self, path: str) -> StoredFile | None:
        """Return size and version of a file; None where there is none, or a folder."""
        try:
            return self._retry(self._files.stat, "look at", path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self, path: str) -> bool:
        """Return whether a file stands at `path`."""
        return self.stat(path) is not None

    def read(self, path: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            FileNotFoundError: there is none.
            StorageError: storage does not answer.
        """
        return self._retry(self._files.read, "read", path)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of a file, fewer where it ends earlier.

        Raises:
            FileNotFoundError: there is none.
            StorageError: storage does not answer.
        """
        if start >= stop:
            return b""
        return self._retry(lambda at: self._files.read_range(at, start, stop), "read", path)

    def read_range_of(self, file: StoredFile, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of a file as `stat` found it.

        On S3 the server compares its etag, in the same request. Elsewhere nobody compares: ask `stat` again.

        Raises:
            FileNotFoundError: there is none, or another one by now.
            StorageError: storage does not answer.
        """
        files = self._files
        if isinstance(files, LocalFiles):
            return self.read_range(file.path, start, stop)
        return self._retry(lambda at: files.read_range_of(at, file.version, start, stop), "read", file.path)

    def open(self, path: str, block_bytes: int = READ_BLOCK_BYTES) -> BinaryIO:
        """Return a seekable reader; remote files are read in ranges through a block buffer, with retries.

        Args:
            path: of the file.
            block_bytes: of a remote file that are read at once, at least.

        Raises:
            FileNotFoundError: there is none.
            StorageError: storage does not answer; remote reads raise it too.
        """
        local = self.local_path(path)
        if local is not None:
            return self._retry(lambda _: Path(local).open("rb"), "open", path)
        file = self.stat(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), without_secrets(self.url_of(path)))
        return io.BufferedReader(_RangeReader(self, file), block_bytes)

    def publish(self, path: str, data: bytes | memoryview) -> None:
        """Write a whole file so that readers see all of it or none; an existing one is replaced.

        Raises:
            StorageError: storage does not answer.
            OutputError: it denies, or is full.
        """
        self._retry(lambda at: self._files.publish(at, data), "write", path)

    def publish_new(self, path: str, data: bytes | memoryview) -> bool:
        """Write a whole file if none stands at `path`, and leave the first one as it is.

        Of several writers at once one wins, on local disks and on S3 servers that know If-None-Match. Elsewhere
        two who look at the same moment both write: the last one's bytes stand, whole.

        Returns:
            Whether these bytes were written by this call; also when a try whose answer was lost wrote them.

        Raises:
            StorageError: storage does not answer.
            OutputError: it denies, or is full.
        """
        is_retry = False

        def create(at: str) -> bool:
            nonlocal is_retry
            was_tried, is_retry = is_retry, True
            return self._files.publish_new(at, data) or (was_tried and self._files.read(at) == data)

        return self._retry(create, "write", path)

    def publish_guarded(self, contents: Mapping[str, bytes | memoryview], still_may: Callable[[], None]) -> None:
        """Write whole files, unless `still_may` raises, which is asked once all are sent and before any is seen.

        Between the question and the end nobody else does the same on a local disk. On S3, whoever has called
        `abandon_uploads` in the meantime has stopped the files that are not seen yet. Elsewhere nothing stops a
        process that was paused in between.

        Raises:
            UploadAbandonedError: someone else stopped a file.
            StorageError: storage does not answer.
            OutputError: it denies, or is full.
        """
        staged: dict[str, Any] = {}

        def stage(path: str) -> None:
            staged[path] = self._retry(lambda at: self._files.stage(at, contents[path]), "write", path)

        try:
            with ThreadPoolExecutor(WRITE_THREADS) as pool:
                list(pool.map(stage, contents))
            with self._locked():
                still_may()
                for path, data in contents.items():
                    self._commit(path, staged[path], data)
                    del staged[path]
        finally:
            for path, left in staged.items():
                with suppress(OSError, StorageError):
                    self._files.discard(path, left)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as stack:
            self._retry(lambda _: stack.enter_context(self._files.locked()), "write", "")
            yield

    def _commit(self, path: str, staged: Any, data: bytes | memoryview) -> None:
        try:
            self._retry(lambda at: self._files.commit(at, staged), "write", path)
        except FileNotFoundError as error:
            try:
                stands = self.read(path) == data  # a try whose answer was lost
            except FileNotFoundError:
                stands = False
            if not stands:
                url = without_secrets(self.url_of(path))
                raise UploadAbandonedError(f"{url} was not written: another run ended its upload") from error

    def delete_guarded(self, paths: Iterable[str], still_may: Callable[[], None]) -> None:
        """Remove files, missing ones too, unless `still_may` raises, which is asked again for each batch of them."""
        following = iter(paths)
        with ThreadPoolExecutor(WRITE_THREADS) as pool:
            while batch := list(islice(following, BATCH)):
                with self._locked():
                    still_may()
                    list(pool.map(self.delete, batch))

    def swap(self, path: str, standing: bytes | None, data: bytes | None) -> bool:
        """Replace a small file if it holds `standing` still, and return whether `data` stands there now.

        Of several at once one wins, on local disks and on S3 servers that know If-Match; elsewhere all may.

        Args:
            standing: what it is to hold; None: no file.
            data: what it shall hold, of nobody else; None: no file.
        """
        with self._locked():
            return self._retry(lambda at: self._files.swap(at, standing, data), "write", path)

    def abandon_uploads(self) -> int:
        """End what others are sending here and nobody can see yet; return how many files that were."""
        return self._retry(lambda _: self._files.abandon_uploads(), "delete", "")

    def delete(self, path: str) -> None:
        """Remove a file; a missing one is no error."""
        try:
            self._retry(self._files.delete, "delete", path)
        except FileNotFoundError:
            return

    def _retry(self, operation: Callable[[str], Result], verb: str, path: str) -> Result:
        what = f"{verb} {without_secrets(self.url_of(path))}"
        return with_retries(lambda: operation(path), what, self.retries, writes=verb in ("write", "delete"))


class _RangeReader(io.RawIOBase):
    """A remote file as a raw stream: built by Folder.open, every read is one ranged request."""

    def __init__(self, folder: Folder, file: StoredFile) -> None:
        self._folder, self._file, self._at = folder, file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.num_bytes}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._file.num_bytes)
        data = self._folder.read_range(self._file.path, self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_bytes(url: str, options: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes of one named file.

    Raises:
        InputNotFoundError: there is none.
    """
    folder, name = parent_and_name(url, options)
    try:
        return folder.read(name)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InputNotFoundError(f"no file at {without_secrets(url)}: check the path") from error


def read_text(url: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the UTF-8 text of one named file.

    Raises:
        InputNotFoundError: there is none.
        InputFormatError: it is not UTF-8.
    """
    try:
        return read_bytes(url, options).decode()
    except UnicodeDecodeError as error:
        message = f"{without_secrets(url)} is not UTF-8 text: {error.reason} at byte {error.start}"
        raise InputFormatError(message) from error


def parent_and_name(url: str, options: Mapping[str, Any] | None = None) -> tuple[Folder, str]:
    """Return folder and basename of a location; the basename of a bare bucket or root is empty."""
    local = _local_part(url)
    if local is not None:
        path = Path(local).absolute()
        return Folder(str(path.parent), options), path.name
    head, _, name = url.rstrip("/").rpartition("/")
    return (Folder(url, options), "") if head.endswith("/") else (Folder(head, options), name)


def _local_part(url: str) -> str | None:
    """Return the path of a local location, None for a remote one."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    return rest if scheme in ("file", "local") else None
