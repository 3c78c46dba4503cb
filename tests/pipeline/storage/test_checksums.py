from __future__ import annotations

import errno
import hashlib
import os
import time

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Folder, InputRoot, RetryPolicy, StoredFile, open_inputs, with_checksums
from pipeline.storage.files import LocalFiles

BLOCK_BYTES = 1000


@pytest.fixture
def contents(tmp_path):
    """Files in two folders, empty, smaller, as large as and larger than a block."""
    found = {f"{folder}/{size:05}.bin": os.urandom(size) for folder in "ab" for size in (0, 1, 999, 1000, 1001, 12_345)}
    for path, data in found.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    return found


def nothing(path):
    pass


@pytest.mark.parametrize("files_ahead", [1, 2, 1024])
def test_with_checksums_hashes_every_file_of_every_input(contents, tmp_path, files_ahead):
    roots = open_inputs([f"{tmp_path}/a", f"{tmp_path}/b"], ())
    told = []
    checked = with_checksums(roots, told.append, block_bytes=BLOCK_BYTES, files_ahead=files_ahead)
    found = {f"{'ab'[int(root.name)]}/{file.path}": file.checksum for root in checked for file in root.files}
    assert found == {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
    assert told == [file.path for root in roots for file in root.files]
    plain = [StoredFile(file.path, file.num_bytes, file.version) for root in checked for file in root.files]
    assert plain == [file for root in roots for file in root.files]


def test_with_checksums_reads_object_storage(contents, tmp_path, s3):
    folder = Folder(s3.url("checksums/a"), s3.options)
    for path, data in contents.items():
        folder.publish(path, data)
    (root,) = with_checksums(open_inputs([folder.url], (), s3.options), nothing, block_bytes=BLOCK_BYTES)
    assert {file.path: file.checksum for file in root.files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in contents.items()
    }


def test_with_checksums_tries_again(contents, tmp_path, monkeypatch):
    read_range, failed = LocalFiles.read_range, set()

    def fail_once(self, path, start, stop):
        if (path, start) not in failed:
            failed.add((path, start))
            raise OSError(errno.EIO, "bad weather")
        return read_range(self, path, start, stop)

    monkeypatch.setattr(LocalFiles, "read_range", fail_once)
    folder = Folder(f"{tmp_path}/a", retries=RetryPolicy(sleep=lambda wait_s: None))
    roots = [InputRoot("", folder, tuple(folder.list_files()), 0)]
    (root,) = with_checksums(roots, nothing, block_bytes=BLOCK_BYTES)
    assert {path for path, _ in failed} == {file.path for file in root.files if file.num_bytes}
    assert root.files[-1].checksum == hashlib.sha256(contents["a/12345.bin"]).hexdigest()


@pytest.mark.parametrize("change", ["shorter", "gone", "folder"])
def test_with_checksums_refuses_a_file_that_changed_since_it_was_listed(contents, tmp_path, change):
    roots, path = open_inputs([f"{tmp_path}/a"], ()), tmp_path / "a" / "12345.bin"
    if change == "shorter":
        path.write_bytes(b"x" * 10_500)
    else:
        path.unlink()
    if change == "folder":
        path.mkdir()
    with pytest.raises(StorageError, match=r"12345\.bin.*run the same command again"):
        with_checksums(roots, nothing, block_bytes=BLOCK_BYTES)


class SlowFolder(Folder):
    def read_range(self, path, start, stop):
        time.sleep(0.01)
        return bytes(stop - start)


def test_with_checksums_ends_soon_when_it_is_stopped():
    files = (StoredFile("small", 10, ""), *(StoredFile(f"large{n}", 1_000_000, "") for n in range(50)))
    begin = time.monotonic()

    def stop(path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_checksums([InputRoot("", SlowFolder("nowhere"), files, 0)], stop, block_bytes=BLOCK_BYTES)
    assert time.monotonic() - begin < 3  # one of the large files alone takes ten seconds
