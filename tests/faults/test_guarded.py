"""A process that was paused between its look and its write changes nothing any more, on disks and on two S3 servers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import s3fs

from pipeline.errors import OwnershipLostError, StorageError, UploadAbandonedError
from pipeline.run.ownership import HEARTBEAT_PATH, Ownership, Ticker
from pipeline.storage import Folder, RetryPolicy

QUICK = RetryPolicy(waits_s=(0.01,) * 3)


class NoTicker(Ticker):
    def start(self, beat):
        pass


@pytest.fixture
def gateway(s3):
    """The gateway of JuiceFS, which honours no condition."""
    return s3.url("guarded"), s3.options


@pytest.fixture(params=["moto", "gateway"])
def remote(request, tmp_path):
    """A folder on one of the two servers."""
    return _remote(request, tmp_path)


@pytest.fixture(params=["local", "moto", "gateway"])
def folder(request, tmp_path):
    """A folder on a disk or on one of the two servers."""
    if request.param == "local":
        return Folder(str(tmp_path), retries=QUICK)
    return _remote(request, tmp_path)


def _remote(request, tmp_path):
    url, options = request.getfixturevalue(request.param)
    return Folder(f"{url}/{tmp_path.name}", options, QUICK)


def test_guarded_files_stand_all_after_the_question(folder):
    seen = []
    contents = {"a": b"1", "b/c": b"22", "d": b"3" * 100_000}
    folder.publish_guarded(contents, lambda: seen.append(folder.list_names("b")))
    assert [[name for name in names if not name.endswith(".tmp")] for names in seen] == [[]]
    assert {path: folder.read(path) for path in contents} == contents
    folder.publish_guarded({"a": b"new"}, lambda: None)
    assert folder.read("a") == b"new"


def test_nothing_is_seen_and_nothing_left_where_the_answer_is_no(folder):
    folder.publish("a", b"old")

    def no():
        raise OwnershipLostError("no")

    with pytest.raises(OwnershipLostError):
        folder.publish_guarded({"a": b"new", "b": b"new"}, no)
    assert folder.read("a") == b"old"
    assert [file.path for file in folder.list_files() if not file.path.startswith("runs/")] == ["a"]
    assert folder.abandon_uploads() == 0


def test_deletions_are_asked_for_batch_by_batch(folder):
    paths = [f"f{n:03}" for n in range(250)]
    for path in paths:
        folder.publish(path, b"x")
    asked = []

    def twice():
        asked.append(len(folder.list_names()))
        if len(asked) == 3:
            raise OwnershipLostError("no")

    with pytest.raises(OwnershipLostError):
        folder.delete_guarded(paths, twice)
    assert [name for name in folder.list_names() if name != "runs"] == paths[200:]


def test_an_upload_that_another_run_ended_never_appears(remote):
    """Paused right after its look; the other one takes over and publishes; then it wakes."""
    remote.publish("dataset.json", b"old")

    def another_takes_over():
        assert remote.abandon_uploads() == 1
        remote.publish("dataset.json", b"newer")

    with pytest.raises((UploadAbandonedError, StorageError)):
        remote.publish_guarded({"dataset.json": b"late"}, another_takes_over)
    assert remote.read("dataset.json") == b"newer"


def test_uploads_of_other_folders_are_left_alone(remote):
    neighbour = Folder(f"{remote.url}2", remote.options, QUICK)

    def another_cleans_up():
        assert remote.abandon_uploads() == 0

    neighbour.publish_guarded({"a": b"1"}, another_cleans_up)
    assert neighbour.read("a") == b"1"


def test_whoever_was_paused_learns_it_by_name(remote):
    """The same with two owners: the first one's write ends with the code for incomplete, whatever the server says."""
    first = Ownership(remote, "first", ticker=NoTicker())
    second = Ownership(remote, "second", "take_over", ticker=NoTicker())
    with first.held() as owner:
        owner.publish({"dataset.json": b"old"})
        look = owner.make_sure
        ends = []

        def paused_after_its_look():
            look()
            if not ends:
                ends.append(second.held())
                ends[0].__enter__().publish({"dataset.json": b"newer"})

        owner.make_sure = paused_after_its_look
        with pytest.raises(OwnershipLostError, match="second") as caught:
            owner.publish({"dataset.json": b"late"})
        assert caught.value.exit_code == 75
        ends[0].__exit__(None, None, None)
    assert remote.read("dataset.json") == b"newer"
    assert not remote.exists(HEARTBEAT_PATH)


def test_swap_replaces_only_what_it_knows(folder):
    assert folder.swap("a", None, b"1")
    assert not folder.swap("a", None, b"other")
    assert not folder.swap("a", b"0", b"other")
    assert folder.swap("a", b"1", b"2")
    assert folder.read("a") == b"2"
    assert not folder.swap("a", b"1", None)
    assert folder.swap("a", b"2", None)
    assert not folder.exists("a")


def test_of_many_who_swap_at_once_one_wins(moto, tmp_path):
    """On a disk and on a server that heeds If-Match; the gateway lets the last one win."""
    for folder in (Folder(str(tmp_path), retries=QUICK), Folder(f"{moto[0]}/{tmp_path.name}", moto[1], QUICK)):
        for standing in (None, b"first"):
            if standing is not None:
                folder.publish("a", standing)
            won, gate = [], threading.Barrier(6)

            def swap(n, folder=folder, standing=standing, won=won, gate=gate):
                gate.wait()
                if folder.swap("a", standing, f"writer {n}".encode()):
                    won.append(f"writer {n}".encode())

            threads = [threading.Thread(target=swap, args=(n,)) for n in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert won == [folder.read("a")]
            folder.delete("a")


PAUSED = """
import sys
from pipeline.storage import Folder

def look():
    print("looks", flush=True)
    sys.stdin.readline()

Folder(sys.argv[1]).publish_guarded({"a": b"late"}, look)
print("done", flush=True)
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_lock_outlives_a_pause_and_ends_with_its_process(tmp_path, is_killed):
    paused = subprocess.Popen(
        [sys.executable, "-c", PAUSED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert paused.stdout.readline() == b"looks\n"
    order = []
    other = threading.Thread(
        target=lambda: Folder(str(tmp_path)).publish_guarded({"a": b"newer"}, lambda: order.append("other looks"))
    )
    other.start()
    time.sleep(0.3)
    assert order == []
    if is_killed:
        paused.kill()
    else:
        paused.communicate(b"\n")
    other.join(20)
    paused.wait()
    assert order == ["other looks"]
    assert (tmp_path / "a").read_bytes() == b"newer"


def test_parts_that_a_killed_run_left_are_ended_by_the_next_owner(remote):
    """An upload that was begun and never completed: whoever owns the output next, `clean` too, ends it."""
    filesystem = s3fs.S3FileSystem(**remote.options)
    bucket, _, key = remote.url_of("parquet/train/large.parquet").removeprefix("s3://").partition("/")
    filesystem.call_s3("create_multipart_upload", Bucket=bucket, Key=key)

    def num_left():
        return len(filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", ()))

    assert num_left() == 1
    with Ownership(remote, "next", ticker=NoTicker()).held():
        assert num_left() == 0
