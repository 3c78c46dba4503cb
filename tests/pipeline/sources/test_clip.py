from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pipeline.contract.drop_reasons import ClipProblem, DropReason
from pipeline.sources.clip import (
    ClipFields,
    Part,
    PreparedClip,
    RawClip,
    motion_digest,
    prepare_clip,
    printable,
    raw_clip,
    resample,
    short,
)

Make = Callable[..., Any]


def clip(motion: Any, fps: float | None = 25.0, clip_id: str = "a") -> RawClip:
    return RawClip(clip_id, "a.npz", "row 0", np.asarray(motion), fps)


def ramp(frames: int, dims: int = 4, dtype: str = "float32") -> np.ndarray:
    return np.arange(frames * dims).reshape(frames, dims).astype(dtype)


def test_part_json_round_trip() -> None:
    for part in (Part("", "a/b.npz", "npz"), Part("x", "a.tar", "webdataset", 512, None)):
        assert Part.from_json(part.to_json()) == part
    assert Part("x", "d/a.b.tar", "webdataset").source == "x/d/a.b.tar"
    assert Part("x", "d/a.b.tar", "webdataset").stem == "d/a.b"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8"])
def test_prepare_clip_reads_every_float(make_corpus: Make, make_codec: Make, dtype: str) -> None:
    prepared = prepare_clip(clip(ramp(6, dtype=dtype)), make_corpus(), make_codec())
    assert isinstance(prepared, PreparedClip)
    assert prepared.motion.dtype == np.float32
    assert prepared.motion.flags.c_contiguous
    np.testing.assert_array_equal(prepared.motion, ramp(6))
    assert (prepared.clip_id, prepared.source, prepared.where) == ("a", "a.npz", "row 0")


def test_prepare_clip_copies_no_finished_motion(make_corpus: Make, make_codec: Make) -> None:
    motion = ramp(6)
    assert prepare_clip(clip(motion), make_corpus(), make_codec()).motion is motion


def test_prepare_clip_selects_columns(make_corpus: Make, make_codec: Make) -> None:
    motion = np.asfortranarray(ramp(6, dims=10))
    prepared = prepare_clip(clip(motion), make_corpus(columns=(9, 0, 3, 4)), make_codec())
    assert prepared.motion.flags.c_contiguous
    np.testing.assert_array_equal(prepared.motion, motion[:, [9, 0, 3, 4]])


def test_motion_digest_is_of_shape_and_bytes() -> None:
    motion = ramp(3, 2)
    expected = hashlib.sha256(np.array([3, 2], "<i8").tobytes() + motion.astype("<f4").tobytes()).hexdigest()
    assert motion_digest(motion) == expected[:32]
    assert motion_digest(ramp(2, 3)) != motion_digest(motion)


def bad_float(value: float, dtype: str = "float32") -> np.ndarray:
    motion = ramp(6, dtype=dtype)
    motion[4, 2] = value
    motion[5, 0] = value
    return motion


@pytest.mark.parametrize(
    ("raw", "reason", "detail"),
    [
        (clip(ramp(6, 5)), DropReason.WRONG_DIM, "wanted 4 dims, found 5"),
        (clip(np.zeros(8, np.float32)), DropReason.WRONG_DIM, "found shape (8,)"),
        (clip(np.zeros((2, 2, 2), np.float32)), DropReason.WRONG_DIM, "found shape (2, 2, 2)"),
        (clip(np.float32(1)), DropReason.WRONG_DIM, "found shape ()"),
        (clip(ramp(6, dtype="int32")), DropReason.WRONG_DTYPE, "found int32"),
        (clip(ramp(6, dtype="complex64")), DropReason.WRONG_DTYPE, "found complex64"),
        (clip(bad_float(math.nan)), DropReason.NON_FINITE, "nan at frame 4, column 2"),
        (clip(bad_float(-math.inf)), DropReason.NON_FINITE, "-inf at frame 4, column 2"),
        (clip(bad_float(1e300, "float64")), DropReason.NON_FINITE, "1e+300 at frame 4, column 2"),
        (clip(ramp(0)), DropReason.TOO_SHORT, "no frame"),
        (clip(ramp(6), None), DropReason.FPS_MISSING, "the codec's is 25"),
        (clip(ramp(6), 0.0), DropReason.FPS_MISSING, "0 is no positive number"),
        (clip(ramp(6), math.nan), DropReason.FPS_MISSING, "nan is no positive number"),
        (clip(ramp(6), math.inf), DropReason.FPS_MISSING, "inf is no positive number"),
        (clip(ramp(6), 30.0), DropReason.FPS_MISMATCH, "wanted 25 frames a second, found 30"),
        (clip(ramp(6), clip_id=""), DropReason.BAD_CLIP_ID, "0 characters"),
        (clip(ramp(6), clip_id="a" * 1025), DropReason.BAD_CLIP_ID, "1025 characters"),
        (clip(ramp(6), clip_id="a\nb"), DropReason.BAD_CLIP_ID, "control character"),
        (clip(ramp(6), clip_id="a\udce9"), DropReason.BAD_CLIP_ID, "not UTF-8"),
    ],
)
def test_prepare_clip_names_the_reason(
    make_corpus: Make, make_codec: Make, raw: RawClip, reason: DropReason, detail: str
) -> None:
    problem = prepare_clip(raw, make_corpus(), make_codec())
    assert isinstance(problem, ClipProblem)
    assert problem.reason is reason
    assert detail in problem.detail
    assert (problem.source, problem.where) == ("a.npz", "row 0")
    problem.clip_id.encode()


def test_prepare_clip_wrong_dim_of_selection(make_corpus: Make, make_codec: Make) -> None:
    def detail(**changes: Any) -> str:
        problem = prepare_clip(clip(ramp(6, 10)), make_corpus(**changes), make_codec())
        assert problem.reason is DropReason.WRONG_DIM
        return str(problem.detail)

    assert detail(columns=(0, 1, 2, 10)) == "wanted column 10, found 10 dims"
    assert detail(columns=(0, 1, 2)) == "wanted 4 dims, found 3"
    assert detail(columns=(0, 1, 2, 3), motion_dim=12).startswith("wanted 12 dims as input.motion_dim says, found 10")


def test_prepare_clip_non_finite_outside_selection_is_kept(make_corpus: Make, make_codec: Make) -> None:
    motion = ramp(6, 5)
    motion[2, 0] = math.nan
    assert isinstance(prepare_clip(clip(motion), make_corpus(columns=(1, 2, 3, 4)), make_codec()), PreparedClip)
    motion[3, 4] = math.inf
    problem = prepare_clip(clip(motion), make_corpus(columns=(1, 2, 3, 4)), make_codec())
    assert "frame 3, column 4" in problem.detail


def test_prepare_clip_nearly_equal_rate_is_not_resampled(make_corpus: Make, make_codec: Make) -> None:
    codec = make_codec(fps=29.97)
    motion = ramp(7)
    for resample_rule in ("none", "linear"):
        raw = clip(motion, float(np.float32(29.97)))
        assert prepare_clip(raw, make_corpus(resample=resample_rule), codec).motion is motion


@pytest.mark.parametrize("fps", [1e-9, 1e-300, 5e-324])
def test_prepare_clip_refuses_to_stretch_endlessly(make_corpus: Make, make_codec: Make, fps: float) -> None:
    problem = prepare_clip(clip(ramp(6), fps), make_corpus(resample="linear"), make_codec())
    assert isinstance(problem, ClipProblem)
    assert (problem.reason, f"{fps:g} frames a second" in problem.detail) == (DropReason.FPS_MISMATCH, True)


def test_prepare_clip_stretches_slow_motion(make_corpus: Make, make_codec: Make) -> None:
    assert len(prepare_clip(clip(ramp(6), 0.01), make_corpus(resample="linear"), make_codec()).motion) == 12_501


def test_raw_clip_takes_truth_for_no_id_and_no_rate(make_corpus: Make) -> None:
    part = Part("", "a.npz", "npz")
    problem = raw_clip(part, "", "a", ramp(6), ClipFields(True, 25), make_corpus())
    assert (problem.reason, problem.detail) == (DropReason.BAD_CLIP_ID, "the id is no text but bool")
    assert math.isnan(raw_clip(part, "", "a", ramp(6), ClipFields(7, True), make_corpus()).fps)


def test_short_texts_stay_and_long_ones_are_cut() -> None:
    assert short("a\nb") == "a\\x0ab"
    assert short("x" * 2048) == "x" * 2048
    assert (len(short("x" * 2049)), short("\n" * 5000)[-3:]) == (2048, "...")


def test_resample_hand_computed() -> None:
    motion = np.array([[0, 10], [2, 20], [4, 0]], np.float16)
    # 20 to 30 frames a second: positions 0, 2/3, 4/3, 2.
    expected = [[0, 10], [4 / 3, 10 + 20 / 3], [8 / 3, 20 - 20 / 3], [4, 0]]
    np.testing.assert_array_equal(resample(motion, 20, 30), np.array(expected, np.float32))
    # 30 to 20: positions 0 and 1.5.
    np.testing.assert_array_equal(resample(motion, 30, 20), np.array([[0, 10], [3, 10]], np.float32))


def test_resample_halving_keeps_every_other_frame() -> None:
    motion = ramp(9)
    np.testing.assert_array_equal(resample(motion, 60, 30), motion[::2])
    np.testing.assert_array_equal(resample(ramp(1), 60, 30), ramp(1))


@given(st.integers(1, 400), st.sampled_from([12.5, 24, 25, 29.97, 30, 59.94, 60, 120]), st.sampled_from([24, 25, 30]))
def test_resample_count_and_line(frames: int, fps_in: float, fps_out: float) -> None:
    motion = np.arange(frames, dtype=np.float64)[:, None]
    out = resample(motion, fps_in, fps_out)
    assert len(out) == math.floor((frames - 1) * fps_out / fps_in) + 1
    # Resampling a straight line gives the line.
    np.testing.assert_allclose(out[:, 0], np.arange(len(out)) * fps_in / fps_out, rtol=1e-6, atol=1e-6)
    assert out.max() <= frames - 1


def test_prepare_clip_resamples(make_corpus: Make, make_codec: Make) -> None:
    motion = ramp(61, 6, "float64")
    prepared = prepare_clip(clip(motion, 60.0), make_corpus(resample="linear", columns=(5, 1, 2, 3)), make_codec())
    np.testing.assert_array_equal(prepared.motion, resample(motion[:, [5, 1, 2, 3]], 60, 25))
    assert len(prepared.motion) == 26
    assert prepared.motion_digest == motion_digest(prepared.motion)


@pytest.mark.parametrize(
    ("fps_rule", "stored", "expected"),
    [(30, 60.0, 30.0), (None, 60, 60.0), ("rate", "60", 60.0), (None, None, None)],
)
def test_raw_clip_takes_fps_by_rule(make_corpus: Make, fps_rule: Any, stored: Any, expected: float | None) -> None:
    raw = raw_clip(Part("", "a.npz", "npz"), "", "a", ramp(2), ClipFields(None, stored), make_corpus(fps=fps_rule))
    assert raw.fps == expected


def test_raw_clip_fps_that_is_no_number(make_corpus: Make, make_codec: Make) -> None:
    raw = raw_clip(Part("", "a.npz", "npz"), "", "a", ramp(2), ClipFields(None, "fast"), make_corpus())
    assert prepare_clip(raw, make_corpus(), make_codec()).reason is DropReason.FPS_MISSING


def test_raw_clip_ids(make_corpus: Make) -> None:
    part = Part("set", "d/a.npz", "npz")
    assert raw_clip(part, "", "d/a", ramp(2), ClipFields(None, None), make_corpus()).clip_id == "set/d/a"
    assert raw_clip(part, "", "d/a", ramp(2), ClipFields("x", None), make_corpus()).clip_id == "set/x"
    assert raw_clip(part, "", "d/a", ramp(2), ClipFields(7, None), make_corpus()).clip_id == "set/7"
    for bad in ("", 1.5, b"\xff", "\x00"):
        problem = raw_clip(part, "", "d/a", ramp(2), ClipFields(bad, None), make_corpus())
        assert (problem.reason, problem.clip_id) == (DropReason.BAD_CLIP_ID, "set/d/a")


def test_printable_is_text_that_every_format_takes() -> None:
    assert printable("größe\t\x9f\udce9") == "größe\\x09\\x9f\\udce9"


def test_sources_import_without_arrow_and_ray(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, pipeline.sources.clip; print([n for n in ('ray', 'torch', 'fsspec', 's3fs') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
