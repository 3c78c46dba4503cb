"""What every format gives: parts to read, raw clips, and clips prepared for the codec or refused by name.

Knows no format, file or Arrow.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.contract.carried import as_kind, kind_of_value
from pipeline.contract.drop_reasons import ClipError, ClipProblem, DropReason
from pipeline.contract.specs import AudioRule, CarriedColumn, CodecSpec, CorpusSpec
from pipeline.sources.audio import ClipAudio, seconds_beyond_motion
from pipeline.sources.limits import growth_fault

MAX_CLIP_ID_CHARS = 1024
MAX_TEXT_CHARS = 2048
FPS_TOLERANCE = 1e-6

_FLOAT_BYTES = (2, 4, 8)

AudioReader = Callable[[AudioRule], ClipAudio]
"""Reads a clip's audio; raises ClipError where it cannot be used."""


@dataclass(frozen=True)
class Part:
    """A slice of one file, read by one task: rows of Parquet, bytes of a tar, keys of LMDB, else the whole file.

    `start` and `stop` count rows or keys of the whole file, or bytes up to a member's header; None is the file's end.
    """

    input_name: str
    path: str
    format: str
    start: int | None = None
    stop: int | None = None

    @property
    def source(self) -> str:
        """The path as ledgers name it."""
        return qualified(self.input_name, self.path)

    @property
    def stem(self) -> str:
        """The path relative to its input, without suffix: the default clip id."""
        return str(PurePosixPath(self.path).with_suffix(""))

    def to_json(self) -> list[Any]:
        """Return the part as a JSON list."""
        return [self.input_name, self.path, self.format, self.start, self.stop]

    @staticmethod
    def from_json(fields: list[Any]) -> Part:
        """Return the part that `to_json` gave."""
        return Part(*fields)

    def problem(self, clip_id: str, where: str, reason: DropReason, detail: str) -> ClipProblem:
        """Return a problem at a place of this part; `clip_id` without the input's name, texts made safe."""
        full_id = printable(qualified(self.input_name, clip_id))[:MAX_CLIP_ID_CHARS]
        return ClipProblem(full_id, self.source, short(where), reason, short(detail))


@dataclass(frozen=True)
class ClipFields:
    """What a format stores beside a clip's motion, as stored: None, or no key, where there is none."""

    clip_id: Any = None
    fps: Any = None
    carried: Mapping[str, Any] = field(default_factory=dict)
    audio: AudioReader | None = None


@dataclass(frozen=True)
class RawClip:
    """Motion as stored, (frames, dims) of any dtype; `where` names row or member, "" a whole file."""

    clip_id: str
    source: str
    where: str
    motion: npt.NDArray[Any]
    fps: float | None
    carried: Mapping[str, Any] = field(default_factory=dict)
    """Fields that `input.carry` names, as stored; a missing one may be left out."""
    audio: AudioReader | None = None


@dataclass(frozen=True)
class PreparedClip:
    """Motion as the codec takes it, (frames, motion_dim) float32, C-contiguous and finite."""

    clip_id: str
    source: str
    where: str
    motion: npt.NDArray[np.float32]
    motion_digest: str
    carried: Mapping[str, Any] = field(default_factory=dict)
    """A value of its column's kind, or None, for each field that `input.carry` names."""
    audio: ClipAudio | None = None


def qualified(input_name: str, text: str) -> str:
    """Return an id or path with the input's name before it, if it has one."""
    return f"{input_name}/{text}" if input_name else text


def printable(text: str) -> str:
    r"""Return the text with lone surrogates and control characters written as ``\x..``."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return "".join(f"\\x{ord(char):02x}" if _is_control(char) else char for char in safe)


def short(text: str) -> str:
    """Return a printable text of at most `MAX_TEXT_CHARS`: names and messages may come from damaged files."""
    safe = printable(text[: MAX_TEXT_CHARS + 1])
    return safe if len(safe) <= MAX_TEXT_CHARS else f"{safe[: MAX_TEXT_CHARS - 3]}..."


def field_value(fields: Mapping[str, Any], configured: str | None, default: str) -> Any:
    """Return a clip's optional field: the configured one, else the default one, else None.

    Raises:
        ClipError: the configured field is missing.
    """
    if configured is not None and configured not in fields:
        found = ", ".join(sorted(fields)) or "none"
        raise ClipError(DropReason.MISSING_FIELD, f"no field {configured!r}, found: {found}")
    return fields.get(configured or default)


def fps_field(corpus: CorpusSpec) -> str | None:
    """Return the configured field with the rate, None where none is or a number is."""
    return corpus.fps if isinstance(corpus.fps, str) else None


def clip_fields(fields: Mapping[str, Any], corpus: CorpusSpec, audio: AudioReader | None = None) -> ClipFields:
    """Return what stands beside a clip's motion in a mapping of names to values.

    Raises:
        ClipError: a configured field for id or rate is missing.
    """
    return ClipFields(
        clip_id=field_value(fields, corpus.clip_id_field, "clip_id"),
        fps=field_value(fields, fps_field(corpus), "fps"),
        carried={column.name: fields[column.name] for column in corpus.carry if column.name in fields},
        audio=audio,
    )


def raw_clip(
    part: Part, where: str, default_id: str, motion: npt.NDArray[Any], fields: ClipFields, corpus: CorpusSpec
) -> RawClip | ClipProblem:
    """Return a clip as stored, or what is wrong with its id.

    Args:
        default_id: without the input's name; used where no id is stored.
    """
    id_value = fields.clip_id
    is_number = isinstance(id_value, int) and not isinstance(id_value, bool)
    clip_id = str(id_value) if is_number else id_value
    if clip_id is None:
        clip_id = default_id
    fault = _clip_id_fault(clip_id)
    if fault:
        return part.problem(default_id, where, DropReason.BAD_CLIP_ID, fault)
    fps = fields.fps if corpus.fps is None or isinstance(corpus.fps, str) else corpus.fps
    full_id = qualified(part.input_name, clip_id)
    return RawClip(full_id, part.source, short(where), motion, _as_fps(fps), fields.carried, fields.audio)


def prepare_clip(raw: RawClip, corpus: CorpusSpec, codec: CodecSpec) -> PreparedClip | ClipProblem:
    """Return the clip as the codec takes it, or the first reason it cannot be.

    In this order: id, columns, dims, rate, finite numbers (no NaN, no infinity), resampling, carried fields, audio.
    Whether it is long enough for a window is for windows.py to say; here only no frame at all is too short.
    """
    try:
        _check_clip_id(raw.clip_id)
        selected = _select_columns(raw.motion, corpus)
        if selected.shape[1] != codec.motion_dim:
            raise ClipError(DropReason.WRONG_DIM, f"wanted {codec.motion_dim} dims, found {selected.shape[1]}")
        rate = _checked_fps(raw.fps, corpus, codec.fps)
        motion = _finite_float32(selected, corpus)
        if rate != codec.fps:
            _check_resampled_size(selected, rate, codec.fps)
            motion = resample(selected, rate, codec.fps)  # of the stored numbers, not of those rounded to float32
        carried = {column.name: _carried(raw, column) for column in corpus.carry}
        audio = _checked_audio(raw, rate, corpus.audio)
    except ClipError as error:
        clip_id = printable(raw.clip_id)[:MAX_CLIP_ID_CHARS]
        return ClipProblem(clip_id, raw.source, raw.where, error.reason, short(error.detail))
    digest = content_digest(motion, audio)
    return PreparedClip(raw.clip_id, raw.source, raw.where, motion, digest, carried, audio)


def clip_to_measure(raw: RawClip, corpus: CorpusSpec, fps: float | None) -> RawClip | ClipProblem:
    """Return the clip with columns selected and float32, whatever its dims and numbers, or why it has none.

    Args:
        fps: None takes every clip at its own rate, known or not; a rate is that of a codec, as for `prepare_clip`.
    """
    try:
        _check_clip_id(raw.clip_id)
        selected = _select_columns(raw.motion, corpus)
        if fps is None:
            rate = raw.fps if raw.fps is not None and _is_rate(raw.fps) else None
        else:
            rate = _checked_fps(raw.fps, corpus, fps)
        with np.errstate(over="ignore", invalid="ignore"):
            if fps is not None and rate is not None and rate != fps:
                _check_resampled_size(selected, rate, fps)
                return replace(raw, motion=resample(selected, rate, fps), fps=fps)
            motion = np.ascontiguousarray(selected, dtype=np.float32)
    except ClipError as error:
        clip_id = printable(raw.clip_id)[:MAX_CLIP_ID_CHARS]
        return ClipProblem(clip_id, raw.source, raw.where, error.reason, short(error.detail))
    return replace(raw, motion=motion, fps=rate)


def resample(motion: npt.NDArray[Any], fps_in: float, fps_out: float) -> npt.NDArray[np.float32]:
    """Return motion at another rate, linear between frames, in float64.

    Args:
        motion: (frames, dims), at least one frame.
        fps_in: frames a second of `motion`.
        fps_out: frames a second wanted.

    Returns:
        (floor((frames - 1) * fps_out / fps_in) + 1, dims): sample i stands at i / fps_out seconds.
    """
    last = len(motion) - 1
    num_out = math.floor(last * fps_out / fps_in) + 1
    positions = np.minimum(np.arange(num_out, dtype=np.float64) * fps_in / fps_out, last)
    left = positions.astype(np.int64)
    right = np.minimum(left + 1, last)
    start = motion[left].astype(np.float64)
    step = motion[right].astype(np.float64) - start
    return np.ascontiguousarray(start + step * (positions - left)[:, None], dtype=np.float32)


def content_digest(motion: npt.NDArray[np.float32], audio: ClipAudio | None) -> str:
    """Return the digest of (frames, dims), and of the audio too where that is carried: else motion alone counts.

    Audio that is only referenced counts by its path, rate and length.
    """
    of_motion = motion_digest(motion)
    if audio is None:
        return of_motion
    digest = hashlib.sha256(f"{of_motion}\0{audio.rate_hz}\0{audio.num_samples}\0{audio.path}\0".encode())
    if audio.samples is not None:
        digest.update(np.ascontiguousarray(audio.samples, dtype="<i2").data)
    return digest.hexdigest()[:32]


def motion_digest(motion: npt.NDArray[np.float32]) -> str:
    """Return 32 hex digits of the SHA-256 of shape and little-endian float32 bytes of (frames, dims)."""
    digest = hashlib.sha256(np.array(motion.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(motion, dtype="<f4").data)
    return digest.hexdigest()[:32]


def _is_control(char: str) -> bool:
    return char < " " or "\x7f" <= char < "\xa0"


def _clip_id_fault(clip_id: object) -> str:
    """Return what is wrong with an id, "" where nothing is."""
    if not isinstance(clip_id, str):
        return f"the id is no text but {type(clip_id).__name__}"
    if not 0 < len(clip_id) <= MAX_CLIP_ID_CHARS:
        return f"the id has {len(clip_id)} characters, wanted 1 to {MAX_CLIP_ID_CHARS}"
    if any(_is_control(char) for char in clip_id):
        return f"the id {printable(clip_id)} holds a control character"
    if any("\ud800" <= char <= "\udfff" for char in clip_id):
        return f"the id {printable(clip_id)} is not UTF-8"
    return ""


def _check_clip_id(clip_id: str) -> None:
    fault = _clip_id_fault(clip_id)
    if fault:
        raise ClipError(DropReason.BAD_CLIP_ID, fault)


def _as_fps(value: Any) -> float | None:
    """Return a stored rate as a number: NaN where it is none, None where nothing is stored."""
    if value is None:
        return None
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _select_columns(motion: npt.NDArray[Any], corpus: CorpusSpec) -> npt.NDArray[Any]:
    """Return the selected dims of motion as stored, (frames, dims)."""
    if motion.dtype.kind != "f" or motion.dtype.itemsize not in _FLOAT_BYTES:
        raise ClipError(DropReason.WRONG_DTYPE, f"wanted float16, float32 or float64, found {motion.dtype}")
    if motion.ndim and not len(motion):
        raise ClipError(DropReason.TOO_SHORT, "no frame")
    if motion.ndim != 2:
        raise ClipError(DropReason.WRONG_DIM, f"wanted (frames, dims), found shape {motion.shape}")
    stored, columns = motion.shape[1], corpus.columns
    if corpus.motion_dim is not None and stored != corpus.motion_dim:
        raise ClipError(
            DropReason.WRONG_DIM, f"wanted {corpus.motion_dim} dims as input.motion_dim says, found {stored}"
        )
    if columns is not None and max(columns) >= stored:
        raise ClipError(DropReason.WRONG_DIM, f"wanted column {max(columns)}, found {stored} dims")
    return motion if columns is None else motion[:, list(columns)]


def _checked_fps(fps: float | None, corpus: CorpusSpec, wanted: float) -> float:
    """Return the rate to convert from; the wanted one itself where they agree."""
    if fps is None:
        raise ClipError(DropReason.FPS_MISSING, f"no rate stored, the codec's is {wanted:g}")
    if not _is_rate(fps):
        raise ClipError(DropReason.FPS_MISSING, f"the stored rate {fps:g} is no positive number")
    if math.isclose(fps, wanted, rel_tol=FPS_TOLERANCE):
        return wanted
    if corpus.resample != "linear":
        raise ClipError(DropReason.FPS_MISMATCH, f"wanted {wanted:g} frames a second, found {fps:g}")
    return fps


def _carried(raw: RawClip, column: CarriedColumn) -> Any:
    """Return a value as its column holds it; an array of one element counts as that element where no list is wanted."""
    value = raw.carried.get(column.name)
    if isinstance(value, np.ndarray) and value.size == 1 and not column.kind.startswith("list"):
        value = value.item()
    try:
        return as_kind(value, column.kind)
    except ValueError as error:
        kind = kind_of_value(value)
        advice = f"; input.carry={column.name}:{kind} would keep it" if kind not in (None, column.kind) else ""
        raise ClipError(DropReason.WRONG_DTYPE, f"carried field {column.name!r}: {error}{advice}") from error


def _checked_audio(raw: RawClip, fps: float, rule: AudioRule | None) -> ClipAudio | None:
    """Return a clip's audio, which lasts as long as its motion at the stored rate."""
    if rule is None:
        return None
    if raw.audio is None:
        raise ClipError(DropReason.AUDIO_MISSING, f"no audio in {rule.field!r}")
    audio = raw.audio(rule)
    drift = seconds_beyond_motion(audio, len(raw.motion), fps)
    if abs(drift) > rule.tolerance_s:
        lengths = f"audio of {audio.num_samples / audio.rate_hz:.3f} s, motion of {len(raw.motion) / fps:.3f} s"
        raise ClipError(DropReason.AUDIO_MISMATCH, f"{lengths}: {rule.tolerance_s:g} s more or less are allowed")
    return replace(audio, drift_s=drift)


def _is_rate(fps: float) -> bool:
    return math.isfinite(fps) and fps > 0


def _check_resampled_size(selected: npt.NDArray[Any], fps_in: float, fps_out: float) -> None:
    """Refuse rates close to 0, which would make endless motion of few frames."""
    growth = fps_out / fps_in
    num_bytes = selected.size * 4 * growth
    if not math.isfinite(num_bytes):
        raise ClipError(DropReason.FPS_MISMATCH, f"{fps_in:g} frames a second cannot be made {fps_out:g}")
    fault = growth_fault(f"motion of {fps_in:g} frames a second", int(num_bytes), selected.nbytes)
    if fault:
        raise ClipError(DropReason.FPS_MISMATCH, fault)


def _finite_float32(selected: npt.NDArray[Any], corpus: CorpusSpec) -> npt.NDArray[np.float32]:
    """Return motion as float32.

    Raises:
        ClipError: a number is NaN or infinite, or becomes so.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        motion = np.ascontiguousarray(selected, dtype=np.float32)
    is_finite = np.isfinite(motion)
    if not is_finite.all():
        frame, dim = np.unravel_index(int(np.argmin(is_finite)), motion.shape)
        column = int(dim) if corpus.columns is None else corpus.columns[int(dim)]
        found = selected[frame, dim]
        raise ClipError(DropReason.NON_FINITE, f"{found} at frame {frame}, column {column}, as float32")
    return motion
