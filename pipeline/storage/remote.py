"""Files behind fsspec: the same verbs as for local files, each tried once.

Knows no retry: folder.py adds it. Paths are POSIX and relative to the root.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RequestError
from pipeline.storage.files import StoredFile, replace_standing
from pipeline.storage.retries import RETRY_POLICY, RetryPolicy, server_code, without_secrets

LISTING_S = 1800.0
"""How long a listing may last, in all its pages; each page has the deadline of a request too."""
S3_REQUESTS = {
    "connect_timeout": 5,
    "read_timeout": 20,
    "retries": {"mode": "standard", "total_max_attempts": 3},
}
"""Settings of botocore: seconds without an answer before a request is abandoned, and how often it is sent."""
ONE_REQUEST_BYTES = 50 << 20
"""Larger files are read in several requests at once."""

_USER_IN_BUCKET = re.compile(r"(s3a?|gs|gcs)://[^/]*[:@]")
_REFUSED = ("PreconditionFailed", "412")
_UNKNOWN_TO_SERVER = ("NotImplemented", "501")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")


@dataclass(frozen=True)
class Upload:
    """Bytes on their way: of S3 they lie there already, under a name that only their upload knows."""

    data: bytes | memoryview
    upload_id: str = ""
    etag: str = ""


class RemoteFiles:
    """Files below an fsspec URL; built by Folder, connects once a process, pickles as URL, options and limits."""

    def __init__(self, url: str, options: Mapping[str, Any], retries: RetryPolicy = RETRY_POLICY) -> None:
        if _USER_IN_BUCKET.match(url):
            raise RequestError(
                f"a {url.partition('://')[0]} address with user or password in it: no bucket is called so, and "
                "messages show addresses; put credentials into the environment or run.storage_options"
            )
        self.url, self.retries = url, retries
        self.options = {**options, "use_listings_cache": False}
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def limit(self, seconds: float) -> dict[str, Any]:
        """Return the argument that makes the filesystem abandon a call after so long; in general there is none."""
        del seconds
        return {}

    def moving(self, num_bytes: int) -> dict[str, Any]:
        """Return the argument that limits a try which moves so many bytes."""
        return self.limit(self.retries.limit_s(num_bytes))

    def whole(self, num_bytes: int) -> dict[str, Any]:
        """Return the arguments for reading a whole file of so many bytes."""
        return self.moving(num_bytes)

    def walk(self, prefix: str) -> list[StoredFile]:
        """Return the files at any depth below `prefix`."""
        filesystem, target = self._at(prefix)
        start = len(self._at("")[1]) + 1
        try:
            found = filesystem.find(target, detail=True, **self.limit(LISTING_S))
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
        found = [name.rstrip("/") for name in filesystem.ls(target, detail=False, **self.limit(LISTING_S))]
        return [name.rpartition("/")[2] for name in found if name != target]

    def stat(self, path: str) -> StoredFile | None:
        """Return size and version of a file, None for a folder."""
        filesystem, target = self._at(path)
        info = filesystem.info(target, **self.moving(0))
        return _stored(path, info) if info["type"] == "file" else None

    def read(self, path: str) -> bytes:
        """Return all bytes of a file, refusing fewer than it is said to have."""
        filesystem, target = self._at(path)
        num_bytes = filesystem.info(target, **self.moving(0)).get("size") or 0
        return _complete(bytes(filesystem.cat_file(target, **self.whole(num_bytes))), num_bytes)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of a file, refusing fewer than it is said to have there."""
        filesystem, target = self._at(path)
        data = bytes(filesystem.cat_file(target, start=start, end=stop, **self.moving(stop - start)))
        if len(data) == stop - start:
            return data
        num_bytes = filesystem.info(target, **self.moving(0)).get("size") or 0
        return _complete(data, min(stop, num_bytes) - start)

    def read_range_of(self, path: str, version: str, start: int, stop: int) -> bytes:
        """Return a range of a version of a file; in general whatever stands there is read."""
        del version
        return self.read_range(path, start, stop)

    def publish(self, path: str, data: bytes | memoryview) -> None:
        """Send complete bytes in one call, which object stores make visible at once."""
        filesystem, target = self._at(path)
        filesystem.pipe_file(target, bytes(data), **self.moving(len(data)))

    def publish_new(self, path: str, data: bytes | memoryview) -> bool:
        """Look whether a file stands there, and send complete bytes where none does."""
        if self.stands(path):
            return False
        self.publish(path, data)
        return True

    def stage(self, path: str, data: bytes | memoryview) -> Upload:
        """Return bytes for `commit`; in general they are not sent before."""
        del path
        return Upload(data)

    def commit(self, path: str, staged: Upload) -> None:
        """Make staged bytes the file."""
        self.publish(path, staged.data)

    def discard(self, path: str, staged: Upload) -> None:
        """Forget staged bytes that are not wanted."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Do nothing: object storage has no locks."""
        yield

    def swap(self, path: str, standing: bytes | None, data: bytes | None) -> bool:
        """Replace a file if it holds `standing` still, as far as looking before can tell. None stands for no file."""
        return replace_standing(self, path, standing, data)

    def abandon_uploads(self) -> int:
        """Return 0: in general nobody can list what others are sending."""
        return 0

    def stands(self, path: str) -> bool:
        """Return whether there is a file."""
        try:
            return self.stat(path) is not None
        except (FileNotFoundError, NotADirectoryError):
            return False

    def delete(self, path: str) -> None:
        """Remove a file."""
        filesystem, target = self._at(path)
        filesystem.rm_file(target, **self.moving(0))

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


class S3Files(RemoteFiles):
    """Files in S3: a request that stalls is abandoned, and a server that can decides who was first.

    Built by Folder, like its base. What the user says in ``config_kwargs`` wins over S3_REQUESTS.
    """

    def __init__(self, url: str, options: Mapping[str, Any], retries: RetryPolicy = RETRY_POLICY) -> None:
        requests = {**S3_REQUESTS, **options.get("config_kwargs", {})}
        super().__init__(url, {**options, "config_kwargs": requests}, retries)

    def limit(self, seconds: float) -> dict[str, Any]:
        """Return the argument that makes s3fs abandon a call after so long."""
        return {"timeout": seconds}

    def whole(self, num_bytes: int) -> dict[str, Any]:
        """Return the arguments for reading a whole file: a small one in one request, without asking for its size."""
        return {**self.moving(num_bytes), "max_concurrency": None if num_bytes > ONE_REQUEST_BYTES else 1}

    def read_range_of(self, path: str, version: str, start: int, stop: int) -> bytes:
        """Return a range of a file, by a request that the server refuses where the file's etag is another."""
        from fsspec.asyn import sync

        filesystem, target = self._at(path)
        bucket, key, _ = filesystem.split_path(target)
        wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{stop - 1}", "IfMatch": f'"{version}"'}

        async def read() -> bytes:
            answer = await filesystem._call_s3("get_object", **wanted, **filesystem.req_kw)
            async with answer["Body"] as body:
                return bytes(await body.read())

        try:
            return _complete(sync(filesystem.loop, read, **self.moving(stop - start)), stop - start)
        except OSError as error:
            if isinstance(error, FileExistsError) or server_code(error) in _REFUSED:
                raise FileNotFoundError(errno.ENOENT, "another version of the file stands there", target) from error
            if server_code(error) not in _UNKNOWN_TO_SERVER:
                raise
            return self.read_range(path, start, stop)

    def stands(self, path: str) -> bool:
        """Return whether there is a file, in one request."""
        filesystem, target = self._at(path)
        bucket, key, _ = filesystem.split_path(target)
        try:
            filesystem.call_s3("head_object", Bucket=bucket, Key=key, **self.moving(0))
        except FileNotFoundError:
            return False
        return True

    def publish_new(self, path: str, data: bytes | memoryview) -> bool:
        """Send complete bytes with If-None-Match, having looked first: not every server heeds it.

        A request can succeed, lose its answer and be refused when it is sent again: our own bytes, found after a
        refusal, count as ours.
        """
        if self.stands(path):
            return False
        filesystem, target = self._at(path)
        try:
            filesystem.pipe_file(target, bytes(data), mode="create", **self.moving(len(data)))
        except OSError as error:
            if isinstance(error, FileExistsError) or server_code(error) in _REFUSED:
                return self.read(path) == data
            if server_code(error) not in _UNKNOWN_TO_SERVER:
                raise
            self.publish(path, data)
        return True

    def stage(self, path: str, data: bytes | memoryview) -> Upload:
        """Send bytes as an upload of one part, which is no file yet."""
        target = self._bucket_and_key(path)
        upload_id = str(self._call("create_multipart_upload", 0, **target)["UploadId"])
        part = {"UploadId": upload_id, "PartNumber": 1, "Body": bytes(data)}
        answer = self._call("upload_part", len(data), **target, **part)
        return Upload(data, upload_id, str(answer["ETag"]))

    def commit(self, path: str, staged: Upload) -> None:
        """End an upload: now its bytes are the file.

        Raises:
            FileNotFoundError: it was ended before, or abandoned by someone else.
        """
        parts = {"Parts": [{"ETag": staged.etag, "PartNumber": 1}]}
        target = self._bucket_and_key(path)
        try:
            self._call("complete_multipart_upload", 0, **target, UploadId=staged.upload_id, MultipartUpload=parts)
        except OSError as error:
            if server_code(error) == "NoSuchUpload":
                raise FileNotFoundError(errno.ENOENT, "the upload was ended by someone else", path) from error
            raise

    def discard(self, path: str, staged: Upload) -> None:
        """Abandon an upload."""
        with suppress(FileNotFoundError):
            self._call("abort_multipart_upload", 0, **self._bucket_and_key(path), UploadId=staged.upload_id)

    def swap(self, path: str, standing: bytes | None, data: bytes | None) -> bool:
        """Replace a file if it holds `standing` still: a server that heeds If-Match and If-None-Match decides.

        A removal cannot be bound to a condition everywhere: it looks before.
        """
        if data is None:
            return super().swap(path, standing, data)
        if standing is None:
            return self.publish_new(path, data) or self.read(path) == data
        target = self._bucket_and_key(path)
        try:
            found, etag = self._read_tagged(path)
        except FileNotFoundError:
            return False
        if found != standing:
            return found == data
        try:
            self._call("put_object", len(data), **target, Body=data, IfMatch=etag)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return False
            if isinstance(error, FileExistsError) or server_code(error) in _REFUSED:
                return self.read(path) == data
            if server_code(error) not in _UNKNOWN_TO_SERVER:
                raise
            self.publish(path, data)
        return True

    def abandon_uploads(self) -> int:
        """End what others are sending below this folder and have not completed; return how many uploads that were."""
        bucket_and_key = self._bucket_and_key("")
        prefix = f"{bucket_and_key['Key']}/" if bucket_and_key["Key"] else ""
        marker: dict[str, str] = {}
        count = 0
        while True:
            page = self._call("list_multipart_uploads", 0, Bucket=bucket_and_key["Bucket"], Prefix=prefix, **marker)
            for upload in page.get("Uploads", ()):
                named = {"Bucket": bucket_and_key["Bucket"], "Key": upload["Key"], "UploadId": upload["UploadId"]}
                with suppress(FileNotFoundError):
                    self._call("abort_multipart_upload", 0, **named)
                count += 1
            if not page.get("IsTruncated"):
                return count
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _read_tagged(self, path: str) -> tuple[bytes, str]:
        """Return the bytes of a small file and their etag, in one request."""
        from fsspec.asyn import sync

        filesystem, _ = self._at(path)
        target = self._bucket_and_key(path)

        async def read() -> tuple[bytes, str]:
            answer = await filesystem._call_s3("get_object", **target, **filesystem.req_kw)
            async with answer["Body"] as body:
                return bytes(await body.read()), str(answer["ETag"])

        data, etag = sync(filesystem.loop, read, **self.moving(0))
        return data, etag

    def _bucket_and_key(self, path: str) -> dict[str, str]:
        filesystem, target = self._at(path)
        bucket, key, _ = filesystem.split_path(target)
        return {"Bucket": bucket, "Key": key}

    def _call(self, method: str, num_bytes: int, **arguments: Any) -> Any:
        """Ask the server, within the time of a try that moves so many bytes."""
        return self._at("")[0].call_s3(method, **arguments, **self.moving(num_bytes))


def _complete(data: bytes, num_bytes: int) -> bytes:
    if len(data) < num_bytes:
        raise OSError(errno.EIO, f"{len(data)} of {num_bytes} bytes arrived")
    return data


def _stored(path: str, info: Mapping[str, Any]) -> StoredFile:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return StoredFile(path, int(info["size"]), str(etag).strip('"'))
    changed = next((info[key] for key in _TIME_KEYS if info.get(key)), "")
    if hasattr(changed, "timestamp"):
        changed = changed.timestamp()
    version = str(int(changed * 1e9)) if isinstance(changed, float | int) else str(changed)
    return StoredFile(path, int(info["size"]), version)
