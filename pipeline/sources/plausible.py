"""Motion that is well formed and yet no motion of a face: values far outside the statistics, and frames that repeat.

Knows no format or file. Off where a limit is None.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.contract.drop_reasons import ClipProblem, DropReason
from pipeline.contract.specs import CorpusSpec
from pipeline.sources.clip import PreparedClip

BLOCK_FRAMES = 4096
"""Frames that are looked at in one step when a fault is searched for."""
FRAMES_AT_ONCE = 16
"""Frames that are compared in one step when a clip's range is taken: numpy is three times as fast on long rows."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and deviation of the motion that the codec was trained with, (motion_dim,) each, deviations above 0."""

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]


def check_plausible(
    clip: PreparedClip, corpus: CorpusSpec, statistics: Statistics | None
) -> PreparedClip | ClipProblem:
    """Return the clip, or that it explodes or is frozen; frames count at the codec's rate.

    Args:
        statistics: None leaves exploding motion unchecked.
    """
    faults: dict[DropReason, str] = {}
    if statistics is not None and corpus.max_abs_z is not None:
        faults[DropReason.EXPLODING] = _explosion(clip.motion, statistics, corpus)
    if corpus.max_frozen_frames is not None and not any(faults.values()):
        faults[DropReason.FROZEN] = frozen_run(clip.motion, corpus.max_frozen_frames)
    for reason, fault in faults.items():
        if fault:
            return ClipProblem(clip.clip_id, clip.source, clip.where, reason, fault)
    return clip


def _explosion(motion: npt.NDArray[np.float32], statistics: Statistics, corpus: CorpusSpec) -> str:
    """Return what the first value above the limit is, "" where none is.

    Rounding keeps order: no value is further off than the least or the greatest of its column.
    """
    with np.errstate(over="ignore"):
        edges = (np.stack(column_range(motion)) - statistics.mean) / statistics.std
    if not (np.abs(edges) > corpus.max_abs_z).any():
        return ""
    for start in range(0, len(motion), BLOCK_FRAMES):
        with np.errstate(over="ignore"):
            z = (motion[start : start + BLOCK_FRAMES] - statistics.mean) / statistics.std
        is_far = np.abs(z) > corpus.max_abs_z
        if is_far.any():
            frame, dim = np.unravel_index(int(np.argmax(is_far)), z.shape)
            column = int(dim) if corpus.columns is None else corpus.columns[int(dim)]
            found = f"{motion[start + frame, dim]:g} at frame {start + frame}, column {column}"
            return f"{found} is {z[frame, dim]:g} deviations off, {corpus.max_abs_z:g} are allowed"
    return ""


def column_range(motion: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the least and the greatest value of each column, (dims,) each, of (frames, dims) with a frame or more."""
    num_frames, num_dims = motion.shape
    stop = num_frames - num_frames % FRAMES_AT_ONCE
    low = high = rest = motion[stop:]
    if stop:
        long_rows = motion[:stop].reshape(-1, FRAMES_AT_ONCE * num_dims)
        low = np.concatenate([long_rows.min(axis=0).reshape(-1, num_dims), rest])
        high = np.concatenate([long_rows.max(axis=0).reshape(-1, num_dims), rest])
    return low.min(axis=0), high.max(axis=0)


def frozen_run(motion: npt.NDArray[np.float32], max_frames: int, block_frames: int = BLOCK_FRAMES) -> str:
    """Return where the first run of more than `max_frames` equal frames stands, "" where none does.

    Args:
        motion: (frames, dims).
        max_frames: equal frames that are allowed.
        block_frames: frames that are compared at once.
    """
    begin = 0
    for start in range(0, len(motion) - 1, block_frames):
        block = motion[start : start + block_frames + 1]
        changes = np.flatnonzero((block[1:] != block[:-1]).any(axis=1)) + start + 1
        edges = [begin, *changes.tolist(), start + len(block)]
        for first, stop in itertools.pairwise(edges):
            if stop - first > max_frames:
                return f"more than {max_frames} equal frames from frame {first} on, all columns alike"
        begin = edges[-2]
    return ""
