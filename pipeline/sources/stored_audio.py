"""Sound as it is stored with a clip: numbers, a wav or flac file's bytes, or a path; read when a clip is prepared.

Knows folders, and no format of motion. Paths count from the folder of the file that names them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.contract.drop_reasons import ClipError, DropReason
from pipeline.contract.specs import AudioRule
from pipeline.sources.audio import ClipAudio, decode_sound, mono_samples, rate_fault, sound_length
from pipeline.sources.clip import Part, printable, qualified
from pipeline.sources.limits import clip_bytes_fault
from pipeline.storage import Folder, StoredFile

_MAX_PATH_CHARS, _MAX_NAME_BYTES = 1024, 255


@dataclass(frozen=True, eq=False)
class StoredAudio:
    """A clip's sound before it is read: built by the readers, called once by whoever prepares the clip.

    `value` is an array, bytes of a wav or flac file (an array of uint8 too), a path, or a mapping with `bytes` and
    `path` or with `array` and `sampling_rate`, as Hugging Face `datasets` has them; None where the clip has none.
    """

    value: Any
    folder: Folder
    part: Part

    def __call__(self, rule: AudioRule) -> ClipAudio:
        """Return the sound, decoded, or where it stands.

        Raises:
            ClipError: there is none, it cannot be decoded, or has another rate than the configured one.
            StorageError: storage does not answer.
        """
        value, rate_hz = _unwrapped(self.value, rule)
        if value is None:
            raise ClipError(DropReason.AUDIO_MISSING, f"no audio in {rule.field!r}")
        audio = self._referenced(value) if rule.mode == "reference" else self._read(value, rate_hz)
        if rule.rate_hz is not None and audio.rate_hz != rule.rate_hz:
            detail = f"wanted {rule.rate_hz} samples a second, found {audio.rate_hz}"
            raise ClipError(DropReason.AUDIO_RATE, detail)
        fault = rate_fault(audio.rate_hz, is_for_flac=rule.mode == "cut" and rule.encoding == "flac")
        if fault:
            raise ClipError(DropReason.AUDIO_RATE, fault)
        return audio

    def _read(self, value: Any, rate_hz: int | None) -> ClipAudio:
        if isinstance(value, str):
            file = self._file(value)
            return decode_sound(self.folder.read(file.path))
        if isinstance(value, bytes):
            return decode_sound(value)
        if not isinstance(value, np.ndarray):
            raise ClipError(DropReason.WRONG_DTYPE, f"audio: wanted numbers, bytes or a path, found {_type(value)}")
        samples = mono_samples(value)
        if rate_hz is None:
            detail = "an array does not say its samples a second: --set input.audio.rate_hz=NUMBER"
            raise ClipError(DropReason.AUDIO_RATE, detail)
        return ClipAudio(rate_hz, len(samples), samples)

    def _referenced(self, value: Any) -> ClipAudio:
        if not isinstance(value, str):
            detail = f"input.audio.mode reference wants a path, found {_type(value)}: use mode cut"
            raise ClipError(DropReason.AUDIO_MISSING, detail)
        file = self._file(value)
        with self.folder.open(file.path) as opened:
            rate_hz, num_samples = sound_length(opened, file.num_bytes)
        return ClipAudio(rate_hz, num_samples, path=qualified(self.part.input_name, file.path))

    def _file(self, path: str) -> StoredFile:
        """Return the file that a stored path names."""
        fault = _path_fault(path)
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(self.part.path), path))
        if not fault and inside.split("/")[0] == "..":
            fault = "lies outside the input: name a folder as input that holds both"
        if fault:
            raise ClipError(DropReason.AUDIO_MISSING, f"the path {printable(path[:200])!r} {fault}")
        file = self.folder.stat(inside)
        if file is None:
            raise ClipError(DropReason.AUDIO_MISSING, f"no file at {inside}")
        too_large = clip_bytes_fault(inside, file.num_bytes)
        if too_large:
            raise ClipError(DropReason.UNREADABLE, too_large)
        return file


def _unwrapped(value: Any, rule: AudioRule) -> tuple[Any, int | None]:
    """Return array, bytes or path, and the rate of an array."""
    rate_hz = rule.rate_hz
    if isinstance(value, Mapping):
        stored = value.get("sampling_rate")
        if isinstance(stored, int | float) and stored > 0 and float(stored).is_integer():
            rate_hz = int(stored)
        names = ("path", "array", "bytes") if rule.mode == "reference" else ("array", "bytes", "path")
        value = next((value[name] for name in names if value.get(name) is not None), None)
    if isinstance(value, list):
        value = _array_of(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "U" and value.size == 1:
            return str(value.item()), rate_hz
        if value.dtype == np.uint8:
            return value.tobytes(), rate_hz
    return value, rate_hz


def _array_of(numbers: list[Any]) -> Any:
    """Return a list of numbers as an array, any other list as it is."""
    try:
        array = np.array(numbers)
    except (TypeError, ValueError, OverflowError):
        return numbers
    return array if array.dtype.kind in "fiu" and array.dtype != np.uint8 else numbers


def _path_fault(path: str) -> str:
    if not path or printable(path) != path:
        return "is empty or holds characters that no file name has"
    if path.startswith("/") or "://" in path:
        return "is no path relative to the folder of the file that names it"
    if len(path) > _MAX_PATH_CHARS or any(len(name.encode()) > _MAX_NAME_BYTES for name in path.split("/")):
        return "is too long"
    return ""


def _type(value: Any) -> str:
    return f"{value.dtype} numbers" if isinstance(value, np.ndarray) else type(value).__name__
