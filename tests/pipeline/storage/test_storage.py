from __future__ import annotations

import errno
import os
import pickle
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import s3fs

from pipeline.errors import InputFormatError, InputNotFoundError, RequestError, StorageError
from pipeline.storage import Folder, RetryPolicy, open_inputs, read_bytes, read_text
from pipeline.storage.retries import RETRY_WAITS_S, with_retries

SUFFIXES = (".parquet", ".tar", ".npz", ".npy")


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path))
    if request.param == "memory":
        return Folder(f"memory://{tmp_path.name}")
    server = request.getfixturevalue("s3")
    return Folder(server.url(f"storage/{tmp_path.name}"), server.options)


@pytest.fixture
def waits() -> list[float]:
    """What `noting` was to wait, in seconds."""
    return []


@pytest.fixture
def noting(waits: list[float]) -> RetryPolicy:
    """A policy that notes its waits and does not wait."""
    return RetryPolicy(sleep=waits.append)


def assert_jittered(waits: list[float], means: Sequence[float]) -> None:
    assert len(waits) == len(means)
    assert all(0.5 * mean <= wait <= 1.5 * mean for wait, mean in zip(waits, means, strict=True))


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def test_folder_round_trip(folder: Folder) -> None:
    folder.publish("a/b.bin", b"0123456789")
    folder.publish("a/c/d.bin", memoryview(b"abc"))
    folder.publish("e.bin", b"")

    assert folder.read("a/b.bin") == b"0123456789"
    assert folder.read_range("a/b.bin", 2, 5) == b"234"
    assert folder.read_range("a/b.bin", 8, 99) == b"89"
    assert folder.read_range("a/b.bin", 3, 3) == b""
    assert [(file.path, file.num_bytes) for file in folder.list_files()] == [
        ("a/b.bin", 10),
        ("a/c/d.bin", 3),
        ("e.bin", 0),
    ]
    assert [file.path for file in folder.list_files("a")] == ["a/b.bin", "a/c/d.bin"]
    assert [file.path for file in folder.child("a").list_files()] == ["b.bin", "c/d.bin"]
    assert folder.list_names() == ["a", "e.bin"]
    assert folder.list_names("a") == ["b.bin", "c"]
    assert folder.url_of("a/b.bin") == f"{folder.url}/a/b.bin"


def test_folder_publish_replaces_and_changes_version(folder: Folder) -> None:
    folder.publish("a.bin", b"old")
    before = folder.stat("a.bin")
    folder.publish("a.bin", b"newer")
    after = folder.stat("a.bin")

    assert before is not None
    assert after is not None
    assert folder.read("a.bin") == b"newer"
    assert (after.path, after.num_bytes) == ("a.bin", 5)
    assert before.version != after.version
    assert folder.list_files() == [after]


def test_folder_missing_files(folder: Folder) -> None:
    folder.publish("a/b.bin", b"1")
    for read in (folder.read, folder.open, lambda path: folder.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("a/none.bin")
    assert folder.stat("a/none.bin") is None
    assert folder.stat("a/b.bin/c") is None
    assert folder.stat("a") is None
    assert not folder.exists("none/none.bin")
    assert folder.list_files("none") == []
    assert folder.list_names("none") == []
    folder.delete("a/none.bin")


def test_folder_delete_removes(folder: Folder) -> None:
    folder.publish("a.bin", b"1")
    folder.delete("a.bin")
    assert not folder.exists("a.bin")
    assert folder.list_files() == []


def test_folder_list_sees_new_files_at_once(folder: Folder) -> None:
    other = Folder(folder.url, folder.options)
    for index in range(3):
        other.publish(f"{index}.bin", b"1")
        assert len(folder.list_files()) == index + 1


def test_folder_open_seeks_and_reads_past_a_block(folder: Folder) -> None:
    data = bytes(range(256)) * 40
    folder.publish("a.bin", data)
    with folder.open("a.bin", block_bytes=1000) as file:
        assert file.seek(0, os.SEEK_END) == len(data)
        assert file.read(1) == b""
        file.seek(5000)
        assert file.read(2500) == data[5000:7500]
        file.seek(-10, os.SEEK_CUR)
        assert file.read(20) == data[7490:7510]
        file.seek(-3, os.SEEK_END)
        assert file.read() == data[-3:]
        file.seek(0)
        assert file.read() == data


def test_folder_pickles_after_use(folder: Folder) -> None:
    folder.publish("a.bin", b"1")
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.url == folder.url
    assert copy.read("a.bin") == b"1"


def test_folder_local_path(tmp_path: Path) -> None:
    assert Folder(str(tmp_path)).local_path("a.bin") == str(tmp_path / "a.bin")
    assert Folder(f"file://{tmp_path}").local_path("a.bin") == str(tmp_path / "a.bin")
    assert Folder("s3://bucket/prefix").local_path("a.bin") is None


def test_folder_relative_url_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder("data")
    monkeypatch.chdir("/")
    assert folder.url == str(tmp_path / "data")


def test_folder_lists_links_without_going_round(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.npz")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "up").symlink_to("..")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert [file.path for file in Folder(str(tmp_path)).list_files()] == ["link/a.npz", "real/a.npz"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_publish_leaves_nothing_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noting: RetryPolicy, waits: list[float], moment: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = Folder(str(tmp_path), retries=noting)
    folder.publish("a/b.bin", b"old")
    monkeypatch.setattr(*((os, "fsync", fail) if moment == "fsync" else (Path, "replace", fail)))
    with pytest.raises(StorageError, match="free space"):
        folder.publish("a/b.bin", b"new")
    assert folder.read("a/b.bin") == b"old"
    assert folder.list_names("a") == ["b.bin"]
    assert waits == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    target = tmp_path / "disk"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(target)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("hardware: no right to mount a small disk, as root has")
    yield target
    subprocess.run(["umount", str(target)], check=True)


@pytest.mark.parametrize("verb", ["publish", "publish_new"])
def test_publish_on_a_full_disk_says_so_and_leaves_nothing(
    small_disk: Path, noting: RetryPolicy, waits: list[float], verb: str
) -> None:
    folder = Folder(str(small_disk), retries=noting)
    folder.publish("a/b.bin", b"old")
    with pytest.raises(StorageError, match=r"cannot write .*a/c\.bin: OSError: No space left on device; free space"):
        getattr(folder, verb)("a/c.bin", bytes(2 << 20))
    assert folder.list_names("a") == ["b.bin"]
    assert waits == []
    getattr(folder, verb)("a/c.bin", bytes(1 << 19))
    assert folder.list_names("a") == ["b.bin", "c.bin"]


def test_publish_new_leaves_the_first(folder: Folder) -> None:
    assert folder.publish_new("a/b.bin", b"first")
    assert not folder.publish_new("a/b.bin", memoryview(b"second"))
    assert not folder.publish_new("a/b.bin", b"first")
    assert folder.read("a/b.bin") == b"first"
    assert folder.list_names("a") == ["b.bin"]
    folder.delete("a/b.bin")
    assert folder.publish_new("a/b.bin", memoryview(b"second"))
    assert folder.read("a/b.bin") == b"second"


def test_publish_makes_readable_files(tmp_path: Path) -> None:
    touch(tmp_path, "plain.bin")
    Folder(str(tmp_path)).publish("a.bin", b"1")
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "plain.bin").stat().st_mode


def test_publish_into_missing_bucket_is_refused(s3: Any) -> None:
    folder = Folder("s3://no-such-bucket/x", s3.options)
    with pytest.raises(FileNotFoundError):
        folder.publish("a.bin", b"1")
    assert folder.list_files() == []


def test_list_files_beyond_one_page(s3: Any) -> None:
    folder = Folder(s3.url("many/files"), s3.options)
    filesystem = s3fs.S3FileSystem(use_listings_cache=False, **s3.options)
    filesystem.pipe({f"many/files/{index:04d}.npy": b"1" for index in range(1010)}, batch_size=32)
    listed = folder.list_files()
    assert [file.path for file in listed] == [f"{index:04d}.npy" for index in range(1010)]
    assert listed[7] == folder.stat("0007.npy")


def test_publish_multipart_on_s3(s3: Any) -> None:
    folder = Folder(s3.url("storage/multipart"), s3.options)
    data = os.urandom(1 << 20) * 101
    folder.publish("large.bin", data)
    assert folder.read("large.bin") == data
    assert folder.list_files() == [folder.stat("large.bin")]


def test_folder_takes_endpoint_and_keys_from_environment(s3: Any) -> None:
    Folder(s3.url("storage/env"), s3.options).publish("a.bin", b"1")
    assert Folder("s3://storage/env").read("a.bin") == b"1"


def test_folder_wrong_keys_are_storage_error_without_keys_in_it(s3: Any) -> None:
    s3.url("storage/x")
    options = {**s3.options, "key": "wrong-access", "secret": "wrong-secret-key"}
    with pytest.raises(StorageError, match="check credentials") as caught:
        Folder("s3://storage/x", options).list_files()
    assert "wrong-" not in str(caught.value)
    assert "s3://storage/x" in str(caught.value)


def test_folder_unreachable_server_is_storage_error(noting: RetryPolicy, waits: list[float]) -> None:
    options = {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"},
        "config_kwargs": {"retries": {"max_attempts": 1}},
    }
    with pytest.raises(StorageError, match="tried 6 times"):
        Folder("s3://bucket/x", options, noting).read("a.bin")
    assert_jittered(waits, RETRY_WAITS_S)


def test_with_retries_goes_on_after_passing_errors(noting: RetryPolicy, waits: list[float]) -> None:
    errors = [TimeoutError(), OSError(errno.EIO, "Input/output error")]

    def operation() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert with_retries(operation, "read x", noting) == "done"
    assert_jittered(waits, [0.5, 1.0])


@pytest.mark.parametrize("error", [FileNotFoundError(), FileExistsError(), IsADirectoryError(), KeyError("bug")])
def test_with_retries_passes_on_what_is_not_its_business(
    error: Exception, noting: RetryPolicy, waits: list[float]
) -> None:
    def operation() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        with_retries(operation, "read x", noting)
    assert caught.value is error
    assert waits == []


def test_with_retries_message_has_no_credentials() -> None:
    def operation() -> None:
        raise PermissionError("403 at http://user:secret@host/x?X-Amz-Signature=secret, message='Forbidden'")

    with pytest.raises(StorageError, match="cannot read x: PermissionError: 403 at http://host/x") as caught:
        with_retries(operation, "read x")
    assert "secret" not in str(caught.value)


def test_folder_shows_no_credentials() -> None:
    assert repr(Folder("sftp://user:secret@host/x")) == "Folder('sftp://host/x')"
    with pytest.raises(InputNotFoundError) as caught:
        open_inputs(["memory://user:secret@host/x"], SUFFIXES)
    assert "secret" not in str(caught.value)


def test_open_inputs_folder_keeps_known_and_counts_others(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.npz", "a.PARQUET", "notes.txt", ".hidden/3.npz", "_tmp.npz", "b/_SUCCESS")
    (root,) = open_inputs([str(tmp_path)], SUFFIXES)
    assert root.name == ""
    assert [file.path for file in root.files] == ["a.PARQUET", "b/2.npz"]
    assert root.skipped == 4  # hidden ones are counted too
    (root,) = open_inputs([str(tmp_path)], ())
    assert [file.path for file in root.files] == ["a.PARQUET", "b/2.npz", "notes.txt"]


@pytest.mark.parametrize(
    ("pattern", "base", "found"),
    [
        ("speaker_*/*.npz", "", ["speaker_1/a.npz", "speaker_2/a.npz"]),
        ("speaker_1/?.npz", "speaker_1", ["a.npz"]),
        ("**/a.npz", "", ["speaker_1/a.npz", "speaker_1/deep/a.npz", "speaker_2/a.npz"]),
        ("speaker_[12]", "", ["speaker_1/a.npz", "speaker_1/deep/a.npz", "speaker_2/a.npz"]),
    ],
)
def test_open_inputs_glob(folder: Folder, pattern: str, base: str, found: list[str]) -> None:
    for path in ("speaker_1/a.npz", "speaker_1/deep/a.npz", "speaker_2/a.npz", "other/a.txt"):
        folder.publish(path, b"x")
    (root,) = open_inputs([f"{folder.url}/{pattern}"], SUFFIXES, folder.options)
    assert root.folder.url == folder.child(base).url
    assert [file.path for file in root.files] == found
    assert [root.folder.read(file.path) for file in root.files] == [b"x"] * len(found)


def test_open_inputs_file_with_wildcard_in_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "take[1].npz")
    (root,) = open_inputs([str(tmp_path / "take[1].npz")], SUFFIXES)
    assert [file.path for file in root.files] == ["take[1].npz"]


def test_open_inputs_file_named_directly(folder: Folder) -> None:
    folder.publish("a/b.npz", b"x")
    folder.publish("a/b.txt", b"x")
    (root,) = open_inputs([f"{folder.url}/a/b.npz"], SUFFIXES, folder.options)
    assert (root.name, root.skipped) == ("", 0)
    assert root.files == (folder.child("a").stat("b.npz"),)
    with pytest.raises(InputFormatError, match=r"b\.txt has no known suffix \(\.parquet"):
        open_inputs([f"{folder.url}/a/b.txt"], SUFFIXES, folder.options)
    (root,) = open_inputs([f"{folder.url}/a/b.txt"], (), folder.options)
    assert [file.path for file in root.files] == ["b.txt"]


def test_open_inputs_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.npz", "b.npz")
    a, b = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    assert [root.name for root in open_inputs([a], SUFFIXES)] == [""]
    assert [root.name for root in open_inputs([a, b], SUFFIXES)] == ["0", "1"]
    assert [root.name for root in open_inputs([f"my-set_1={a}"], SUFFIXES)] == ["my-set_1"]
    assert [root.name for root in open_inputs([f"x={a}", b], SUFFIXES)] == ["x", "1"]
    with pytest.raises(InputNotFoundError, match="two inputs are called '1'"):
        open_inputs([f"1={a}", b], SUFFIXES)


@pytest.mark.parametrize("item", ["nothing", "nothing/*.npz", "empty"])
def test_open_inputs_nothing_there(tmp_path: Path, item: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputNotFoundError, match="holds no file"):
        open_inputs([str(tmp_path / item)], SUFFIXES)


def test_open_inputs_nothing_in_missing_bucket(s3: Any) -> None:
    for url in ("s3://no-such-bucket", "s3://no-such-bucket/x", s3.url("storage") + "/nothing"):
        with pytest.raises(InputNotFoundError, match="holds no file"):
            open_inputs([url], SUFFIXES, s3.options)


def test_open_inputs_nothing_known(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.csv", "c/d")
    with pytest.raises(InputNotFoundError, match=r"holds 3 files, none with a known suffix .*: a\.txt, b\.csv, c/d"):
        open_inputs([str(tmp_path)], SUFFIXES)


def test_open_inputs_whole_bucket(s3: Any) -> None:
    Folder(s3.url("whole"), s3.options).publish("a/b.npz", b"x")
    (root,) = open_inputs(["s3://whole"], SUFFIXES, s3.options)
    assert [file.path for file in root.files] == ["a/b.npz"]


def test_open_inputs_name_that_is_no_utf8(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.npz"))).write_bytes(b"x")
    with pytest.raises(InputFormatError, match=r"caf\\udce9\.npz"):
        open_inputs([str(tmp_path)], SUFFIXES)


def test_read_text_and_bytes(folder: Folder) -> None:
    folder.publish("run.yaml", "größe: 1".encode())
    folder.publish("latin.yaml", b"gr\xf6\xdfe")
    assert read_text(folder.url_of("run.yaml"), folder.options) == "größe: 1"
    assert read_bytes(folder.url_of("latin.yaml"), folder.options) == b"gr\xf6\xdfe"
    with pytest.raises(InputNotFoundError, match=r"no file at .*none\.yaml"):
        read_text(folder.url_of("none.yaml"), folder.options)
    with pytest.raises(InputFormatError, match="not UTF-8 text"):
        read_text(folder.url_of("latin.yaml"), folder.options)


@pytest.mark.parametrize(
    "url", ["/data/o", "s3://b/o", "s3a://b/o", "gs://b/o", "az://b/o", "abfss://b/o", "oss://b/o"]
)
def test_outputs_stand_where_files_appear_whole(url: str) -> None:
    Folder(url).require_whole()


@pytest.mark.parametrize(
    "url", ["sftp://user:secret@host/o", "smb://host/o", "hdfs://host/o", "webhdfs://host/o", "ftp://h/o"]
)
def test_outputs_are_refused_where_files_appear_while_they_are_written(url: str) -> None:
    with pytest.raises(RequestError, match=r"seen while they are written.*abfs.*s3.*write there, then copy") as caught:
        Folder(url).require_whole()
    assert "secret" not in str(caught.value)


class Disk:
    """What reaches the disk, in order: names of files and folders that are synced, and moves."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        fsync, replace, link = os.fsync, Path.replace, os.link

        def note_sync(number: int) -> None:
            self.events.append(("sync", Path(f"/proc/self/fd/{number}").readlink().name))
            fsync(number)

        def note_replace(path: Path, target: Path) -> Path:
            self.events.append(("move", Path(target).name))
            return replace(path, target)

        def note_link(path: Path, target: Path) -> None:
            self.events.append(("move", Path(target).name))
            link(path, target)

        patch.setattr(os, "fsync", note_sync)
        patch.setattr(Path, "replace", note_replace)
        patch.setattr(os, "link", note_link)


@pytest.mark.parametrize("how", ["publish", "publish_new", "publish_guarded"])
def test_a_file_and_every_folder_that_names_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    disk, folder = Disk(monkeypatch), Folder(str(tmp_path / "o"))
    if how == "publish_guarded":
        folder.publish_guarded({"a/b/c": b"1"}, lambda: disk.events.append(("look", "")))
    else:
        getattr(folder, how)("a/b/c", b"1")
    events = [("sync", "file") if name.endswith(".tmp") else (kind, name) for kind, name in disk.events]
    move = events.index(("move", "c"))
    assert ("sync", "file") in events[:move]
    assert {("sync", tmp_path.name), ("sync", "o"), ("sync", "a")} <= set(events[:move])  # each names the next
    assert ("sync", "b") in events[move:]
    if how == "publish_guarded":
        assert events.index(("sync", "file")) < events.index(("look", "")) < move
