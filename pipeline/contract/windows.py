"""Where windows stand in a clip: index arithmetic, pure.

Knows no Ray, torch, Arrow or storage.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.contract.specs import WindowRule

IntArray = NDArray[np.int64]


def window_starts(clip_id: str, num_frames: int, window_frames: int, rule: WindowRule) -> IntArray:
    """Return the `start_frame` of every window of a clip, rising, each once.

    The base grid is 0, stride, 2 * stride, .. where a whole window fits; the tail rule says what becomes
    of frames left over behind it; each phase adds the same grid shifted by a seeded offset.

    Args:
        clip_id: seeds the phases.
        num_frames: length of the clip, frames.
        window_frames: frames of one half of a window (T).
        rule: stride, tail and phases.

    Returns:
        (num_windows,); empty where the clip is too short for the rule.
    """
    last = num_frames - window_frames
    if last < 0:
        has_window = rule.tail == "pad" and num_frames > 0
        return np.zeros(int(has_window), dtype=np.int64)
    grids = [np.arange(0, last + 1, rule.stride, dtype=np.int64)]
    base_end = int(grids[0][-1])
    if base_end < last and rule.tail == "shift":
        grids.append(np.array([last], dtype=np.int64))
    if base_end < last and rule.tail == "pad" and base_end + rule.stride < num_frames:
        grids.append(np.array([base_end + rule.stride], dtype=np.int64))
    for phase in range(rule.phases):
        offset = phase_offset(clip_id, phase, rule)
        grids.append(np.arange(offset, last + 1, rule.stride, dtype=np.int64))
    return np.unique(np.concatenate(grids))


def phase_offset(clip_id: str, phase: int, rule: WindowRule) -> int:
    """Return the seeded offset of a phase, in 0 .. stride - 1 frames."""
    text = f"{rule.seed}\0{phase}\0{clip_id}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % rule.stride


def valid_frames(starts: IntArray, num_frames: int | IntArray, window_frames: int) -> tuple[IntArray, IntArray]:
    """Return how many frames of `prev` and of `this` are real, the others being zeros.

    Args:
        starts: (num_windows,) start frames.
        num_frames: length of the clip, frames; (num_windows,) for windows of several clips.
        window_frames: frames of one half of a window (T).

    Returns:
        Two (num_windows,) arrays in 0 .. T and 1 .. T.
    """
    prev_valid = np.minimum(starts, window_frames)
    this_valid = np.minimum(num_frames - starts, window_frames)
    return prev_valid, this_valid
