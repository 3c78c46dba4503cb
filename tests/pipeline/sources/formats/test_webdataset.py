from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.contract.drop_reasons import ClipProblem, DropReason
from pipeline.sources.clip import Part, RawClip
from pipeline.sources.registry import cut_file, read_part
from pipeline.storage import Folder

Make = Callable[..., Any]


def npy_bytes(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def motion_of(index: int, frames: int = 6) -> np.ndarray:
    return np.full((frames, 4), index, np.float32)


def tar_bytes(members: Sequence[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def samples(count: int, frames: int = 6) -> list[tuple[str, bytes]]:
    return [
        member
        for index in range(count)
        for member in (
            (f"d/{index:03d}.motion.npy", npy_bytes(motion_of(index, frames))),
            (f"d/{index:03d}.json", json.dumps({"fps": 25, "name": f"clip {index}"}).encode()),
        )
    ]


@pytest.fixture
def read(tmp_path: Path, make_corpus: Make, make_codec: Make) -> Make:
    def read_all(data: bytes, **changes: Any) -> list[RawClip | ClipProblem]:
        folder = Folder(str(tmp_path))
        folder.publish("s/a.tar", data)
        part = Part("x", "s/a.tar", "webdataset")
        return list(read_part(folder, part, make_corpus(**changes), make_codec()))

    return read_all


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_read_webdataset(read: Make, kind: int) -> None:
    clips = read(tar_bytes(samples(3), kind))
    assert [(clip.clip_id, clip.source, clip.where, clip.fps) for clip in clips] == [
        (f"x/s/a#d/{index:03d}", "x/s/a.tar", f"member d/{index:03d}.motion.npy", 25.0) for index in range(3)
    ]
    for index, clip in enumerate(clips):
        np.testing.assert_array_equal(clip.motion, motion_of(index))


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_read_webdataset_long_names(read: Make, kind: int) -> None:
    key = "speaker/" + "größe" * 60
    (clip,) = read(tar_bytes([(f"{key}.npy", npy_bytes(motion_of(1)))], kind))
    assert clip.clip_id == f"x/s/a#{key}"


def test_read_webdataset_fields(read: Make) -> None:
    clips = read(tar_bytes(samples(2)), clip_id_field="name")
    assert [clip.clip_id for clip in clips] == ["x/clip 0", "x/clip 1"]
    (clip,) = read(tar_bytes([("a.npy", npy_bytes(motion_of(1))), ("a.json", b'{"fps": 60, "clip_id": "own"}')]))
    assert (clip.clip_id, clip.fps) == ("x/own", 60.0)
    assert read(tar_bytes([("a.npy", npy_bytes(motion_of(1))), ("a.json", b"[1]")]), fps=25)[0].fps == 25.0


def test_read_webdataset_prefers_the_motion_member(read: Make) -> None:
    members = [
        ("a.npy", npy_bytes(motion_of(1))),
        ("a.audio.npy", b"ignored"),
        ("a.pose.npy", npy_bytes(motion_of(2))),
    ]
    assert read(tar_bytes(members))[0].motion[0, 0] == 1
    assert read(tar_bytes(members), motion_field="pose")[0].motion[0, 0] == 2


def test_read_webdataset_groups_neighbours_as_webdataset_does(read: Make, tmp_path: Path) -> None:
    members = [
        ("README", b"no extension"),
        (".hidden.npy", b"no key"),
        ("a.motion.npy", npy_bytes(motion_of(1))),
        ("a.json", b'{"fps": 25}'),
        ("b.c.d.motion.npy", npy_bytes(motion_of(2))),
        ("dir.1/b.npy", npy_bytes(motion_of(3))),
        ("a.json", b'{"fps": 30}'),
        ("a.npy", npy_bytes(motion_of(4))),
        ("a.txt", b"stray"),
    ]
    found = read(tar_bytes([*members[:-1], ("z.npy", npy_bytes(motion_of(5))), members[-1]]))
    assert [(clip.clip_id, clip.fps) for clip in found if isinstance(clip, RawClip)] == [
        ("x/s/a#a", 25.0),
        ("x/s/a#dir.1/b", None),
        ("x/s/a#a", 30.0),
        ("x/s/a#z", None),
    ]
    (problem,) = (clip for clip in found if isinstance(clip, ClipProblem))
    assert (problem.clip_id, problem.reason) == ("x/s/a#b", DropReason.MISSING_FIELD)
    assert "found: c.d.motion.npy" in problem.detail


def test_read_webdataset_never_leaves_the_tar(read: Make, tmp_path: Path) -> None:
    clips = read(tar_bytes([("../../../x.npy", npy_bytes(motion_of(1))), ("/etc/y.npy", npy_bytes(motion_of(2)))]))
    assert [clip.clip_id for clip in clips] == ["x/s/a#../../../x", "x/s/a#/etc/y"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.tar"]


def test_read_webdataset_member_name_that_is_no_utf8(read: Make) -> None:
    members = [("caf\udce9.npy", npy_bytes(motion_of(1))), ("caf\udce9.json", b'{"id": "cafe"}')]
    (problem,) = read(tar_bytes(members))
    assert (problem.reason, problem.clip_id) == (DropReason.BAD_CLIP_ID, "x/s/a#caf\\udce9")
    (clip,) = read(tar_bytes(members), clip_id_field="id")
    assert (clip.clip_id, clip.where) == ("x/cafe", "member caf\\udce9.npy")


def test_read_webdataset_links_are_problems_and_folders_nothing(read: Make) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind in (("d.npy", tarfile.DIRTYPE), ("l.npy", tarfile.SYMTYPE), ("h.npy", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    problems = read(stream.getvalue())
    assert [problem.clip_id.rpartition("#")[2] for problem in problems] == ["l", "h"]
    assert all(problem.reason == DropReason.UNREADABLE and "link" in problem.detail for problem in problems)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_read_webdataset_refuses_headers_as_large_as_files(read: Make, kind: bytes) -> None:
    info = tarfile.TarInfo("name")
    info.type, info.size = kind, 1 << 40
    (problem,) = read(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert (problem.reason, "claims 1099511627776 bytes" in problem.detail) == (DropReason.UNREADABLE, True)


def test_read_webdataset_refuses_sparse_members(read: Make) -> None:
    info = tarfile.TarInfo("a.npy")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"00000000310\0"
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    (problem,) = read(bytes(header) + bytes(1024))
    assert (problem.reason, "stored sparse" in problem.detail) == (DropReason.UNREADABLE, True)


def test_read_webdataset_refuses_json_that_is_no_description(read: Make) -> None:
    motion = ("a.npy", npy_bytes(motion_of(1)))
    for data in (b" " * ((4 << 20) + 1), b"[" * 100_000):
        (problem,) = read(tar_bytes([motion, ("a.json", data)]), fps=25)
        assert (problem.reason, ".json" in problem.detail) == (DropReason.UNREADABLE, True)
    (clip,) = read(tar_bytes([motion, ("a.json", b'{"fps": true}')]))
    assert clip.fps != clip.fps


def test_read_webdataset_two_members_of_one_name_are_a_problem(read: Make) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("a.npy", "a.npy", "b.txt"):
            tar.addfile(tarfile.TarInfo(name))
    first, second = read(stream.getvalue())
    assert (first.reason, "2 members of 1 names" in first.detail) == (DropReason.UNREADABLE, True)
    assert second.reason == DropReason.MISSING_FIELD


def test_read_webdataset_bad_samples_between_good_ones(read: Make) -> None:
    members = [
        *samples(1),
        ("bad1.npy", b"nothing"),
        ("bad2.json", b'{"fps": 25}'),
        ("bad3.npy", npy_bytes(motion_of(0))),
        ("bad3.json", b"{"),
        ("good.npy", npy_bytes(motion_of(9))),
    ]
    found = read(tar_bytes(members))
    assert [clip.reason if isinstance(clip, ClipProblem) else clip.clip_id for clip in found] == [
        "x/s/a#d/000",
        DropReason.UNREADABLE,
        DropReason.MISSING_FIELD,
        DropReason.UNREADABLE,
        "x/s/a#good",
    ]
    assert [clip.where for clip in found[1:4]] == ["member bad1.npy", "sample bad2", "member bad3.npy"]
    assert read(tar_bytes(samples(1)), fps="rate")[0].reason is DropReason.MISSING_FIELD


@pytest.mark.parametrize(("lost", "good"), [(1, 3), (700, 3), (1024, 3), (1500, 3), (1600, 2), (2048, 2), (2049, 2)])
def test_read_webdataset_truncated_after_good_samples(read: Make, lost: int, good: int) -> None:
    data = tar_bytes(samples(4))
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    found = read(data[: end - lost])
    assert all(isinstance(clip, RawClip) for clip in found[:-1])
    assert [clip.clip_id for clip in found[:-1]] == [f"x/s/a#d/{index:03d}" for index in range(good)]
    assert (found[-1].reason, found[-1].clip_id) == (DropReason.TRUNCATED, "x/s/a")


def test_read_webdataset_without_end_mark_is_truncated(read: Make) -> None:
    data = tar_bytes(samples(2)).rstrip(b"\0")
    found = read(data + bytes(-len(data) % 512))
    assert found[-1].reason is DropReason.TRUNCATED


def test_read_webdataset_damaged_header(read: Make) -> None:
    data = bytearray(tar_bytes(samples(3)))
    at = data.index(b"d/001.motion.npy")
    data[at : at + 20] = b"\xff" * 20
    found = read(bytes(data))
    assert [type(clip) for clip in found] == [ClipProblem] or found[0].clip_id == "x/s/a#d/000"
    assert found[-1].reason is DropReason.UNREADABLE
    assert "no tar header" in found[-1].detail


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"x" * 5000, b"\x1f\x8b" + bytes(600)])
def test_read_webdataset_no_tar_at_all(read: Make, data: bytes) -> None:
    (problem,) = read(data)
    assert problem.reason in (DropReason.UNREADABLE, DropReason.TRUNCATED)


def test_read_webdataset_empty_tar_holds_no_clip(read: Make) -> None:
    assert read(tar_bytes([])) == []


@pytest.mark.parametrize("unit_bytes", [1, 3000, 10_000, 10_000_000])
def test_cut_file_covers_every_sample_once(
    tmp_path: Path, make_corpus: Make, make_codec: Make, unit_bytes: int
) -> None:
    folder = Folder(str(tmp_path))
    members = [("notes", b"x" * 600), *samples(20, frames=40), ("README", b"x")]
    folder.publish("a.tar", tar_bytes(members, tarfile.PAX_FORMAT))
    (file,) = folder.list_files()
    corpus = make_corpus(unit_bytes=unit_bytes)
    parts = cut_file(folder, "", file, corpus)
    clips = [clip for part in parts for clip in read_part(folder, part, corpus, make_codec())]
    assert [clip.clip_id for clip in clips] == [f"a#d/{index:03d}" for index in range(20)]
    for index, clip in enumerate(clips):
        np.testing.assert_array_equal(clip.motion, motion_of(index, 40))
        assert clip.fps == 25.0
    if unit_bytes == 1:
        assert len(parts) == 20
    if unit_bytes == 3000:
        assert 5 < len(parts) < 20
    if unit_bytes > file.num_bytes:
        assert parts == [Part("", "a.tar", "webdataset")]


def test_cut_file_truncated_tar_reports_it_once(tmp_path: Path, make_corpus: Make, make_codec: Make) -> None:
    folder = Folder(str(tmp_path))
    folder.publish("a.tar", tar_bytes(samples(20))[: 20 * 1000])
    (file,) = folder.list_files()
    corpus = make_corpus(unit_bytes=4000)
    parts = cut_file(folder, "", file, corpus)
    assert len(parts) > 2
    found = [clip for part in parts for clip in read_part(folder, part, corpus, make_codec())]
    assert [type(clip) for clip in found[:-1]] == [RawClip] * (len(found) - 1)
    assert found[-1].reason is DropReason.TRUNCATED


def test_read_webdataset_from_s3(s3: Any, make_corpus: Make, make_codec: Make) -> None:
    folder = Folder(s3.url("sources/tar"), s3.options)
    folder.publish("a.tar", tar_bytes(samples(10)))
    (file,) = folder.list_files()
    corpus = make_corpus(unit_bytes=4000)
    parts = cut_file(folder, "", file, corpus)
    assert len(parts) > 1
    clips = [clip for part in parts for clip in read_part(folder, part, corpus, make_codec())]
    assert [clip.clip_id for clip in clips] == [f"a#d/{index:03d}" for index in range(10)]
