"""Increments by content (`input.checksum`): equal content is not encoded again, changed content always is."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.executors.executor import Executor
from pipeline.job.request import prepare
from pipeline.run.observer import JobObserver
from pipeline.settings.job_config import TokenizeRequest, load_config
from pipeline.stages.read import UnitReader
from pipeline.storage import Folder

CHECKSUM = ("--set", "input.checksum=true")
NUM_CLIPS = 6


@pytest.fixture
def motion(tools, tmp_path):
    (tmp_path / "motion" / "below").mkdir(parents=True)
    for n in range(NUM_CLIPS):
        data = tools.npz_bytes(motion=tools.tiny_motion(n, 20 + 5 * n), fps=25)
        (tmp_path / "motion" / ("below" if n % 2 else "") / f"clip{n}.npz").write_bytes(data)
    return tmp_path / "motion"


@pytest.fixture
def tokenize(command, motion, tiny_codec, tmp_path):
    """Run the job on `motion` into `tokens`, one unit a file, and return how many units were encoded."""

    def run(*extra, motion=motion, output="tokens", code=0):
        sets = ("--set", "units.files=1", "--set", "export.splits.ratios={train: 1}")
        before = records(tmp_path / output)
        outcome = command("tokenize", motion, tmp_path / output, "-c", tiny_codec, *sets, *extra, "--local")
        assert outcome.code == code, outcome.text
        new = records(tmp_path / output) - before
        assert ("already complete" in outcome.text) == (code == 0 and not new)
        return sum(json.loads(path.read_text())["counts"].get("units", 0) for path in new)

    return run


def records(output):
    return set(output.glob("runs/*/run.json"))


def touch_all(folder):
    for path in folder.rglob("*.npz"):
        os.utime(path, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))


def write_as_old(path, data):
    """Put other content into a file, and leave it its size and time."""
    stamp = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)


@pytest.mark.parametrize(("settings", "encoded"), [(CHECKSUM, 0), ((), NUM_CLIPS)])
def test_touched_files_are_not_encoded_again(tokenize, motion, settings, encoded):
    assert tokenize(*settings) == NUM_CLIPS
    assert tokenize(*settings) == 0
    touch_all(motion)
    assert tokenize(*settings) == encoded


@pytest.mark.parametrize(("settings", "encoded"), [(CHECKSUM, 0), ((), NUM_CLIPS)])
def test_copied_files_are_not_encoded_again(tokenize, motion, tmp_path, settings, encoded):
    assert tokenize(*settings) == NUM_CLIPS
    shutil.copytree(motion, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    shutil.copytree(tmp_path / "tokens", tmp_path / "copy")
    assert tokenize(*settings, motion=tmp_path / "elsewhere", output="copy") == encoded


@pytest.mark.parametrize(("settings", "encoded"), [(CHECKSUM, 1), ((), 0)])
def test_content_changed_under_the_same_size_and_time_is_encoded_again(
    command, tokenize, motion, tools, tiny_codec, tmp_path, settings, encoded
):
    assert tokenize(*settings) == NUM_CLIPS
    write_as_old(motion / "clip2.npz", tools.npz_bytes(motion=tools.tiny_motion(77, 30), fps=25))
    assert tokenize(*settings) == encoded
    deep = command("verify", tmp_path / "tokens", motion, "--deep", 1000, "-c", tiny_codec)
    assert deep.code == 1 - encoded, deep.text
    if encoded:
        assert tokenize(output="fresh") == NUM_CLIPS
        assert (tmp_path / "fresh/dataset.json").read_bytes() == (tmp_path / "tokens/dataset.json").read_bytes()


def test_checksums_change_no_promised_byte_and_switching_encodes_again(tokenize, tools, tmp_path):
    assert tokenize() == NUM_CLIPS
    before = tools.tree_of(tmp_path / "tokens")
    assert tokenize(*CHECKSUM) == NUM_CLIPS
    assert tools.tree_of(tmp_path / "tokens") == before
    assert len(list(tmp_path.glob("tokens/_store/*"))) == 1
    assert tokenize() == 0
    assert tokenize(*CHECKSUM) == 0


def test_a_stopped_run_is_continued_whatever_was_touched(tokenize, motion, tools, tmp_path):
    assert tokenize(*CHECKSUM, output="reference") == NUM_CLIPS
    assert tokenize(*CHECKSUM, "--max-runtime", "0s", code=75) == 0
    assert tokenize(*CHECKSUM) == NUM_CLIPS
    for path in sorted(tmp_path.glob("tokens/_store/*/fragments/*/*"))[:2]:
        path.unlink()
    (tmp_path / "tokens/dataset.json").unlink()
    touch_all(motion)
    assert tokenize(*CHECKSUM) == 2
    assert tools.tree_of(tmp_path / "tokens") == tools.tree_of(tmp_path / "reference")


def upload(s3, url, path, num_parts=None):
    """Put a file there in one request, or in parts: then the etag is another one."""
    from s3fs import S3FileSystem

    files = S3FileSystem(use_listings_cache=False, **s3.options)
    if num_parts is None:
        files.pipe_file(url, path.read_bytes())
    else:
        bucket, key, _ = files.split_path(url)
        begun = files.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
        where = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}
        part = files.call_s3("upload_part", **where, PartNumber=1, Body=path.read_bytes())
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        files.call_s3("complete_multipart_upload", **where, MultipartUpload=parts)
    return files.info(url)["ETag"]


@pytest.mark.parametrize(("settings", "encoded"), [(CHECKSUM, 0), ((), NUM_CLIPS)])
def test_input_uploaded_again_is_not_encoded_again(tokenize, motion, tmp_path, s3, settings, encoded):
    url = s3.url(f"checksum/{tmp_path.name}")
    paths = sorted(motion.rglob("*.npz"))
    etags = [upload(s3, f"{url}/{path.relative_to(motion)}", path) for path in paths]
    assert tokenize(*settings, motion=url) == NUM_CLIPS
    again = [upload(s3, f"{url}/{path.relative_to(motion)}", path, num_parts=1) for path in paths]
    assert not set(etags) & set(again)
    assert tokenize(*settings, motion=url) == encoded


def test_with_ray_units_carry_what_was_listed(command, motion, tiny_codec, tools, tmp_path, ray_local):
    arguments = ("-c", tiny_codec, "--set", "units.files=1", *CHECKSUM)
    assert command("tokenize", motion, tmp_path / "local", *arguments, "--local").code == 0
    outcome = command("tokenize", motion, tmp_path / "ray", *arguments)
    assert outcome.code == 0, outcome.text
    assert tools.tree_of(tmp_path / "ray") == tools.tree_of(tmp_path / "local")
    touch_all(motion)
    assert "already complete" in command("tokenize", motion, tmp_path / "ray", *arguments).text


@pytest.mark.parametrize("when", ["read", "hashed"])
def test_a_file_that_changes_between_plan_and_read_is_caught(tokenize, motion, tools, tmp_path, monkeypatch, when):
    """Changed after it was hashed, or between listing and hash: in both cases what was listed is gone."""
    other = tools.npz_bytes(motion=tools.tiny_motion(77, 30), fps=25)
    raw_clips, list_files = UnitReader.raw_clips, Folder.list_files

    def change_and_read(reader, unit):
        (motion / "clip2.npz").write_bytes(other)
        return raw_clips(reader, unit)

    def list_and_change(folder, prefix=""):
        listed = list_files(folder, prefix)
        if folder.url == str(motion):
            (motion / "clip2.npz").write_bytes(other)
        return listed

    if when == "read":
        monkeypatch.setattr(UnitReader, "raw_clips", change_and_read)
    else:
        monkeypatch.setattr(Folder, "list_files", list_and_change)
    tokenize(*CHECKSUM, code=75)
    assert not (tmp_path / "tokens/dataset.json").exists()
    monkeypatch.undo()
    assert tokenize(*CHECKSUM) >= 1
    assert tokenize(*CHECKSUM, output="fresh") == NUM_CLIPS
    assert tools.tree_of(tmp_path / "tokens") == tools.tree_of(tmp_path / "fresh")


def test_a_file_of_many_units_is_hashed_once(tokenize, tmp_path, monkeypatch):
    (tmp_path / "large").mkdir()
    motion = pa.array(np.random.default_rng(0).normal(size=(40, 50, 4)).tolist(), pa.list_(pa.list_(pa.float32(), 4)))
    table = pa.table({"clip_id": [f"c{n}" for n in range(40)], "motion": motion, "fps": [25.0] * 40})
    pq.write_table(table, tmp_path / "large/a.parquet", row_group_size=4, compression="none")
    read, read_range = Counter(), Folder.read_range  # of local files, nothing but checksums reads ranges

    def counted(folder, path, start, stop):
        read[path, start, stop] += 1
        return read_range(folder, path, start, stop)

    monkeypatch.setattr(Folder, "read_range", counted)
    assert tokenize(*CHECKSUM, "--set", "units.bytes=5000", motion=tmp_path / "large") >= 10
    num_bytes = (tmp_path / "large/a.parquet").stat().st_size
    assert {ends: count for ends, count in read.items() if ends[0] == "a.parquet"} == {("a.parquet", 0, num_bytes): 1}


def test_replay_reads_quarantined_clips_again(command, tokenize, motion, tools, tiny_codec, tmp_path):
    whole = (motion / "clip2.npz").read_bytes()
    (motion / "clip2.npz").write_bytes(b"no zip")
    (motion / "clip4.npz").write_bytes(b"no zip, either")
    assert tokenize(*CHECKSUM) == NUM_CLIPS
    (motion / "clip2.npz").write_bytes(whole)
    touch_all(motion)
    before = records(tmp_path / "tokens")
    sets = ("--set", "units.files=1", "--set", "export.splits.ratios={train: 1}")
    outcome = command("replay", tmp_path / "tokens", motion, "-c", tiny_codec, *sets, *CHECKSUM, "--local")
    assert outcome.code == 0, outcome.text
    assert "1 units are read again" in outcome.text
    assert "came back 1 clips clip2 still quarantined 1 unreadable" in outcome.text
    (record,) = records(tmp_path / "tokens") - before
    assert json.loads(record.read_text())["counts"]["units"] == 2
    deep = command("verify", tmp_path / "tokens", motion, "--deep", 1000, "-c", tiny_codec, *CHECKSUM)
    assert (deep.code, "bit for bit" in deep.text) == (0, True), deep.text


def test_prepare_tells_of_the_files_that_it_reads(motion, tiny_codec, tmp_path):
    class Watcher(JobObserver):
        def __init__(self):
            self.seen = []

        def on_stage(self, name):
            self.seen.append(name)

        def on_layout(self, num_shards, num_windows):
            self.seen.append(num_shards)

        def on_shard(self, path):
            self.seen.append(path)

    nothing = lambda *args: None  # noqa: E731
    here = lambda ask: ask()  # noqa: E731
    executor = Executor("local", nothing, nothing, nothing, nothing, nothing, here, (1.0,), 0.0)
    config = load_config(None, ["input.checksum=true"])
    watcher = Watcher()
    prepare(
        TokenizeRequest((str(motion),), str(tmp_path / "o"), str(tiny_codec), None, None, config), executor, watcher
    )
    paths = sorted(path.relative_to(motion).as_posix() for path in motion.rglob("*.npz"))
    assert watcher.seen == ["checksums", NUM_CLIPS, *paths, "plan"]
