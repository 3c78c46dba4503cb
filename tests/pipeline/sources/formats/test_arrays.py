from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.contract.drop_reasons import ClipError, ClipProblem, DropReason
from pipeline.sources.clip import Part, PreparedClip, RawClip, prepare_clip
from pipeline.sources.formats.arrays import array_from_npy
from pipeline.sources.registry import cut_file, read_part
from pipeline.storage import Folder, open_inputs

Make = Callable[..., Any]

MOTION = np.arange(24, dtype=np.float32).reshape(6, 4)


def npy_bytes(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz_bytes(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def header_bytes(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.fixture
def read(tmp_path: Path, make_corpus: Make, make_codec: Make) -> Make:
    def read_one(name: str, data: bytes, **changes: Any) -> RawClip | ClipProblem:
        folder = Folder(str(tmp_path))
        folder.publish(name, data)
        part = Part("", name, name.rpartition(".")[2])
        (clip,) = read_part(folder, part, make_corpus(**changes), make_codec())
        return clip

    return read_one


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_read_npz(read: Make, save: Any) -> None:
    stream = io.BytesIO()
    save(stream, motion=MOTION, fps=np.float32(30), other=np.zeros(3))
    clip = read("d/take.1.npz", stream.getvalue())
    np.testing.assert_array_equal(clip.motion, MOTION)
    assert (clip.clip_id, clip.source, clip.where, clip.fps) == ("d/take.1", "d/take.1.npz", "", 30.0)


def test_read_npz_named_fields(read: Make) -> None:
    data = npz_bytes(values=MOTION, rate=np.array([30]), name=np.array("größe"), clip_id=np.array("no"))
    clip = read("a.npz", data, motion_field="values", fps="rate", clip_id_field="name")
    assert (clip.clip_id, clip.fps) == ("größe", 30.0)
    assert read("a.npz", data, motion_field="values").clip_id == "no"


def test_read_npy(read: Make) -> None:
    clip = read("a.npy", npy_bytes(MOTION.T), fps=25)
    np.testing.assert_array_equal(clip.motion, MOTION.T)
    assert (clip.clip_id, clip.fps) == ("a", 25.0)
    assert read("a.npy", npy_bytes(MOTION)).fps is None


def test_read_npy_fortran_order(read: Make) -> None:
    np.testing.assert_array_equal(read("a.npy", npy_bytes(np.asfortranarray(MOTION))).motion, MOTION)


@pytest.mark.parametrize(
    ("name", "data", "changes", "reason", "detail"),
    [
        ("a.npz", npz_bytes(pose=MOTION, fps=30), {}, "missing_field", "no key 'motion', found: fps, pose"),
        ("a.npz", npz_bytes(motion=MOTION), {"fps": "rate"}, "missing_field", "no field 'rate', found: motion"),
        ("a.npy", npy_bytes(MOTION), {"clip_id_field": "id"}, "missing_field", "no field 'id', found: none"),
        ("a.npz", npz_bytes(motion=MOTION)[:-30], {}, "truncated", "no npz archive"),
        ("a.npz", b"not a zip", {}, "unreadable", "no npz archive"),
        ("a.npz", b"", {}, "unreadable", "no npz archive"),
        ("a.npz", npz_bytes(motion=np.array([None])), {}, "unreadable", "found object"),
        ("a.npz", npz_bytes(motion=MOTION, clip_id=np.array(["a", "b"])), {}, "bad_clip_id", "ndarray"),
        ("a.npy", npy_bytes(MOTION)[:-1], {}, "truncated", "the header promises 96 bytes"),
        ("a.npy", npy_bytes(np.array([{}])), {}, "unreadable", "found object"),
        ("a.npy", b"", {}, "unreadable", "no npy array"),
        ("a.npy", b"\x93NUMPY\x09\x00", {}, "unreadable", "npy version (9, 0) is not read"),
        ("a.npy", npy_bytes(MOTION)[:20], {}, "unreadable", "no npy array"),
        ("a.npy", header_bytes("((((" * 2000), {}, "unreadable", "no npy array"),
    ],
)
def test_read_bad_file_is_one_problem(
    read: Make, name: str, data: bytes, changes: dict[str, Any], reason: str, detail: str
) -> None:
    problem = read(name, data, **changes)
    assert isinstance(problem, ClipProblem)
    assert (problem.reason, problem.clip_id, problem.source) == (reason, "a", name)
    assert detail in problem.detail


def test_array_from_npy_refuses_absurd_shapes_without_allocating() -> None:
    for shape in ("(1000000000000000, 106)", "(99999999999999999999999, 1)"):
        with pytest.raises(ClipError, match="the header promises") as caught:
            array_from_npy(header_bytes(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"))
        assert caught.value.reason is DropReason.TRUNCATED
    with pytest.raises(ClipError):
        array_from_npy(header_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}") + bytes(64))


def test_array_from_npy_is_empty_where_a_dim_is() -> None:
    assert array_from_npy(npy_bytes(np.zeros((0, 106), np.float32))).shape == (0, 106)
    assert array_from_npy(npy_bytes(np.zeros((5, 0), np.float64))).shape == (5, 0)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_array_from_npy_damaged_bytes_never_raise_else(data: st.DataObject) -> None:
    whole = bytearray(npy_bytes(MOTION))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ClipError):
        array_from_npy(bytes(whole))


def test_read_npz_refuses_a_member_that_promises_too_much(read: Make) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("motion.npy", npy_bytes(MOTION))
    data = bytearray(stream.getvalue())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 0xFFFFFF00)
    problem = read("a.npz", bytes(data))
    assert problem.reason is DropReason.UNREADABLE
    assert "promises 4294967040 bytes" in problem.detail


def test_read_npz_damaged_bytes_are_unreadable(read: Make) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, motion=np.random.default_rng(0).normal(size=(50, 4)))
    data = bytearray(stream.getvalue())
    data[300:310] = bytes(10)
    assert read("a.npz", bytes(data)).reason is DropReason.UNREADABLE


def test_cut_file_leaves_arrays_whole(tmp_path: Path, make_corpus: Make) -> None:
    folder = Folder(str(tmp_path))
    folder.publish("a.npy", npy_bytes(MOTION))
    (file,) = folder.list_files()
    assert cut_file(folder, "x", file, make_corpus(unit_bytes=1)) == [Part("x", "a.npy", "npy")]


def test_read_npz_refuses_what_inflates_far_beyond_its_size(read: Make) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, motion=np.zeros((5 << 20, 4), np.float32))
    problem = read("a.npz", stream.getvalue())
    assert problem.reason is DropReason.UNREADABLE
    assert "motion.npy promises 83886208 bytes of" in problem.detail
    stream = io.BytesIO()
    np.savez_compressed(stream, motion=np.zeros((1 << 20, 4), np.float32))
    assert len(read("a.npz", stream.getvalue()).motion) == 1 << 20


def test_read_npy_larger_than_a_clip_is_not_read(tmp_path: Path, make_corpus: Make, make_codec: Make) -> None:
    folder = Folder(str(tmp_path))
    with (tmp_path / "a.npy").open("wb") as file:
        file.truncate((4 << 30) + 1)
    (file,) = folder.list_files()
    (part,) = cut_file(folder, "", file, make_corpus())
    (problem,) = read_part(folder, part, make_corpus(), make_codec())
    assert (problem.reason, "more than 4294967296 bytes" in problem.detail) == (DropReason.UNREADABLE, True)


def test_read_npz_with_endless_keys_has_a_short_detail(read: Make) -> None:
    problem = read("a.npz", npz_bytes(**{"x" * 500 + str(index): 1 for index in range(50)}))
    assert (problem.reason, len(problem.detail)) == (DropReason.MISSING_FIELD, 2048)


def test_read_face_motion(procedural_motion: Path, make_corpus: Make, make_codec: Make) -> None:
    (root,) = open_inputs([str(procedural_motion / "flame106")], (".npz",))
    (raw,) = read_part(root.folder, Part("", root.files[0].path, "npz"), make_corpus(), make_codec())
    prepared = prepare_clip(raw, make_corpus(), make_codec(motion_dim=106, fps=30))
    assert isinstance(prepared, PreparedClip)
    assert prepared.clip_id == "speaker_0"
    with np.load(procedural_motion / "flame106" / root.files[0].path, allow_pickle=False) as stored:
        np.testing.assert_array_equal(prepared.motion, stored["motion"])


def test_read_arkit_motion_resampled(procedural_motion: Path, make_corpus: Make, make_codec: Make) -> None:
    corpus = make_corpus(motion_field="values", resample="linear")
    codec = make_codec(motion_dim=61, fps=30)
    (root,) = open_inputs([f"arkit={procedural_motion / 'arkit_iphone'}"], (".npz",))
    assert (len(root.files), root.skipped) == (3, 1)
    clips = [
        prepare_clip(raw, corpus, codec)
        for file in root.files
        for raw in read_part(root.folder, Part(root.name, file.path, "npz"), corpus, codec)
    ]
    assert all(isinstance(clip, PreparedClip) for clip in clips)
    assert sum(len(clip.motion) for clip in clips) == sum((frames - 1) // 2 + 1 for frames in (1846, 1830, 1218))
    assert clips[-1].clip_id == "arkit/take_2"
