"""Reasons a clip is dropped for: a closed list, each with the words that a person reads.

Knows no Ray, torch, Arrow or storage.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DropReason(StrEnum):
    """Why a clip is not in the dataset; the value stands in ledgers and quarantine.parquet.

    Given by: the readers in sources/formats/ (what cannot be read), sources/clip.py (what is no motion), plausible.py
    (what moves as no face does), audio.py and stored_audio.py, stages/read.py (too short, crashed), export/clips.py.
    """

    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    MISSING_FIELD = "missing_field"
    WRONG_DIM = "wrong_dim"
    WRONG_DTYPE = "wrong_dtype"
    NON_FINITE = "non_finite"
    EXPLODING = "exploding"
    FROZEN = "frozen"
    TOO_SHORT = "too_short"
    FPS_MISSING = "fps_missing"
    FPS_MISMATCH = "fps_mismatch"
    BAD_CLIP_ID = "bad_clip_id"
    AUDIO_MISSING = "audio_missing"
    AUDIO_RATE = "audio_rate"
    AUDIO_MISMATCH = "audio_mismatch"
    CRASHED = "crashed"
    DUPLICATE_ID = "duplicate_id"


NEXT_STEP: dict[DropReason, str] = {
    DropReason.UNREADABLE: "the file or record cannot be decoded: restore it from its source",
    DropReason.TRUNCATED: "the file ends early: copy it again",
    DropReason.MISSING_FIELD: "name your fields with --set input.motion_field=NAME, input.clip_id_field or input.fps",
    DropReason.WRONG_DIM: "select columns with --set input.columns=..., say the dims of flat lists with "
    "--set input.motion_dim=NUMBER, or use a codec of this dimension",
    DropReason.WRONG_DTYPE: "store motion as float16, float32 or float64, audio as floats or 16-bit integers, and "
    "carried values of one type",
    DropReason.NON_FINITE: "the motion holds NaN or infinity: mend the tracker's output",
    DropReason.EXPLODING: "values far outside the codec's statistics: mend the tracker's output, or check the units "
    "and columns; --set input.max_abs_z=NUMBER or null allows more",
    DropReason.FROZEN: "the motion stands still: cut that part out, or allow more with --set input.max_frozen_frames",
    DropReason.TOO_SHORT: "keep short clips with --set window.tail=pad",
    DropReason.FPS_MISSING: "say the rate, a positive number, with --set input.fps=NUMBER or input.fps=FIELD",
    DropReason.FPS_MISMATCH: "convert the rate with --set input.resample=linear",
    DropReason.BAD_CLIP_ID: "clip ids are text of 1 to 1,024 characters without control characters",
    DropReason.AUDIO_MISSING: "name its field with --set input.audio.field=NAME; paths count from the folder of the "
    "file that names them, and lie inside the input",
    DropReason.AUDIO_RATE: "convert the audio, or say another rate with --set input.audio.rate_hz=NUMBER",
    DropReason.AUDIO_MISMATCH: "audio and motion differ in length: look whether they belong together, or allow more "
    "with --set input.audio.tolerance_s=SECONDS",
    DropReason.CRASHED: "reading it killed the process, each time: look at the file by itself",
    DropReason.DUPLICATE_ID: "one id, two motions: rename one, or --set input.duplicate_ids=suffix",
}


@dataclass(frozen=True)
class ClipProblem:
    """A clip that cannot be used, where it stands and why; `clip_id` may be only the file's."""

    clip_id: str
    source: str
    where: str
    reason: DropReason
    detail: str


class ClipError(Exception):
    """A clip cannot be used; raised and caught where clips are read and prepared, becomes a ClipProblem there."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
