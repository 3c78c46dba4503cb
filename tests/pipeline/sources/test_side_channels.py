"""Carried fields and audio, as every format stores them, up to the prepared clip."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, strategies as st

from pipeline.contract.drop_reasons import ClipProblem, DropReason
from pipeline.contract.specs import AudioRule, CarriedColumn
from pipeline.sources.clip import Part, PreparedClip, RawClip, prepare_clip
from pipeline.sources.registry import read_part
from pipeline.storage import Folder

Make = Callable[..., Any]

RATE_HZ = 1000
SAMPLES = np.random.default_rng(3).integers(-32768, 32768, 400).astype(np.int16)
MOTION = np.arange(40, dtype=np.float32).reshape(10, 4)
"""10 frames at 25 a second: 400 samples."""

CARRY = (
    CarriedColumn(name="speaker", kind="string"),
    CarriedColumn(name="age", kind="int64"),
    CarriedColumn(name="mood", kind="list<float64>"),
)


def rule(**changes: Any) -> AudioRule:
    fields = {"field": "audio", "rate_hz": None, "mode": "cut", "encoding": "int16", "tolerance_s": 0.1}
    return AudioRule(**{**fields, **changes})


def sound_bytes(kind: str = "WAV", samples: np.ndarray = SAMPLES, rate_hz: int = RATE_HZ) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate_hz, format=kind, subtype="PCM_16")
    return sink.getvalue()


def npy_bytes(array: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def npz_bytes(**arrays: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def tar_bytes(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def parquet_bytes(**columns: Any) -> bytes:
    count = len(next(iter(columns.values())))
    motion = pa.array([MOTION.tolist()] * count, pa.list_(pa.list_(pa.float32(), 4)))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"motion": motion, "fps": [25.0] * count, **columns}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def prepare(tmp_path: Path, make_corpus: Make, make_codec: Make) -> Make:
    """Return a function that gives every clip of one file, prepared; audio of `rule` is asked for unless it is None."""

    def prepare_all(name: str, data: bytes, audio: AudioRule | None = None, **changes: Any) -> list[Any]:
        folder = Folder(str(tmp_path))
        folder.publish(name, data)
        corpus, codec = make_corpus(audio=audio, **changes), make_codec()
        kind = {"tar": "webdataset"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
        return list(prepared(read_part(folder, Part("", name, kind), corpus, codec), corpus, codec))

    return prepare_all


def prepared(clips: Iterator[Any], corpus: Any, codec: Any) -> Iterator[Any]:
    for raw in clips:
        yield prepare_clip(raw, corpus, codec) if isinstance(raw, RawClip) else raw


def test_npz_carries_arrays_of_one_element_and_lists(prepare: Make) -> None:
    data = npz_bytes(motion=MOTION, fps=25, speaker=np.array("anna"), age=np.array([31]), mood=np.array([0.5, np.nan]))
    (clip,) = prepare("a.npz", data, carry=CARRY)
    assert dict(clip.carried) == {"speaker": "anna", "age": 31, "mood": [0.5, None]}
    assert list(clip.carried) == ["speaker", "age", "mood"]
    (bare,) = prepare("b.npz", npz_bytes(motion=MOTION, fps=25, mood=np.array([0.5])), carry=CARRY)
    assert dict(bare.carried) == {"speaker": None, "age": None, "mood": [0.5]}


def test_npz_never_unpickles_what_it_carries(prepare: Make) -> None:
    (problem,) = prepare("a.npz", npz_bytes(motion=MOTION, fps=25, speaker=np.array([{}], object)), carry=CARRY)
    assert (problem.reason, "found object" in problem.detail) == (DropReason.UNREADABLE, True)


def test_tar_carries_fields_of_the_json(prepare: Make) -> None:
    fields = {"fps": 25, "speaker": "größe", "age": 7, "mood": [1, 2.5], "other": {}}
    members = {"k.npy": npy_bytes(MOTION), "k.json": json.dumps(fields).encode(), "l.npy": npy_bytes(MOTION)}
    first, second = prepare("a.tar", tar_bytes(members), carry=CARRY, fps=25.0)
    assert dict(first.carried) == {"speaker": "größe", "age": 7, "mood": [1.0, 2.5]}
    assert set(second.carried.values()) == {None}


def test_parquet_carries_columns_of_every_type(prepare: Make) -> None:
    columns = {
        "speaker": pa.array(["anna", None, "bob"]).dictionary_encode(),
        "age": pa.array([1, 2, None], pa.int16()),
        "about": pa.array([{"mood": [0.25, None]}, None, {"mood": []}], pa.struct([("mood", pa.list_(pa.float32()))])),
    }
    carry = (*CARRY[:2], CarriedColumn(name="about.mood", kind="list<float64>"))
    clips = prepare("a.parquet", parquet_bytes(**columns), carry=carry)
    assert [tuple(clip.carried.values()) for clip in clips] == [
        ("anna", 1, [0.25, None]),
        (None, 2, None),
        ("bob", None, []),
    ]
    assert [set(clip.carried.values()) for clip in prepare("b.parquet", parquet_bytes(x=[1]), carry=CARRY)] == [{None}]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"speaker": ["a"]}, "carried field 'speaker': wanted string, found list"),
        ({"speaker": "\ud800"}, "not UTF-8"),
        ({"age": 2.5}, "wanted int64, found float '2.5'; input.carry=age:float64 would keep it"),
        ({"age": 1 << 63}, "wanted int64"),
        ({"age": True}, "wanted int64, found bool"),
        ({"mood": 1}, "wanted list<float64>, found int"),
        ({"mood": ["x"]}, "wanted float64, found str"),
    ],
)
def test_a_value_of_another_kind_drops_its_clip_alone(prepare: Make, fields: dict[str, Any], words: str) -> None:
    members = {"k.npy": npy_bytes(MOTION), "k.json": json.dumps(fields).encode(), "l.npy": npy_bytes(MOTION)}
    bad, good = prepare("a.tar", tar_bytes(members), carry=CARRY, fps=25.0)
    assert (bad.reason, words in bad.detail) == (DropReason.WRONG_DTYPE, True), bad.detail
    assert isinstance(good, PreparedClip)


def float_list(samples: np.ndarray) -> list[float]:
    return (samples / 32768).tolist()


STORED = {
    "npz floats": ("a.npz", npz_bytes(motion=MOTION, fps=25, audio=(SAMPLES / 32768).astype(np.float32))),
    "npz int16": ("a.npz", npz_bytes(motion=MOTION, fps=25, audio=SAMPLES)),
    "npz file bytes": ("a.npz", npz_bytes(motion=MOTION, fps=25, audio=np.frombuffer(sound_bytes(), np.uint8))),
    "npz path": ("a.npz", npz_bytes(motion=MOTION, fps=25, audio=np.array("sound/a.flac"))),
    "parquet float list": ("a.parquet", parquet_bytes(audio=pa.array([float_list(SAMPLES)], pa.list_(pa.float32())))),
    "parquet int list": ("a.parquet", parquet_bytes(audio=pa.array([SAMPLES], pa.large_list(pa.int16())))),
    "parquet bytes": ("a.parquet", parquet_bytes(audio=[sound_bytes()])),
    "parquet struct": ("a.parquet", parquet_bytes(audio=[{"bytes": sound_bytes("FLAC"), "path": None}])),
    "parquet struct path": ("a.parquet", parquet_bytes(audio=[{"bytes": None, "path": "sound/a.wav"}])),
    "parquet struct array": (
        "a.parquet",
        parquet_bytes(audio=[{"array": float_list(SAMPLES), "sampling_rate": RATE_HZ}]),
    ),
    "parquet path": ("a.parquet", parquet_bytes(audio=["sound/a.wav"])),
    "tar wav": ("a.tar", tar_bytes({"k.npy": npy_bytes(MOTION), "k.wav": sound_bytes()})),
    "tar flac": ("a.tar", tar_bytes({"k.npy": npy_bytes(MOTION), "k.flac": sound_bytes("FLAC")})),
    "tar named wav": ("a.tar", tar_bytes({"k.audio.wav": sound_bytes(), "k.npy": npy_bytes(MOTION), "k.wav": b"no"})),
    "tar npy": ("a.tar", tar_bytes({"k.motion.npy": npy_bytes(MOTION), "k.audio.npy": npy_bytes(SAMPLES)})),
    "tar json path": ("a.tar", tar_bytes({"k.npy": npy_bytes(MOTION), "k.json": b'{"audio": "sound/a.wav"}'})),
    "tar json list": (
        "a.tar",
        tar_bytes({"k.npy": npy_bytes(MOTION), "k.json": json.dumps({"audio": SAMPLES.tolist()}).encode()}),
    ),
}


@pytest.mark.parametrize("layout", STORED)
def test_audio_of_every_layout(prepare: Make, tmp_path: Path, layout: str) -> None:
    (tmp_path / "d" / "sound").mkdir(parents=True)
    (tmp_path / "d" / "sound" / "a.wav").write_bytes(sound_bytes())
    (tmp_path / "d" / "sound" / "a.flac").write_bytes(sound_bytes("FLAC"))
    name, data = STORED[layout]
    (clip,) = prepare(f"d/{name}", data, rule(rate_hz=RATE_HZ), fps=25.0)
    assert isinstance(clip, PreparedClip), clip
    np.testing.assert_array_equal(clip.audio.samples, SAMPLES)
    assert (clip.audio.rate_hz, clip.audio.num_samples, clip.audio.path) == (RATE_HZ, 400, "")


def test_files_say_their_rate_and_arrays_do_not(prepare: Make) -> None:
    (clip,) = prepare("a.parquet", parquet_bytes(audio=[sound_bytes()]), rule())
    assert clip.audio.rate_hz == RATE_HZ
    (problem,) = prepare("a.npz", npz_bytes(motion=MOTION, fps=25, audio=SAMPLES), rule())
    assert (problem.reason, "input.audio.rate_hz" in problem.detail) == (DropReason.AUDIO_RATE, True)


def test_another_rate_than_the_configured_one_is_refused(prepare: Make) -> None:
    for audio in ([sound_bytes()], [{"array": float_list(SAMPLES), "sampling_rate": RATE_HZ}]):
        (problem,) = prepare("a.parquet", parquet_bytes(audio=audio), rule(rate_hz=16_000))
        assert (problem.reason, problem.detail) == (
            DropReason.AUDIO_RATE,
            "wanted 16000 samples a second, found 1000",
        )


@pytest.mark.parametrize(
    ("rate_hz", "changes", "words"),
    [
        (96_001, {"encoding": "flac"}, "flac cannot hold 96,001 samples a second: --set input.audio.encoding=int16"),
        (100, {}, "wanted 1,000 to 655,350 samples a second, found 100"),
        (10**10, {}, "found 10,000,000,000"),
    ],
)
def test_a_rate_that_cannot_be_stored_drops_its_clip(
    prepare: Make, rate_hz: int, changes: dict[str, Any], words: str
) -> None:
    stored = [{"array": [0.0] * 10, "sampling_rate": rate_hz}]
    (problem,) = prepare("a.parquet", parquet_bytes(audio=stored), rule(tolerance_s=9.0, **changes))
    assert (problem.reason, words in problem.detail) == (DropReason.AUDIO_RATE, True), problem


def test_a_rate_stored_as_a_whole_float_counts(prepare: Make) -> None:
    (clip,) = prepare(
        "a.parquet", parquet_bytes(audio=[{"array": float_list(SAMPLES), "sampling_rate": 1000.0}]), rule()
    )
    assert clip.audio.rate_hz == 1000


def test_bytes_where_paths_are_wanted_name_the_other_mode(prepare: Make) -> None:
    for stored in (sound_bytes(), {"bytes": sound_bytes(), "path": None}):
        (problem,) = prepare("a.parquet", parquet_bytes(audio=[stored]), rule(mode="reference"))
        assert (problem.reason, "found bytes: use mode cut" in problem.detail) == (DropReason.AUDIO_MISSING, True)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "nowhere.wav",
        "sound",
        "../a.wav",
        "x/../../a.wav",
        "/etc/passwd",
        "s3://bucket/a.wav",
        "a\0b.wav",
        "x" * 300,
        "x/" * 600,
    ],
)
@pytest.mark.parametrize("mode", ["cut", "reference"])
def test_a_path_that_names_no_file_of_the_input_is_missing_audio(
    prepare: Make, tmp_path: Path, value: str | None, mode: str
) -> None:
    (tmp_path / "sound").mkdir()
    (tmp_path.parent / "a.wav").write_bytes(sound_bytes())
    (problem,) = prepare("a.parquet", parquet_bytes(audio=pa.array([value], pa.string())), rule(mode=mode))
    assert isinstance(problem, ClipProblem)
    assert problem.reason is DropReason.AUDIO_MISSING, problem


def test_missing_audio_drops_a_clip_in_every_format(prepare: Make) -> None:
    for name, data in (
        ("a.npz", npz_bytes(motion=MOTION, fps=25)),
        ("a.npy", npy_bytes(MOTION)),
        ("a.parquet", parquet_bytes(x=[1])),
        ("a.tar", tar_bytes({"k.npy": npy_bytes(MOTION), "k.json": b'{"audio": null}'})),
    ):
        (problem,) = prepare(name, data, rule(), fps=25.0)
        assert (problem.reason, problem.detail) == (DropReason.AUDIO_MISSING, "no audio in 'audio'")


@pytest.mark.parametrize(
    "value", [b'{"audio": 5}', b'{"audio": [1, "x"]}', b'{"audio": {"bytes": 7}}', b'{"audio": [[]]}']
)
def test_json_that_is_no_audio_drops_the_clip(prepare: Make, value: bytes) -> None:
    members = {"k.npy": npy_bytes(MOTION), "k.json": value}
    (problem,) = prepare("a.tar", tar_bytes(members), rule(rate_hz=RATE_HZ), fps=25.0)
    assert isinstance(problem, ClipProblem)
    assert problem.reason in (DropReason.WRONG_DTYPE, DropReason.WRONG_DIM, DropReason.AUDIO_MISMATCH), problem


def test_drift_beyond_tolerance_names_both_lengths(prepare: Make) -> None:
    for num_samples, is_kept in ((300, True), (500, True), (299, False), (501, False)):
        audio = sound_bytes(samples=np.zeros(num_samples, np.int16))
        (clip,) = prepare("a.parquet", parquet_bytes(audio=[audio]), rule())
        assert isinstance(clip, PreparedClip) == is_kept
    assert clip.reason is DropReason.AUDIO_MISMATCH
    assert clip.detail == "audio of 0.501 s, motion of 0.400 s: 0.1 s more or less are allowed"


@given(st.sampled_from([12.5, 24.0, 29.97, 30.0, 50.0, 60.0]), st.integers(2, 400))
def test_resampled_motion_keeps_its_audio(make_corpus: Make, make_codec: Make, fps: float, frames: int) -> None:
    samples = np.zeros(round(frames / fps * RATE_HZ), np.int16)
    corpus = make_corpus(audio=rule(tolerance_s=0.001, rate_hz=RATE_HZ), resample="linear")
    from pipeline.sources.stored_audio import StoredAudio

    audio = StoredAudio(samples, Folder("nowhere"), Part("", "a.npz", "npz"))
    raw = RawClip("a", "a.npz", "", np.zeros((frames, 4), np.float32), fps, audio=audio)
    clip = prepare_clip(raw, corpus, make_codec())
    assert isinstance(clip, PreparedClip), clip
    assert clip.audio.num_samples == len(samples)


def test_referenced_audio_is_looked_into_and_not_read(prepare: Make, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "a.wav").write_bytes(sound_bytes())
    (clip,) = prepare("d/a.parquet", parquet_bytes(audio=["../sound/a.wav"]), rule(mode="reference"))
    assert (clip.audio.samples, clip.audio.path) == (None, "sound/a.wav")
    assert (clip.audio.rate_hz, clip.audio.num_samples) == (RATE_HZ, 400)
    (problem,) = prepare("d/b.parquet", parquet_bytes(audio=[sound_bytes()]), rule(mode="reference"))
    assert (problem.reason, "use mode cut" in problem.detail) == (DropReason.AUDIO_MISSING, True)


def test_audio_behind_a_path_on_s3(s3: Any, make_corpus: Make, make_codec: Make) -> None:
    folder = Folder(s3.url("side/channels"), s3.options)
    folder.publish("d/a.parquet", parquet_bytes(audio=["sound/a.wav"]))
    folder.publish("d/sound/a.wav", sound_bytes())
    for mode in ("cut", "reference"):
        corpus, codec = make_corpus(audio=rule(mode=mode)), make_codec()
        (clip,) = prepared(read_part(folder, Part("x", "d/a.parquet", "parquet"), corpus, codec), corpus, codec)
        assert clip.audio.num_samples == 400
        assert clip.audio.path == ("" if mode == "cut" else "x/d/sound/a.wav")


def test_bytes_that_repeat_are_held_once(prepare: Make) -> None:
    repeated = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), pa.array([sound_bytes()]))
    clips = prepare("a.parquet", parquet_bytes(audio=repeated.cast(pa.binary())), rule())
    assert len(clips) == 2000
    assert {len(clip.audio.samples) for clip in clips} == {400}
