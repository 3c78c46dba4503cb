from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from pipeline.contract.drop_reasons import ClipProblem, DropReason
from pipeline.contract.specs import AudioRule
from pipeline.errors import InputFormatError, StorageError
from pipeline.plan.plan import make_plan
from pipeline.sources.clip import Part, RawClip, prepare_clip
from pipeline.sources.registry import cut_file, open_readable, read_part
from pipeline.storage import Folder

Make = Callable[..., Any]


def value_of(index: int, frames: int = 6, dims: int = 4, **others: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, motioncode=np.full((frames, dims), index, np.float16), **others)
    return sink.getvalue()


def write_lmdb(path: Path, values: Mapping[bytes, bytes], *, subdir: bool = True) -> None:
    with lmdb.open(str(path), map_size=1 << 30, subdir=subdir) as environment, environment.begin(write=True) as writing:
        for key, value in values.items():
            writing.put(key, value)


@pytest.fixture
def read(tmp_path: Path, make_corpus: Make, make_codec: Make) -> Make:
    def read_all(values: Mapping[bytes, bytes], **changes: Any) -> list[RawClip | ClipProblem]:
        write_lmdb(tmp_path / "set", values)
        folder = Folder(str(tmp_path))
        part = Part("x", "set/data.mdb", "lmdb")
        return list(read_part(folder, part, make_corpus(**{"fps": 25.0, **changes}), make_codec()))

    return read_all


def test_read_lmdb_in_order_of_keys(read: Make) -> None:
    clips = read({key: value_of(index) for index, key in enumerate((b"b", b"a/1", "ö".encode(), b"a/0"))})
    assert [(clip.clip_id, clip.source, clip.where, clip.fps) for clip in clips] == [
        (f"x/set/data#{key}", "x/set/data.mdb", f"key {key}", 25.0) for key in ("a/0", "a/1", "b", "ö")
    ]
    assert [int(clip.motion[0, 0]) for clip in clips] == [3, 1, 0, 2]


def test_read_lmdb_motion_field(read: Make) -> None:
    sink = io.BytesIO()
    np.savez(sink, motion=np.zeros((6, 4), np.float32), motioncode=np.ones((6, 4), np.float32), pose=np.ones((2, 4)))
    both = {b"k": sink.getvalue()}
    assert read(both)[0].motion[0, 0] == 0
    assert read(both, motion_field="motioncode")[0].motion[0, 0] == 1
    assert read(both, motion_field="pose")[0].motion.shape == (2, 4)
    (problem,) = read({b"k": value_of(1)}, motion_field="pose")
    assert (problem.reason, "no key 'pose'" in problem.detail) == (DropReason.MISSING_FIELD, True)


def test_read_lmdb_columns_and_audio(read: Make, make_corpus: Make, make_codec: Make) -> None:
    audio = (np.arange(9600) % 100 / 100).astype(np.float32)
    clips = read({b"k": value_of(1, frames=15, dims=112, audio=audio)}, audio=rule())
    columns = (*range(104), 106, 107, 109, 110)
    corpus = make_corpus(columns=columns, audio=rule(), fps=25.0)
    clip = prepare_clip(clips[0], corpus, make_codec(motion_dim=108))
    assert clip.motion.shape == (15, 108)
    np.testing.assert_array_equal(clip.audio.samples, np.rint(audio.astype(np.float64) * 32768).astype(np.int16))


def rule() -> AudioRule:
    return AudioRule(field="audio", rate_hz=16_000, mode="cut", encoding="int16", tolerance_s=0.1)


def test_read_lmdb_hostile_values_are_problems_between_good_clips(read: Make) -> None:
    pickled = io.BytesIO()
    np.savez(pickled, motioncode=np.array([{"a": 1}], object))
    bomb = io.BytesIO()
    np.savez_compressed(bomb, motioncode=np.zeros((20 << 20, 4), np.float32))
    whole = value_of(1)
    values = {
        b"0 good": whole,
        b"1 empty": b"",
        b"2 words": b"motion",
        b"3 cut": whole[: len(whole) // 2],
        b"4 pickled": pickled.getvalue(),
        b"5 bomb": bomb.getvalue(),
        b"6 no motion": npz_without_motion(),
        b"7 \xff": whole,
        b"8 \x01": whole,
        b"9 good": whole,
    }
    found = read(values)
    reasons = [clip.reason if isinstance(clip, ClipProblem) else "" for clip in found]
    assert reasons == [
        "",
        DropReason.UNREADABLE,
        DropReason.UNREADABLE,
        DropReason.TRUNCATED,
        DropReason.UNREADABLE,
        DropReason.UNREADABLE,
        DropReason.MISSING_FIELD,
        DropReason.BAD_CLIP_ID,
        DropReason.BAD_CLIP_ID,
        "",
    ]
    assert found[7].clip_id == "x/set/data#7 \\udcff"
    assert found[3].where == "key 3 cut"
    assert "promises" in found[5].detail


def npz_without_motion() -> bytes:
    sink = io.BytesIO()
    np.savez(sink, other=np.zeros(3))
    return sink.getvalue()


@pytest.mark.parametrize("unit_bytes", [1, 1000, 5000, 10_000_000])
def test_cut_file_covers_every_key_once(tmp_path: Path, make_corpus: Make, make_codec: Make, unit_bytes: int) -> None:
    write_lmdb(tmp_path / "set", {b"%03d" % index: value_of(index, frames=40) for index in range(50)})
    folder = Folder(str(tmp_path))
    file = folder.stat("set/data.mdb")
    corpus = make_corpus(unit_bytes=unit_bytes)
    parts = cut_file(folder, "", file, corpus)
    clips = [clip for part in parts for clip in read_part(folder, part, corpus, make_codec())]
    assert [clip.clip_id for clip in clips] == [f"set/data#{index:03}" for index in range(50)]
    assert [int(clip.motion[0, 0]) for clip in clips] == list(range(50))
    if unit_bytes == 1:
        assert len(parts) == 50
    if unit_bytes == 5000:
        assert 3 < len(parts) < 50


def test_one_environment_serves_many_readers_at_once(tmp_path: Path, make_corpus: Make, make_codec: Make) -> None:
    write_lmdb(tmp_path / "set", {b"%03d" % index: value_of(index) for index in range(200)})
    folder, corpus, codec = Folder(str(tmp_path)), make_corpus(), make_codec()
    parts = [Part("", "set/data.mdb", "lmdb", start, start + 10) for start in range(0, 200, 10)]

    def values(part: Part) -> list[int]:
        return [int(clip.motion[0, 0]) for clip in read_part(folder, part, corpus, codec)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(values, parts))
    assert found == [list(range(start, start + 10)) for start in range(0, 200, 10)]
    half_read = read_part(folder, parts[0], corpus, codec)
    next(half_read)
    assert values(parts[1]) == list(range(10, 20))
    half_read.close()
    write_lmdb(tmp_path / "set", {b"000": value_of(7)})
    assert values(parts[0])[0] == 7


def test_reading_leaves_the_folder_as_it_was(tmp_path: Path, make_corpus: Make, make_codec: Make) -> None:
    write_lmdb(tmp_path / "set", {b"k": value_of(1)})
    (tmp_path / "set" / "lock.mdb").unlink()
    (tmp_path / "set" / "data.mdb").chmod(0o444)
    folder = Folder(str(tmp_path))
    before = folder.stat("set/data.mdb")
    assert len(list(read_part(folder, Part("", "set/data.mdb", "lmdb"), make_corpus(), make_codec()))) == 1
    assert len(cut_file(folder, "", before, make_corpus(unit_bytes=1))) == 1
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["data.mdb"]
    assert folder.stat("set/data.mdb") == before


@pytest.mark.parametrize("kept", [0, 10, 4096, 8192, 20_000, -4096])
def test_a_file_cut_short_is_one_problem_and_ends_no_process(
    tmp_path: Path, make_corpus: Make, make_codec: Make, kept: int
) -> None:
    write_lmdb(tmp_path / "set", {b"%03d" % index: value_of(index, frames=400) for index in range(40)})
    path = tmp_path / "set" / "data.mdb"
    path.write_bytes(path.read_bytes()[:kept])
    folder = Folder(str(tmp_path))
    corpus = make_corpus(unit_bytes=1)
    (part,) = cut_file(folder, "", folder.stat("set/data.mdb"), corpus)
    (problem,) = read_part(folder, part, corpus, make_codec())
    assert problem.reason in (DropReason.TRUNCATED, DropReason.UNREADABLE), problem
    assert problem.clip_id == "set/data"


READ_DAMAGED = """
import random, sys
from pathlib import Path
from pipeline.contract.specs import CodecSpec, CorpusSpec
from pipeline.sources.registry import cut_file, read_part
from pipeline.storage import Folder

whole, target = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
corpus, codec = CorpusSpec.model_validate_json(sys.argv[3]), CodecSpec.model_validate_json(sys.argv[4])
folder, chance = Folder(str(target.parent)), random.Random(0)
for page in range(len(whole) // 4096):
    for junk in (bytes(4096), b"\\xff" * 4096, chance.randbytes(4096), chance.randbytes(24)):
        print(page, junk[:4], flush=True)
        target.write_bytes(whole[: page * 4096] + junk + whole[page * 4096 + len(junk) :])
        parts = cut_file(folder, "", folder.stat(target.name), corpus)
        found = [clip for part in parts for clip in read_part(folder, part, corpus, codec)]
        assert len(found) == 30 or [str(clip.reason) for clip in found] in (["unreadable"], ["truncated"]), found
print("end")
"""


def test_damaged_pages_end_no_process(tmp_path: Path, make_corpus: Make, make_codec: Make) -> None:
    """Every page in turn, in a process of its own: before pages were looked at, LMDB ended it while it was cut."""
    write_lmdb(tmp_path / "set", {b"%0100d" % index: value_of(index, frames=900 * (index % 2)) for index in range(30)})
    specs = [make_corpus(unit_bytes=5000, fps=25.0).model_dump_json(), make_codec().model_dump_json()]
    (tmp_path / "bad.lmdb").touch()
    words = [sys.executable, "-c", READ_DAMAGED, tmp_path / "set" / "data.mdb", tmp_path / "bad.lmdb", *specs]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "end"), done.stdout[-200:] + done.stderr[-2000:]


def test_a_damaged_page_is_named_with_the_next_step(tmp_path: Path, make_corpus: Make, make_codec: Make) -> None:
    write_lmdb(tmp_path / "set", {b"%03d" % index: value_of(index) for index in range(100)})
    path = tmp_path / "set" / "data.mdb"
    whole = path.read_bytes()
    page = len(whole) // 4096 - 1
    path.write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
    part = Part("", "set/data.mdb", "lmdb")
    (problem,) = read_part(Folder(str(tmp_path)), part, make_corpus(), make_codec())
    assert (problem.reason, problem.source) == (DropReason.UNREADABLE, "set/data.mdb")
    assert "restore it" in problem.detail
    assert "page" in problem.detail
    path.write_bytes(whole)  # mended: nothing that was found before is held against it
    assert len(list(read_part(Folder(str(tmp_path)), part, make_corpus(fps=25.0), make_codec()))) == 100


def test_a_vanished_file_is_a_storage_error(tmp_path: Path, make_corpus: Make, make_codec: Make) -> None:
    with pytest.raises(StorageError, match="run the same command again"):
        list(read_part(Folder(str(tmp_path)), Part("", "data.mdb", "lmdb"), make_corpus(), make_codec()))


def test_listing_knows_folders_and_single_files_and_no_locks(tmp_path: Path, make_corpus: Make) -> None:
    (tmp_path / "a").mkdir()
    write_lmdb(tmp_path / "a" / "data_lmdb", {b"k": value_of(1)})
    write_lmdb(tmp_path / "b.lmdb", {b"k": value_of(1)}, subdir=False)
    (tmp_path / "other.mdb").write_bytes(b"of another program")
    (root,) = open_readable([str(tmp_path)], "auto", {})
    assert [file.path for file in root.files] == ["a/data_lmdb/data.mdb", "b.lmdb"]
    (named,) = open_readable([str(tmp_path / "a" / "data_lmdb")], "lmdb", {})
    assert [file.path for file in named.files] == ["data.mdb"]
    (unit,) = make_plan([root], make_corpus(unit_files=1 << 20)).units
    assert [part.format for part in unit.parts] == ["lmdb", "lmdb"]


def test_stamp_changes_with_the_file(tmp_path: Path, make_corpus: Make) -> None:
    write_lmdb(tmp_path / "set", {b"k": value_of(1)})
    stamps = []
    for index in range(2):
        (root,) = open_readable([str(tmp_path)], "auto", {})
        (unit,) = make_plan([root], make_corpus()).units
        stamps.append((unit.key, unit.stamp))
        write_lmdb(tmp_path / "set", {b"other %d" % index: value_of(2)})
        os.utime(tmp_path / "set" / "data.mdb", ns=(index, index))
    assert stamps[0][0] == stamps[1][0]
    assert stamps[0][1] != stamps[1][1]


def test_lmdb_behind_a_url_is_refused(s3: Any) -> None:
    folder = Folder(s3.url("side/lmdb"), s3.options)
    folder.publish("data.mdb", b"x" * 8192)
    with pytest.raises(InputFormatError, match="LMDB is read from local disks only"):
        open_readable([folder.url], "auto", s3.options)


def test_lmdb_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lmdb(tmp_path / "set", {b"k": value_of(1)})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputFormatError, match=r"pip install 'motion-tokens\[lmdb\]'"):
        open_readable([str(tmp_path)], "auto", {})
