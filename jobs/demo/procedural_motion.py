"""Speech-like FLAME motion from a seed: talking faces without a recording, for demonstrations and benchmarks.

Knows numpy only. Every clip is a speaker with a style of their own: a timeline of phrases, syllables, blinks
and stresses becomes a few control curves, and one fixed face basis turns these into columns of motion.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jobs.demo.speaker_timeline import (
    FPS,
    NUM_BROWS,
    NUM_MOODS,
    Floats,
    SpeakingStyle,
    draw_timeline,
    head_pose,
    on_value_grid,
    smooth_noise,
)

NUM_EXPRESSION, MOTION_DIM = 100, 106
MAX_EXPRESSION = 7.0

FACE_SEED = 106
"""Seed of the face basis, which all speakers share."""

GROUP_WEIGHTS = {"mouth": 0.5, "blink": 0.3, "brows": 0.3, "emotion": 0.5, "texture": 0.45, "jitter": 0.12}
"""Share of each group of controls in an expression column, in standard deviations of the column."""

GROUP_SIZES = {"mouth": 4, "blink": 1, "brows": NUM_BROWS, "emotion": NUM_MOODS, "texture": 24}

TEXTURE_HZ = np.geomspace(0.25, 2.5, GROUP_SIZES["texture"])
"""Cutoffs of what moves in a face beside speech."""


def speech_motion(num_frames: int, seed: int, fps: float = FPS) -> NDArray[np.float32]:
    """Return the motion of a talking face.

    Columns: 0:100 FLAME expression, standard deviation about ``(1 + d / 10) ** -0.5`` in column d over many
    speakers; 100:103 head pose and 103:106 jaw pose, axis-angle in radians, the jaw opening in 103.

    Args:
        num_frames: at least 1.
        seed: names the speaker and what is said; equal arguments give equal motion.
        fps: frames a second.

    Returns:
        (num_frames, 106).

    Raises:
        ValueError: num_frames or fps is not positive.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    timeline = draw_timeline(rng, num_frames, fps)
    style = timeline.style
    controls = {
        "mouth": timeline.mouth,
        "blink": timeline.lids,
        "brows": timeline.brows,
        "emotion": style.liveliness * smooth_noise(rng, np.full(NUM_MOODS, 0.07), num_frames, fps),
        "texture": style.liveliness * smooth_noise(rng, TEXTURE_HZ, num_frames, fps),
    }
    motion = np.empty((num_frames, MOTION_DIM))
    jitter = smooth_noise(rng, np.full(NUM_EXPRESSION, 2.0), num_frames, fps)
    motion[:, :NUM_EXPRESSION] = _expression(controls, jitter, style)
    motion[:, 100:103] = head_pose(rng, timeline, fps)
    motion[:, 103] = timeline.opening
    sideways = smooth_noise(rng, np.array([1.2, 0.8]), num_frames, fps)
    motion[:, 104:106] = sideways * (0.002 + 0.06 * timeline.opening[:, None])
    return on_value_grid(motion)


def motion_statistics(clips: Iterable[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of every column over all frames of all clips.

    Args:
        clips: (frames, dims) each, finite.

    Returns:
        mean (dims,) and std (dims,), in the motion's units; summed in float64.

    Raises:
        ValueError: there is no frame.
    """
    num_frames, total, squares = 0, np.zeros(()), np.zeros(())
    for clip in clips:
        frames = clip.astype(np.float64)
        num_frames += len(frames)
        total = total + frames.sum(axis=0)
        squares = squares + np.square(frames).sum(axis=0)
    if not num_frames:
        raise ValueError("statistics need at least one frame")
    mean = total / num_frames
    std = np.sqrt(np.maximum(squares / num_frames - np.square(mean), 0.0))
    return mean.astype(np.float32), std.astype(np.float32)


def _expression(controls: dict[str, Floats], jitter: Floats, style: SpeakingStyle) -> Floats:
    """Return ``7 * tanh(x / 7)`` of x = spread * sum over groups of weight * (controls @ basis), (frames, 100)."""
    basis = _face_basis()
    face = GROUP_WEIGHTS["jitter"] * jitter + 0.5 * (style.rest_face @ basis["emotion"])
    for name, curves in controls.items():
        face = face + GROUP_WEIGHTS[name] * (curves @ basis[name])
    spread = 1.25 * (1 + np.arange(NUM_EXPRESSION) / 10) ** -0.5
    return np.asarray(MAX_EXPRESSION * np.tanh(spread * face / MAX_EXPRESSION))


def _face_basis() -> dict[str, Floats]:
    """Return group -> (controls, 100): what each control does to a face; columns of unit length times 0.4 .. 1.5."""
    rng = np.random.Generator(np.random.PCG64(FACE_SEED))
    basis = {}
    for name, size in GROUP_SIZES.items():
        rows = rng.normal(size=(size, NUM_EXPRESSION))
        basis[name] = rows / np.linalg.norm(rows, axis=0) * rng.uniform(0.4, 1.5, NUM_EXPRESSION)
    return basis
