from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings, strategies as st

from pipeline.contract.drop_reasons import ClipError, DropReason
from pipeline.errors import ConfigError, StorageError
from pipeline.sources.audio import (
    ClipAudio,
    cut_samples,
    decode_sound,
    flac_bytes,
    mono_samples,
    rate_fault,
    require_soundfile,
    sample_at,
    seconds_beyond_motion,
    sound_length,
    window_samples,
)

RATES = st.sampled_from([8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
FPS = st.sampled_from([23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 59.94, 60.0])


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-32768, 32768, num_samples).astype(np.int16)


def sound_bytes(samples: np.ndarray, rate_hz: int = 16_000, **options: Any) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate_hz, **{"format": "WAV", "subtype": "PCM_16", **options})
    return sink.getvalue()


def reason_of(call: Callable[[], object]) -> tuple[DropReason, str]:
    with pytest.raises(ClipError) as caught:
        call()
    return caught.value.reason, caught.value.detail


def test_window_samples_are_640_a_frame_at_16_khz_and_25_fps() -> None:
    assert window_samples(0, 100, 25.0, 16_000) == (0, 64_000)
    assert window_samples(37, 100, 25.0, 16_000) == (37 * 640, 64_000)
    assert window_samples(-100, 100, 25.0, 16_000) == (-64_000, 64_000)
    assert sample_at(1, 30.0, 16_000) == 533
    assert sample_at(3, 30.0, 16_000) == 1600
    assert sample_at(1, 2.0, 3) == 1, "a half goes down"


@given(FPS, RATES, st.integers(-1000, 100_000), st.integers(1, 400), st.integers(1, 400))
def test_window_samples_abut_and_never_drift(fps: float, rate_hz: int, start: int, first: int, second: int) -> None:
    begin, num = window_samples(start, first, fps, rate_hz)
    next_begin, next_num = window_samples(start + first, second, fps, rate_hz)
    assert begin + num == next_begin
    exact = Fraction(start * rate_hz) / Fraction(str(fps))
    assert abs(begin - exact) <= Fraction(1, 2)
    whole = window_samples(start, first + second, fps, rate_hz)
    assert whole == (begin, num + next_num)


@given(st.integers(0, 40), st.integers(-50, 60), st.integers(0, 50))
def test_cut_samples_is_a_slice_of_the_sound_between_zeros(length: int, first: int, num_samples: int) -> None:
    samples = np.arange(1, length + 1, dtype=np.int16)
    padded = np.concatenate([np.zeros(60, np.int16), samples, np.zeros(120, np.int16)])
    found = cut_samples(samples, first, num_samples)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, padded[60 + first : 60 + first + num_samples])


def test_mono_samples_of_every_type() -> None:
    samples = noise(100)
    np.testing.assert_array_equal(mono_samples(samples), samples)
    np.testing.assert_array_equal(mono_samples(samples.astype(np.int64)), samples)
    np.testing.assert_array_equal(mono_samples(samples.astype(">i2")), samples)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(mono_samples(samples.astype(dtype) / 32768), samples)
    assert mono_samples(np.array([1.0, -1.0, 1.9, 0.00002])).tolist() == [32767, -32768, 32767, 1]
    for shape in ((0,), (0, 2), (1, 0)):
        assert mono_samples(np.zeros(shape, np.float32)).shape == (0,)


def test_mono_samples_averages_channels_whichever_side_they_are() -> None:
    stereo = np.stack([noise(50, 1), noise(50, 2)], axis=1)
    wanted = np.rint(stereo.mean(axis=1)).astype(np.int16)
    np.testing.assert_array_equal(mono_samples(stereo), wanted)
    np.testing.assert_array_equal(mono_samples(stereo.T), wanted)
    np.testing.assert_array_equal(mono_samples(stereo[:, :1].T), stereo[:, 0])


@pytest.mark.parametrize(
    ("array", "reason", "words"),
    [
        (np.array([0.5, np.nan]), DropReason.NON_FINITE, "sample 1"),
        (np.array([0.0, 20_000.0]), DropReason.WRONG_DTYPE, "floats from -1 to 1, found 20000"),
        (np.array([0, 32_768]), DropReason.WRONG_DTYPE, "16-bit integers, found 32768"),
        (np.array(["a"]), DropReason.WRONG_DTYPE, "found <U1"),
        (np.zeros((40, 50)), DropReason.WRONG_DIM, "(50, 40)"),
        (np.zeros((2, 3, 4)), DropReason.WRONG_DIM, "(2, 3, 4)"),
        (np.float32(1), DropReason.WRONG_DIM, "found ()"),
    ],
)
def test_mono_samples_refuses(array: Any, reason: DropReason, words: str) -> None:
    found, detail = reason_of(lambda: mono_samples(np.asarray(array)))
    assert (found, words in detail) == (reason, True), detail


@pytest.mark.parametrize("options", [{}, {"format": "FLAC"}, {"subtype": "FLOAT"}, {"subtype": "PCM_24"}])
def test_decode_sound_gives_the_samples_that_were_written(options: dict[str, str]) -> None:
    samples = noise(5000)
    stored = samples.astype(np.float64) / 32768 if "subtype" in options else samples
    audio = decode_sound(sound_bytes(stored, 22_050, **options))
    assert (audio.rate_hz, audio.num_samples) == (22_050, 5000)
    np.testing.assert_array_equal(audio.samples, samples)


def test_decode_sound_averages_channels() -> None:
    stereo = np.stack([noise(50, 1), noise(50, 2)], axis=1)
    found = decode_sound(sound_bytes(stereo)).samples
    np.testing.assert_array_equal(found, np.rint(stereo.mean(axis=1)).astype(np.int16))


def test_decode_sound_refuses_what_is_no_wav_or_flac() -> None:
    for data in (b"", b"RIFF", b"x" * 1000, sound_bytes(noise(500))[:30]):
        assert reason_of(lambda data=data: decode_sound(data))[0] is DropReason.UNREADABLE
    ogg = io.BytesIO()
    soundfile.write(ogg, np.zeros(2000, np.float32), 16_000, format="OGG", subtype="VORBIS")
    assert reason_of(lambda: decode_sound(ogg.getvalue())) == (
        DropReason.UNREADABLE,
        "audio: wanted wav or flac, found OGG: convert it",
    )


def test_what_is_said_of_bad_sound_is_the_same_each_time() -> None:
    """Drops stand in the dataset: an address in memory there would make other bytes of every run."""
    wanted = (DropReason.UNREADABLE, "audio: no wav or flac: Format not recognised.")
    for data in (b"", b"x" * 1000):
        assert reason_of(lambda data=data: decode_sound(data)) == wanted
        assert reason_of(lambda data=data: sound_length(io.BytesIO(data), len(data))) == wanted


def test_decode_sound_truncated_flac() -> None:
    data = sound_bytes(noise(50_000), format="FLAC")
    assert reason_of(lambda: decode_sound(data[: len(data) // 2]))[0] in (DropReason.UNREADABLE, DropReason.TRUNCATED)


def test_decode_sound_refuses_a_flac_that_grows_beyond_bounds() -> None:
    data = sound_bytes(np.zeros(40 << 20, np.int16), format="FLAC")
    assert len(data) < 1 << 20
    reason, detail = reason_of(lambda: decode_sound(data))
    assert (reason, f"promises {80 << 20} bytes" in detail) == (DropReason.UNREADABLE, True)


@given(st.binary(max_size=400), st.integers(0, 400), st.binary(min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_decode_sound_damaged_bytes_never_raise_else(junk: bytes, at: int, patch: bytes) -> None:
    for whole in (sound_bytes(noise(200)), sound_bytes(noise(200), format="FLAC")):
        for data in (junk, whole[:at] + patch + whole[at + len(patch) :], whole[:at] + junk):
            try:
                audio = decode_sound(data)
            except ClipError:
                continue
            assert audio.num_samples == len(audio.samples)


class CountingFile(io.BytesIO):
    num_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.num_read += len(data)
        return data


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_sound_length_reads_headers_only(kind: str) -> None:
    data = sound_bytes(noise(2_000_000), format=kind)
    file = CountingFile(data)
    assert sound_length(file, len(data)) == (16_000, 2_000_000)
    assert file.num_read < 200_000


def test_sound_length_hands_on_what_storage_raises() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise StorageError("storage is away")

    with pytest.raises(StorageError, match="storage is away"):
        sound_length(Failing(b"x" * 100), 100)


def test_flac_bytes_round_trip() -> None:
    samples = noise(3000)
    audio = decode_sound(flac_bytes(samples, 16_000))
    np.testing.assert_array_equal(audio.samples, samples)
    assert audio.rate_hz == 16_000


@pytest.mark.parametrize("rate_hz", [999, 1000, 44_100, 65_535, 65_537, 96_000, 96_001, 655_349, 655_350, 655_351])
def test_rate_fault_refuses_what_flac_cannot_hold(rate_hz: int) -> None:
    try:
        audio = decode_sound(flac_bytes(noise(100), rate_hz))
        is_held = (audio.rate_hz, audio.num_samples) == (rate_hz, 100)
    except (soundfile.SoundFileError, ClipError):
        is_held = False
    assert (rate_fault(rate_hz, is_for_flac=True) == "") == is_held
    assert (rate_fault(rate_hz, is_for_flac=False) == "") == (1000 <= rate_hz <= 655_350)


def test_seconds_beyond_motion() -> None:
    assert seconds_beyond_motion(ClipAudio(16_000, 64_000), 100, 25.0) == 0
    assert seconds_beyond_motion(ClipAudio(16_000, 64_800), 100, 25.0) == 0.05
    assert seconds_beyond_motion(ClipAudio(16_000, 48_000), 100, 25.0) == -1


def test_require_soundfile_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(ConfigError, match=r"reading wav needs .* pip install 'motion-tokens\[audio\]'"):
        require_soundfile("reading wav")
