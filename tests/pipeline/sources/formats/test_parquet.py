from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.drop_reasons import ClipError, ClipProblem, DropReason
from pipeline.errors import StorageError
from pipeline.sources.clip import Part, PreparedClip, RawClip, prepare_clip
from pipeline.sources.formats.parquet import read_parquet
from pipeline.sources.formats.parquet_lists import motions_of
from pipeline.sources.registry import cut_file, read_part
from pipeline.storage import Folder

Make = Callable[..., Any]

FRAMES = (3, 1, 5, 2)
MOTIONS = [np.arange(n * 4, dtype=np.float32).reshape(n, 4) + 100 * n for n in FRAMES]

LAYOUTS = {
    "nested": pa.list_(pa.list_(pa.float32())),
    "nested fixed": pa.list_(pa.list_(pa.float32(), 4)),
    "large": pa.large_list(pa.large_list(pa.float32())),
    "large fixed": pa.large_list(pa.list_(pa.float32(), 4)),
    "float16": pa.list_(pa.list_(pa.float16(), 4)),
    "float64": pa.list_(pa.list_(pa.float64())),
    "flat": pa.list_(pa.float32()),
    "flat large": pa.large_list(pa.float64()),
}


def motion_array(layout: str) -> Any:
    is_flat = layout.startswith("flat")
    return pa.array([(m.ravel() if is_flat else m).tolist() for m in MOTIONS], LAYOUTS[layout])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path))


@pytest.fixture
def read(folder: Folder, make_corpus: Make, make_codec: Make) -> Make:
    def read_all(table: Any, row_group_size: int = 100, **changes: Any) -> list[RawClip | ClipProblem]:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=row_group_size)
        folder.publish("d/a.parquet", sink.getvalue().to_pybytes())
        return list(read_part(folder, Part("", "d/a.parquet", "parquet"), make_corpus(**changes), make_codec()))

    return read_all


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_read_parquet_every_layout(read: Make, make_corpus: Make, make_codec: Make, layout: str, row_group_size: int):
    table = pa.table({"motion": motion_array(layout), "clip_id": list("abcd"), "fps": [25, 25, 25, 25]})
    clips = read(table, row_group_size)
    assert [(clip.clip_id, clip.source, clip.where, clip.fps) for clip in clips] == [
        (clip_id, "d/a.parquet", f"row {row}", 25.0) for row, clip_id in enumerate("abcd")
    ]
    for clip, motion in zip(clips, MOTIONS, strict=True):
        prepared = prepare_clip(clip, make_corpus(), make_codec())
        np.testing.assert_array_equal(prepared.motion, motion)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_motions_of_slices(layout: str) -> None:
    column = motion_array(layout)
    for start in range(4):
        for stop in range(start, 5):
            found = list(motions_of(column.slice(start, stop - start), 4))
            assert len(found) == stop - start
            for motion, expected in zip(found, MOTIONS[start:stop], strict=True):
                np.testing.assert_array_equal(motion, expected)


def test_motions_of_fixed_size_outer_and_tensor_columns(read: Make) -> None:
    fixed = pa.array([m.ravel().tolist() for m in (MOTIONS[0], MOTIONS[0] + 1)], pa.list_(pa.float32(), 12))
    np.testing.assert_array_equal(list(motions_of(fixed, 4))[1], MOTIONS[0] + 1)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([MOTIONS[0], MOTIONS[0] + 1]))
    clips = read(pa.table({"motion": tensors}))
    np.testing.assert_array_equal(clips[1].motion, MOTIONS[0] + 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_motions_of_shares_memory(layout: str) -> None:
    column = motion_array(layout)
    first, second = list(motions_of(column, 4))[:2]
    assert np.shares_memory(first, np.frombuffer(column.buffers()[-1], np.uint8))
    assert second.base is not None


def test_motions_of_nulls() -> None:
    inner = pa.list_(pa.float32(), 2)
    column = pa.array([[[1, 2]], None, [[3, 4], None], [[5, None]], [], [[7, 8]]], pa.list_(inner))
    for kind in (pa.list_(inner), pa.list_(pa.list_(pa.float32())), pa.large_list(pa.large_list(pa.float64()))):
        for offset in (0, 1):
            found = list(motions_of(column.cast(kind).slice(offset), 2))[1 - offset :]
            assert (found[0].reason, found[0].detail) == (DropReason.MISSING_FIELD, "the motion is null")
            assert (found[1].reason, found[1].detail) == (DropReason.WRONG_DIM, "frame 1 has 0 dims, frame 0 has 2")
            np.testing.assert_array_equal(found[2], [[5, np.nan]])
            assert found[3].shape == (0, 2)
            np.testing.assert_array_equal(found[4], [[7, 8]])


def test_motions_of_ragged_frames_and_flat_remainders() -> None:
    ragged = pa.array([[[1.0, 2.0], [3.0]], [[1.0, 2.0]]])
    first, second = motions_of(ragged, 2)
    assert (first.reason, first.detail) == (DropReason.WRONG_DIM, "frame 1 has 1 dims, frame 0 has 2")
    assert second.shape == (1, 2)
    (flat,) = motions_of(pa.array([[1.0, 2.0, 3.0]]), 2)
    assert (flat.reason, flat.detail) == (
        DropReason.WRONG_DIM,
        "wanted a multiple of 2 numbers in a flat list, found 3",
    )


@pytest.mark.parametrize("values", [[1.0], ["a"], [[1, 2]], [[["a"]]], [[[[1.0]]]]])
def test_motions_of_other_types(values: list[Any]) -> None:
    (problem,) = motions_of(pa.array(values), 2)
    assert isinstance(problem, ClipError)
    assert problem.reason is DropReason.WRONG_DTYPE


def test_read_parquet_default_ids_are_global_rows(read: Make) -> None:
    clips = read(pa.table({"motion": motion_array("nested")}), 3, fps=30)
    assert [(clip.clip_id, clip.fps) for clip in clips] == [(f"d/a#{row}", 30.0) for row in range(4)]


def test_read_parquet_named_fields(read: Make) -> None:
    meta = pa.StructArray.from_arrays([pa.array([7, 8, 9, 10]), pa.array([60.0, None, 60.0, 60.0])], ["id", "rate"])
    table = pa.table({"pose": motion_array("flat"), "meta": meta, "clip_id": list("abcd")})
    clips = read(table, motion_field="pose", clip_id_field="meta.id", fps="meta.rate")
    assert [clip.clip_id for clip in clips] == ["7", "8", "9", "10"]
    assert [clip.fps for clip in clips] == [60.0, None, 60.0, 60.0]


def test_read_parquet_flat_takes_motion_dim(read: Make, make_corpus: Make, make_codec: Make) -> None:
    corpus = {"motion_dim": 2, "columns": (0, 1, 1, 0)}
    clip = read(pa.table({"motion": motion_array("flat"), "fps": [25.0] * 4}), **corpus)[0]
    prepared = prepare_clip(clip, make_corpus(**corpus), make_codec())
    assert isinstance(prepared, PreparedClip)
    np.testing.assert_array_equal(prepared.motion, MOTIONS[0].reshape(-1, 2)[:, [0, 1, 1, 0]])


@pytest.mark.parametrize("field", ["motion_field", "clip_id_field", "fps"])
def test_read_parquet_missing_field_names_columns(read: Make, field: str) -> None:
    (problem,) = read(pa.table({"motion": motion_array("flat"), "x": list("abcd")}), **{field: "none"})
    assert (problem.reason, problem.clip_id) == (DropReason.MISSING_FIELD, "d/a")
    assert problem.detail == "no column 'none', found: motion, x"


def test_read_parquet_bad_ids(read: Make) -> None:
    ids = pa.array(["ok", None, "", "x\0"])
    found = read(pa.table({"motion": motion_array("flat"), "clip_id": ids}))
    assert [clip.clip_id for clip in found] == ["ok", "d/a#1", "d/a#2", "d/a#3"]
    assert [type(clip) for clip in found] == [RawClip, RawClip, ClipProblem, ClipProblem]
    raw = pa.array([b"ok", b"\xff", b"x", b"y"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    found = read(pa.table({"motion": motion_array("flat"), "clip_id": bad}))
    assert found[1].reason is DropReason.BAD_CLIP_ID


def test_read_parquet_bad_rows_leave_others(read: Make) -> None:
    motion = pa.array([[[1.0] * 4], None, [[1.0] * 4, [1.0] * 3], [[2.0] * 4]])
    found = read(pa.table({"motion": motion, "clip_id": list("abcd")}))
    assert [(clip.clip_id, clip.where) for clip in found] == [(name, f"row {row}") for row, name in enumerate("abcd")]
    assert [getattr(clip, "reason", None) for clip in found] == [
        None,
        DropReason.MISSING_FIELD,
        DropReason.WRONG_DIM,
        None,
    ]


def write_rows(folder: Folder, name: str, num_rows: int, row_group_size: int, frames: int = 20) -> None:
    rng = np.random.default_rng(0)
    motion = [rng.normal(size=(frames, 4)).astype(np.float32).tolist() for _ in range(num_rows)]
    table = pa.table({"motion": pa.array(motion, LAYOUTS["nested fixed"]), "fps": [25.0] * num_rows})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=row_group_size, compression="none", use_dictionary=False)
    folder.publish(name, sink.getvalue().to_pybytes())


@pytest.mark.parametrize("row_group_size", [1, 7, 10, 50])
@pytest.mark.parametrize("unit_bytes", [100, 700, 3000, 1 << 20])
def test_cut_file_covers_every_row_once(
    folder: Folder, make_corpus: Make, make_codec: Make, row_group_size: int, unit_bytes: int
) -> None:
    write_rows(folder, "a.parquet", 50, row_group_size)
    (file,) = folder.list_files()
    corpus = make_corpus(unit_bytes=unit_bytes)
    parts = cut_file(folder, "x", file, corpus)
    clips = [clip for part in parts for clip in read_part(folder, part, corpus, make_codec())]
    assert [clip.clip_id for clip in clips] == [f"x/a#{row}" for row in range(50)]
    (whole,) = cut_file(folder, "x", file, make_corpus())
    for clip, expected in zip(clips, read_part(folder, whole, corpus, make_codec()), strict=True):
        np.testing.assert_array_equal(clip.motion, expected.motion)
    assert parts == [whole] if unit_bytes == 1 << 20 else len(parts) > 2
    if unit_bytes == 100:
        assert len(parts) == 50


def test_cut_file_parts_hold_about_a_unit(folder: Folder, make_corpus: Make) -> None:
    write_rows(folder, "a.parquet", 64, 4)
    (file,) = folder.list_files()
    parts = cut_file(folder, "", file, make_corpus(unit_bytes=4000))
    assert {part.stop - part.start for part in parts} == {8}
    write_rows(folder, "a.parquet", 64, 64)
    parts = cut_file(folder, "", folder.stat("a.parquet"), make_corpus(unit_bytes=4000))
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert {part.stop - part.start for part in parts} == {10, 11}


def test_read_parquet_part_of_a_row_group(folder: Folder, make_corpus: Make, make_codec: Make) -> None:
    write_rows(folder, "a.parquet", 50, 20)
    part = Part("", "a.parquet", "parquet", 13, 47)
    clips = read_parquet(folder, part, make_corpus(), make_codec(), batch_bytes=2000)
    assert [clip.where for clip in clips] == [f"row {row}" for row in range(13, 47)]


def test_read_parquet_damaged_row_group_leaves_others(folder: Folder, make_corpus: Make, make_codec: Make) -> None:
    write_rows(folder, "a.parquet", 30, 10)
    data = bytearray(folder.read("a.parquet"))
    chunk = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1).column(0)
    data[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    folder.publish("a.parquet", bytes(data))
    found = list(read_part(folder, Part("", "a.parquet", "parquet"), make_corpus(), make_codec()))
    assert [clip.where for clip in found] == [
        *(f"row {row}" for row in range(10)),
        "rows 10 to 19",
        *(f"row {row}" for row in range(20, 30)),
    ]
    assert found[10].reason is DropReason.UNREADABLE
    assert found[10].clip_id == "a"


def test_read_parquet_bad_files(folder: Folder, make_corpus: Make, make_codec: Make) -> None:
    write_rows(folder, "a.parquet", 30, 10)
    data = folder.read("a.parquet")
    cases = {
        data[:-5]: DropReason.TRUNCATED,
        data[: len(data) // 2]: DropReason.TRUNCATED,
        b"PAR1": DropReason.UNREADABLE,
        b"": DropReason.UNREADABLE,
        b"x" * 1000: DropReason.UNREADABLE,
        data[:-200] + b"\xff" * 190 + data[-10:]: DropReason.UNREADABLE,
    }
    for bad, reason in cases.items():
        folder.publish("a.parquet", bad)
        (file,) = folder.list_files()
        (part,) = cut_file(folder, "", file, make_corpus(unit_bytes=1))
        (problem,) = read_part(folder, part, make_corpus(), make_codec())
        assert (problem.reason, problem.clip_id, problem.source) == (reason, "a", "a.parquet")


def test_read_parquet_damaged_footers_never_raise_nor_end_the_process(
    folder: Folder, make_corpus: Make, make_codec: Make
) -> None:
    write_rows(folder, "a.parquet", 30, 10)
    whole, rng = folder.read("a.parquet"), np.random.default_rng(0)
    footer_bytes = int.from_bytes(whole[-8:-4], "little")
    for _ in range(300):
        data = bytearray(whole)
        for offset in rng.integers(8, 8 + footer_bytes, size=2):
            data[-int(offset)] = int(rng.integers(256))
        folder.publish("a.parquet", bytes(data))
        (file,) = folder.list_files()
        for part in cut_file(folder, "", file, make_corpus(unit_bytes=1000)):
            for clip in read_part(folder, part, make_corpus(), make_codec()):
                assert isinstance(clip, RawClip | ClipProblem)


def test_read_parquet_ids_of_other_types(read: Make) -> None:
    times = pa.array([1, 2, 3, 4], pa.timestamp("ns"))
    found = read(pa.table({"motion": motion_array("flat"), "clip_id": times}))
    assert {clip.reason for clip in found} == {DropReason.BAD_CLIP_ID}


def test_read_parquet_no_rows(read: Make) -> None:
    assert read(pa.table({"motion": pa.array([], LAYOUTS["nested"])})) == []


def test_read_parquet_thousands_of_clips(read: Make) -> None:
    motion = pa.array([[0.0] * 8] * 5000, LAYOUTS["flat"])
    clips = read(pa.table({"motion": motion, "clip_id": [str(row) for row in range(5000)]}), 1000)
    assert [clip.clip_id for clip in clips] == [str(row) for row in range(5000)]
    assert clips[-1].where == "row 4999"


def test_read_parquet_face_motion(read: Make, make_corpus: Make, make_codec: Make, procedural_motion: Path) -> None:
    (path,) = (procedural_motion / "flame106").glob("*.npz")
    with np.load(path, allow_pickle=False) as stored:
        motion, fps = stored["motion"], float(stored["fps"])
    column = pa.array([motion.ravel(), motion[:500].ravel()], pa.list_(pa.float32()))
    clips = read(pa.table({"motion": column, "fps": [fps, fps]}), motion_dim=106)
    prepared = [prepare_clip(clip, make_corpus(motion_dim=106), make_codec(motion_dim=106, fps=30)) for clip in clips]
    np.testing.assert_array_equal(prepared[0].motion, motion)
    np.testing.assert_array_equal(prepared[1].motion, motion[:500])


def test_read_parquet_from_s3(s3: Any, make_corpus: Make, make_codec: Make) -> None:
    remote = Folder(s3.url("sources/parquet"), s3.options)
    write_rows(remote, "a.parquet", 50, 10)
    (file,) = remote.list_files()
    corpus = make_corpus(unit_bytes=5000)
    parts = cut_file(remote, "", file, corpus)
    assert len(parts) > 2
    clips = [clip for part in parts for clip in read_part(remote, part, corpus, make_codec())]
    assert [clip.clip_id for clip in clips] == [f"a#{row}" for row in range(50)]


def test_read_parquet_storage_that_fails_midway_is_storage_error(
    s3: Any, make_corpus: Make, make_codec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Folder(s3.url("sources/midway"), s3.options)
    write_rows(remote, "a.parquet", 50, 10)
    clips = read_part(remote, Part("", "a.parquet", "parquet"), make_corpus(), make_codec())
    assert isinstance(next(clips), RawClip)

    def fail(*_: object) -> bytes:
        raise StorageError("cannot read: gone")

    monkeypatch.setattr(Folder, "open", partialmethod(Folder.open, block_bytes=16))
    clips = read_part(remote, Part("", "a.parquet", "parquet"), make_corpus(), make_codec())
    next(clips)
    monkeypatch.setattr(Folder, "read_range", fail)
    with pytest.raises(StorageError, match="gone"):
        list(clips)
