"""Sound beside motion: mono 16-bit samples, cut to windows to the sample.

Knows no Ray, torch, Arrow or storage. wav and flac go through soundfile, which the extra `audio` brings.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.contract.drop_reasons import ClipError, DropReason
from pipeline.errors import ConfigError
from pipeline.sources.limits import clip_bytes_fault, growth_fault

Samples = npt.NDArray[np.int16]

FULL_SCALE = 32768
"""A float sample of 1.0 as an integer; one step beyond the largest, which it becomes."""

MAX_FLOAT = 2.0
"""Floats beyond it are of another unit; those between 1 and it are peaks, and clipped."""

MAX_CHANNELS = 16
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 655_350
"""Slower is no sound, and may have windows without a sample; faster is more than flac holds."""
_FLAC_FINE_HZ, _FLAC_STEP_HZ = 65_535, 10
"""Flac holds every rate up to the first, above it only multiples of the second."""

_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC")
_EXACT_SUBTYPES = ("PCM_16", "PCM_S8", "PCM_U8")


@dataclass(frozen=True, eq=False)
class ClipAudio:
    """Sound of one clip, its first sample at the clip's first frame: built by readers, one a clip.

    `samples` is (num_samples,) mono; None where sound is only referenced, and then `path` says where it is.
    `drift_s` is how many seconds it is longer than the motion, known once the clip is prepared.
    """

    rate_hz: int
    num_samples: int
    samples: Samples | None = None
    path: str = ""
    drift_s: float = 0.0


def require_soundfile(purpose: str) -> Any:
    """Return the soundfile module.

    Raises:
        ConfigError: the extra `audio` is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"{purpose} needs the package soundfile, which does not load ({error}): pip install 'motion-tokens[audio]'"
        ) from error
    return soundfile


def mono_samples(array: npt.NDArray[Any]) -> Samples:
    """Return numbers as mono samples: floats from -1 to 1 are scaled by 32,768 and rounded, channels averaged.

    Args:
        array: (samples,), or (samples, channels) or (channels, samples): the shorter side is the channels.

    Raises:
        ClipError: another shape or type, NaN, or numbers beyond the range.
    """
    if array.dtype.kind not in "fiu":
        raise ClipError(DropReason.WRONG_DTYPE, f"audio: wanted floats or integers, found {array.dtype}")
    if array.ndim in (1, 2) and not array.size:
        return np.zeros(0, np.int16)
    if array.ndim == 2:
        array = array.T if array.shape[0] < array.shape[1] else array
        if array.shape[1] > MAX_CHANNELS:
            detail = f"audio: wanted (samples,) or up to {MAX_CHANNELS} channels, found shape {array.shape}"
            raise ClipError(DropReason.WRONG_DIM, detail)
    elif array.ndim == 1:
        array = array[:, None]
    else:
        raise ClipError(DropReason.WRONG_DIM, f"audio: wanted (samples,) or channels of it, found {array.shape}")
    if array.dtype != np.int16:
        _check_range(array)
    if array.dtype.kind != "f" and array.shape[1] == 1:
        return np.ascontiguousarray(array[:, 0], dtype=np.int16)
    mean = array.mean(axis=1, dtype=np.float64)
    scaled = np.rint(mean * FULL_SCALE if array.dtype.kind == "f" else mean)
    samples: Samples = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return samples


def decode_sound(data: bytes) -> ClipAudio:
    """Return the sound of a wav or flac file's bytes, channels averaged.

    Raises:
        ClipError: it is none, is damaged or ends early.
        ConfigError: the extra `audio` is not installed.
    """
    soundfile = require_soundfile("reading wav and flac")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate_hz, wanted = _checked_header(file, len(data))
            kind = "int16" if file.subtype in _EXACT_SUBTYPES else "float64"
            found = file.read(dtype=kind, always_2d=True)
    except (soundfile.SoundFileError, ValueError, TypeError, MemoryError) as error:
        raise ClipError(DropReason.UNREADABLE, f"audio: no wav or flac: {_said(error)}") from error
    if len(found) < wanted:
        raise ClipError(DropReason.TRUNCATED, f"audio: the header promises {wanted} samples, found {len(found)}")
    samples = mono_samples(found)
    return ClipAudio(rate_hz, len(samples), samples)


def sound_length(file: BinaryIO, num_bytes: int) -> tuple[int, int]:
    """Return rate and samples of a wav or flac file, of which only headers are read.

    Args:
        file: seekable.
        num_bytes: its size.

    Raises:
        ClipError: it is none.
        ConfigError: the extra `audio` is not installed.
        OSError, StorageError: what `file` raised.
    """
    soundfile = require_soundfile("looking into wav and flac")
    guarded = _Guarded(file)
    try:
        with soundfile.SoundFile(guarded) as opened:
            found = _checked_header(opened, num_bytes)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        guarded.raise_again()
        raise ClipError(DropReason.UNREADABLE, f"audio: no wav or flac: {_said(error)}") from error
    guarded.raise_again()
    return found


def rate_fault(rate_hz: int, *, is_for_flac: bool) -> str:
    """Return why sound of a rate cannot be stored, "" where it can.

    Args:
        is_for_flac: the windows' samples become flac files.
    """
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        return f"wanted {MIN_RATE_HZ:,} to {MAX_RATE_HZ:,} samples a second, found {rate_hz:,}"
    if is_for_flac and rate_hz > _FLAC_FINE_HZ and rate_hz % _FLAC_STEP_HZ:
        return f"flac cannot hold {rate_hz:,} samples a second: --set input.audio.encoding=int16"
    return ""


def sample_at(frame: int, fps: float, rate_hz: int) -> int:
    """Return the sample at which a frame begins: frame * rate_hz / fps, to the nearest, a half down.

    Rational arithmetic on the rate as it is written, so that long clips do not drift and windows abut.
    """
    frame_samples = _samples_a_frame(float(fps), rate_hz)
    return math.ceil(frame * frame_samples - Fraction(1, 2))


def window_samples(start_frame: int, num_frames: int, fps: float, rate_hz: int) -> tuple[int, int]:
    """Return first sample and number of samples of frames; 640 samples a frame at 16 kHz and 25 frames a second.

    Frames that follow each other give samples that follow each other. Where rate_hz / fps is no whole number,
    equally many frames can differ by one sample.
    """
    first = sample_at(start_frame, fps, rate_hz)
    return first, sample_at(start_frame + num_frames, fps, rate_hz) - first


def cut_samples(samples: Samples, first: int, num_samples: int) -> Samples:
    """Return (num_samples,) from sample `first` on, which may be negative; zeros where there are none."""
    found = np.zeros(num_samples, np.int16)
    start, stop = max(first, 0), min(first + num_samples, len(samples))
    if start < stop:
        found[start - first : stop - first] = samples[start:stop]
    return found


def flac_bytes(samples: Samples, rate_hz: int) -> bytes:
    """Return samples as a flac file, which loses nothing.

    Raises:
        ConfigError: the extra `audio` is not installed.
    """
    sink = io.BytesIO()
    require_soundfile("writing flac").write(sink, samples, rate_hz, format="FLAC", subtype="PCM_16")
    return sink.getvalue()


def seconds_beyond_motion(audio: ClipAudio, num_frames: int, fps: float) -> float:
    """Return how many seconds sound is longer than motion; negative where it is shorter."""
    return float(Fraction(audio.num_samples, audio.rate_hz) - num_frames / Fraction(repr(float(fps))))


@lru_cache
def _samples_a_frame(fps: float, rate_hz: int) -> Fraction:
    return rate_hz / Fraction(repr(fps))


class _Guarded:
    """A file whose errors are kept: libsndfile's callbacks lose them. Built for one look into a header."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: Exception | None = None

    def read(self, num_bytes: int) -> bytes:
        try:
            return self._file.read(num_bytes)
        except Exception as error:  # noqa: BLE001 - raised again as soon as the library has returned
            self._error = self._error or error
            return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(max(0, offset) if whence == io.SEEK_SET else offset, whence)
        except Exception as error:  # noqa: BLE001 - as above
            self._error = self._error or error
            return 0

    def tell(self) -> int:
        return self._file.tell()

    def raise_again(self) -> None:
        """Raise the first error that was met, if any."""
        if self._error is not None:
            raise self._error


def _said(error: Exception) -> str:
    """Return what an error says without the address in memory that soundfile puts before it: drops are bytes, too."""
    return str(getattr(error, "error_string", error))


def _checked_header(file: Any, stored_bytes: int) -> tuple[int, int]:
    """Return rate and samples of an opened sound file."""
    if file.format not in _FORMATS:
        raise ClipError(DropReason.UNREADABLE, f"audio: wanted wav or flac, found {file.format}: convert it")
    fault = rate_fault(file.samplerate, is_for_flac=False)
    if fault:
        raise ClipError(DropReason.AUDIO_RATE, fault)
    num_bytes = file.frames * file.channels * 2
    fault = clip_bytes_fault("audio", num_bytes) or growth_fault("audio", num_bytes, stored_bytes)
    if fault:
        raise ClipError(DropReason.UNREADABLE, fault)
    return file.samplerate, file.frames


def _check_range(array: npt.NDArray[Any]) -> None:
    if array.dtype.kind == "f":
        is_bad = ~np.isfinite(array)
        if is_bad.any():
            at = int(np.argmax(is_bad.any(axis=1)))
            raise ClipError(DropReason.NON_FINITE, f"audio: NaN or infinity at sample {at}")
        limit, wanted = MAX_FLOAT, "floats from -1 to 1"
    else:
        limit, wanted = float(FULL_SCALE), "16-bit integers"
    low, high = float(array.min()), float(array.max())
    if low < -limit or high > (limit if array.dtype.kind == "f" else limit - 1):
        far = low if -low > high else high
        raise ClipError(DropReason.WRONG_DTYPE, f"audio: wanted {wanted}, found {far:g}")
