"""Speech-like ARKit face motion from a seed: 52 blend shapes, head and eyes of people who talk, listen and look around.

Knows numpy only. A speaker's timeline, the moods of a face and the gaze become control curves; tables say how much of
each blend shape a control moves. A shape is 0 wherever its controls add up to less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from jobs.demo.speaker_timeline import (
    FPS,
    Floats,
    Timeline,
    draw_timeline,
    head_pose,
    on_value_grid,
    smooth_noise,
    sum_bumps,
)

SHAPES = (
    *("EyeBlinkLeft", "EyeLookDownLeft", "EyeLookInLeft", "EyeLookOutLeft", "EyeLookUpLeft", "EyeSquintLeft"),
    *("EyeWideLeft", "EyeBlinkRight", "EyeLookDownRight", "EyeLookInRight", "EyeLookOutRight", "EyeLookUpRight"),
    *("EyeSquintRight", "EyeWideRight", "JawForward", "JawRight", "JawLeft", "JawOpen", "MouthClose", "MouthFunnel"),
    *("MouthPucker", "MouthRight", "MouthLeft", "MouthSmileLeft", "MouthSmileRight", "MouthFrownLeft"),
    *("MouthFrownRight", "MouthDimpleLeft", "MouthDimpleRight", "MouthStretchLeft", "MouthStretchRight"),
    *("MouthRollLower", "MouthRollUpper", "MouthShrugLower", "MouthShrugUpper", "MouthPressLeft", "MouthPressRight"),
    *("MouthLowerDownLeft", "MouthLowerDownRight", "MouthUpperUpLeft", "MouthUpperUpRight", "BrowDownLeft"),
    *("BrowDownRight", "BrowInnerUp", "BrowOuterUpLeft", "BrowOuterUpRight", "CheekPuff", "CheekSquintLeft"),
    *("CheekSquintRight", "NoseSneerLeft", "NoseSneerRight", "TongueOut"),
)
"""Blend shapes in the order of Live Link Face, each 0 .. 1."""

ANGLES = (
    *("HeadYaw", "HeadPitch", "HeadRoll", "LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll"),
    *("RightEyeYaw", "RightEyePitch", "RightEyeRoll"),
)
"""Columns behind the blend shapes, in radians."""

ARKIT_CHANNELS = SHAPES + ANGLES
COLUMN = {name: index for index, name in enumerate(ARKIT_CHANNELS)}

SPEECH: dict[str, dict[str, float]] = {
    "opening": {
        "JawOpen": 0.075,
        "MouthLowerDown": 0.06,
        "MouthUpperUp": 0.04,
        "MouthFunnel": 0.035,
        "MouthStretch": 0.012,
        "JawForward": 0.008,
        "MouthShrugLower": -0.01,
    },
    "width": {
        "MouthSmile": 0.04,
        "MouthStretch": 0.04,
        "MouthDimple": 0.012,
        "MouthUpperUp": 0.035,
        "MouthLowerDown": 0.03,
        "MouthFunnel": -0.03,
        "MouthPucker": -0.03,
    },
    "rounding": {
        "MouthFunnel": 0.08,
        "MouthPucker": 0.09,
        "MouthSmile": -0.03,
        "MouthStretch": -0.02,
        "MouthClose": 0.01,
        "MouthUpperUp": 0.02,
    },
    "press": {
        "MouthClose": 0.03,
        "MouthPress": 0.006,
        "MouthRollLower": 0.025,
        "MouthRollUpper": 0.015,
        "MouthShrugLower": 0.03,
        "MouthShrugUpper": 0.025,
        "MouthPucker": 0.03,
        "CheekPuff": 0.006,
        "JawOpen": -0.03,
        "MouthLowerDown": -0.04,
        "MouthUpperUp": -0.02,
        "MouthFunnel": -0.03,
    },
    "inner brow": {"BrowInnerUp": 0.12, "BrowDown": -0.06, "EyeWide": 0.03},
    "outer brow": {"BrowOuterUp": 0.1, "EyeWide": 0.04, "BrowDown": -0.04},
}
"""What one unit of each curve of a timeline (mouth, then brows) adds to shapes; a name without a side means both."""

CONSONANTS: dict[str, dict[str, float]] = {
    "teeth": {
        "MouthLowerDown": 0.12,
        "MouthUpperUp": 0.07,
        "MouthStretch": 0.03,
        "MouthSmile": 0.03,
        "JawForward": 0.01,
    },
    "lips": {
        "MouthClose": 0.03,
        "MouthPucker": 0.06,
        "MouthRollUpper": 0.006,
        "MouthShrugLower": 0.02,
        "JawOpen": -0.05,
    },
    "horn": {"MouthFunnel": 0.12, "MouthPucker": 0.03, "MouthLowerDown": 0.03, "MouthClose": 0.01},
    "drop": {"JawOpen": 0.07, "MouthLowerDown": 0.05, "MouthFunnel": 0.03},
}
"""What one unit of each quick movement between two vowels adds to shapes; half of them undo what is there."""

MOODS: dict[str, dict[str, float]] = {
    "smile": {
        "MouthSmile": 0.34,
        "CheekSquint": 0.17,
        "NoseSneer": 0.09,
        "MouthDimple": 0.06,
        "EyeSquint": 0.08,
        "MouthStretch": 0.04,
        "MouthFrown": -0.1,
        "MouthFunnel": -0.05,
    },
    "bared teeth": {
        "MouthLowerDown": 0.3,
        "MouthUpperUp": 0.17,
        "MouthDimple": 0.05,
        "JawForward": 0.06,
        "MouthStretch": 0.06,
        "JawOpen": 0.05,
        "MouthRollLower": -0.08,
        "MouthShrugLower": -0.08,
    },
    "lips in": {
        "MouthRollLower": 0.13,
        "MouthShrugLower": 0.1,
        "MouthShrugUpper": 0.06,
        "MouthPress": 0.012,
        "CheekPuff": 0.008,
        "MouthLowerDown": -0.1,
    },
    "chin up": {"MouthShrugLower": 0.08, "MouthShrugUpper": 0.07, "MouthPress": 0.01, "MouthFrown": 0.05},
    "frown": {"MouthFrown": 0.11, "MouthShrugUpper": 0.03, "MouthStretch": 0.03, "MouthSmile": -0.15},
    "sneer": {"NoseSneer": 0.1, "CheekSquint": 0.08, "MouthUpperUp": 0.05, "BrowDown": 0.06},
    "brows together": {"BrowDown": 0.25, "EyeSquint": 0.05, "BrowOuterUp": -0.1},
    "brows up": {"BrowInnerUp": 0.2, "BrowOuterUp": 0.24, "EyeWide": 0.06, "BrowDown": -0.08},
    "inner brows up": {"BrowInnerUp": 0.16, "MouthFrown": 0.02},
    "eyes wide": {"EyeWide": 0.24, "EyeSquint": -0.06},
    "narrow eyes": {"EyeSquint": 0.22, "CheekSquint": 0.03, "EyeWide": -0.08, "EyeBlink": 0.04},
    "heavy lids": {"EyeBlink": 0.08, "EyeWide": -0.05},
    "raised cheeks": {"CheekSquint": 0.1, "EyeSquint": 0.08, "NoseSneer": 0.03},
    "gape": {
        "JawOpen": 0.11,
        "MouthClose": 0.06,
        "MouthFunnel": 0.13,
        "MouthLowerDown": 0.05,
        "MouthStretch": 0.06,
        "MouthFrown": 0.05,
        "MouthPucker": 0.02,
    },
    "pucker": {"MouthPucker": 0.08, "MouthFunnel": 0.07, "CheekPuff": 0.006},
    "stretch": {"MouthStretch": 0.09, "MouthDimple": 0.02, "MouthFrown": 0.02},
    "jaw forward": {"JawForward": 0.05},
}
"""What one unit of a mood adds to shapes. Moods are never below 0, most of them 0 in most people."""

SIDEWAYS: dict[str, dict[str, float]] = {
    "jaw": {"JawRight": 0.05, "JawLeft": -0.02, "MouthRight": 0.02, "MouthLeft": -0.002},
    "mouth": {"MouthRight": 0.06, "MouthLeft": -0.01, "MouthSmileRight": -0.08, "MouthSmileLeft": 0.04},
}
"""What one unit to the right adds to shapes; to the left, its opposite."""

RARE = {"TongueOut": 0.004, "MouthLeft": 0.008, "CheekPuff": 0.008, "MouthRollUpper": 0.008}
"""Deviations of what moves these shapes beside the controls."""

OWN_SHARE, FLICKER_SHARE, OWN_HZ, FLICKER_HZ = 0.3, 0.015, (0.08, 1.2), 4.0
"""Each shape also moves on its own: shares of the deviation that moods give it, and how fast."""

LOOK_IN_RAD, LOOK_OUT_RAD, LOOK_DOWN_RAD, LOOK_UP_RAD = 0.61, 0.7, 0.585, 0.43
"""Eye angle at which the shape of that look is 1."""

HEAD_AMOUNTS, HEAD_SHARES = (0.0, 0.5, 1.0), (0.15, 0.35, 0.5)
"""How much of a timeline's head pose is seen, and in what share of people. Heads stand still in most real takes; where
they did in half of these, a codec learned to keep every head still."""

MAX_EYE_RAD = 0.65
SACCADE_S = 0.05
BLINK_PITCH_RAD = 0.065
"""Eyes turn down while the lids close: by so much a unit of the lids' curve, which is 4 when they are closed."""


@dataclass(frozen=True)
class _Face:
    """What one person's face does beside the timeline: drawn once a clip."""

    speech: float
    blink: float
    moods: Floats
    mood_spread: Floats
    moods_hz: Floats
    sideways: Floats
    rest: Floats
    gains: Floats


def arkit_motion(num_frames: int, seed: int, fps: float = FPS) -> NDArray[np.float32]:
    """Return the motion of a face as ARKit and Live Link Face write it.

    Columns: ARKIT_CHANNELS; 0:52 blend shapes, 0 .. 1, many of them exactly 0 at any time; 52:55 head and 55:61 eyes
    in radians. The timeline of syllables and blinks is that of `speech_motion` for the same seed. Some people only
    listen, and the heads of some stand still.

    Args:
        num_frames: at least 1.
        seed: names the person and what is said; equal arguments give equal motion.
        fps: frames a second.

    Returns:
        (num_frames, 61).

    Raises:
        ValueError: num_frames or fps is not positive.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    timeline = draw_timeline(rng, num_frames, fps)
    face = _draw_face(rng, timeline)
    moods = np.maximum(face.moods + face.mood_spread * smooth_noise(rng, face.moods_hz, num_frames, fps), 0)
    sideways = face.sideways + 0.5 * smooth_noise(rng, np.array([0.15, 0.15]), num_frames, fps)
    speech = np.concatenate([face.speech * timeline.mouth, timeline.brows], axis=1)
    quick = face.speech * _consonants(rng, timeline, fps)
    shapes = speech @ _rows(SPEECH) + quick @ _rows(CONSONANTS) + moods @ _rows(MOODS) + sideways @ _rows(SIDEWAYS)
    shapes = face.gains * shapes + face.rest + _own_motion(rng, num_frames, fps)
    lids = _slowly_opened(timeline.lids, fps)
    shapes += lids * _rows({"lids": {"EyeBlink": face.blink, "EyeSquint": 0.015, "EyeWide": -0.1}})
    yaw, pitch = _gaze(rng, num_frames, fps)
    eyes = _eye_angles(rng, yaw, pitch + BLINK_PITCH_RAD * (face.blink / 0.3) * lids[:, 0])
    motion = np.empty((num_frames, len(ARKIT_CHANNELS)))
    shapes = np.maximum(shapes, 0)
    motion[:, :52] = shapes / (1 + shapes**4) ** 0.25
    motion[:, 52:55] = rng.choice(HEAD_AMOUNTS, p=HEAD_SHARES) * head_pose(rng, timeline, fps)[:, [1, 0, 2]]
    motion[:, 55:61] = eyes
    _look(motion)
    return on_value_grid(motion)


def _draw_face(rng: np.random.Generator, timeline: Timeline) -> _Face:
    """Draw moods, habits, asymmetry and what a face is when nothing moves it."""
    num_moods = len(MOODS)
    sizes = _sizes()
    is_eye = np.array([name.startswith(("Eye", "Brow")) for name in SHAPES])
    both = rng.normal(-0.25, 0.5, len(SHAPES))[_mirrored()]
    side = rng.normal(size=len(SHAPES))
    return _Face(
        speech=float(rng.choice([0.0, 1.0], p=[0.3, 0.7]) * rng.uniform(0.6, 1.7)),
        blink=rng.uniform(0.1, 0.4),
        moods=rng.normal(-0.5, 1.2, num_moods),
        mood_spread=timeline.style.liveliness * rng.uniform(0.3, 0.9, num_moods),
        moods_hz=np.exp(rng.uniform(math.log(0.04), math.log(0.8), num_moods)),
        sideways=rng.normal(0.4, 1.0, len(SIDEWAYS)),
        rest=sizes * (both + np.where(is_eye, 0.02, 0.12) * side),
        gains=1 + np.where(is_eye, 0.015, 0.15) * rng.normal(size=len(SHAPES)),
    )


def _consonants(rng: np.random.Generator, timeline: Timeline, fps: float) -> Floats:
    """Return quick movements of the lips, two a syllable, 60 to 110 ms to either side of each: (frames, 4)."""
    syllables = timeline.syllables
    places = rng.uniform(-0.6, 0.6, (2, len(syllables.times)))
    times = (syllables.times + places * syllables.lengths).reshape(-1)
    heights = rng.normal(size=(len(times), len(CONSONANTS))) * np.tile(syllables.loudness, 2)[:, None]
    return sum_bumps(times, rng.uniform(0.06, 0.11, len(times)), heights, len(timeline.opening), fps)


def _slowly_opened(lids: Floats, fps: float) -> Floats:
    """Return the lids' curve with an end to each blink that falls by half in 40 ms: (frames, 1)."""
    opened = lids.copy()
    for lag in range(1, math.ceil(0.2 * fps) + 1):
        opened[lag:] = np.maximum(opened[lag:], 0.5 ** (lag / fps / 0.04) * lids[:-lag])
    return opened


def _own_motion(rng: np.random.Generator, num_frames: int, fps: float) -> Floats:
    """Return what every shape does that no control explains, mostly alike on both sides: (frames, 52)."""
    num_shapes, mirrored = len(SHAPES), _mirrored()
    cutoffs_hz = np.exp(rng.uniform(math.log(OWN_HZ[0]), math.log(OWN_HZ[1]), num_shapes))
    slow = smooth_noise(rng, cutoffs_hz, num_frames, fps)[:, mirrored] * rng.uniform(0.2, 1.4, num_shapes)[mirrored]
    flicker = smooth_noise(rng, np.full(num_shapes, FLICKER_HZ), num_frames, fps)
    return _sizes() * (OWN_SHARE * slow + FLICKER_SHARE * flicker)


def _gaze(rng: np.random.Generator, num_frames: int, fps: float) -> tuple[Floats, Floats]:
    """Return yaw and pitch of the gaze in radians, (frames,) each: it rests, then jumps within 50 ms, and drifts."""
    spread = math.exp(rng.uniform(math.log(0.015), math.log(0.25))) * np.array([1.0, 0.6])
    centre = rng.normal(size=2) * np.array([0.03, 0.06]) + np.array([0.0, -0.06])
    mean_s = rng.uniform(0.4, 2.0)
    num = math.ceil(num_frames / fps / (0.2 * mean_s)) + 2
    begins = np.cumsum(mean_s * (0.2 + rng.exponential(0.8, num))) - mean_s
    targets = centre + spread * rng.normal(size=(num, 2))
    frames_s = np.arange(num_frames) / fps
    knots_s = np.stack([begins, begins + SACCADE_S], axis=1).reshape(-1)
    values = np.concatenate([targets[:1], np.repeat(targets, 2, axis=0)[:-1]])
    drift = 0.15 * spread * smooth_noise(rng, np.array([0.8, 0.8]), num_frames, fps)
    yaw, pitch = (np.interp(frames_s, knots_s, values[:, axis]) + drift[:, axis] for axis in range(2))
    return yaw, pitch


def _eye_angles(rng: np.random.Generator, yaw: Floats, pitch: Floats) -> Floats:
    """Return yaw, pitch and roll of the left and of the right eye, (frames, 6): they meet at what they look at."""
    vergence = abs(rng.normal(0, 0.008))
    pitch = MAX_EYE_RAD * np.tanh(pitch / MAX_EYE_RAD)
    columns = []
    for sign in (1, -1):
        turned = MAX_EYE_RAD * np.tanh((yaw + sign * vergence) / MAX_EYE_RAD)
        columns += [turned, pitch, turned * pitch + rng.normal(0, 0.008)]
    return np.stack(columns, axis=1)


def _look(motion: Floats) -> None:
    """Set the shapes that say where the eyes look, from their angles, in place: (frames, 61)."""
    for side, inward in (("Left", 1), ("Right", -1)):
        yaw = inward * motion[:, COLUMN[f"{side}EyeYaw"]]
        pitch = motion[:, COLUMN[f"{side}EyePitch"]]
        looks = {
            "In": yaw / LOOK_IN_RAD,
            "Out": -yaw / LOOK_OUT_RAD,
            "Down": pitch / LOOK_DOWN_RAD,
            "Up": -pitch / LOOK_UP_RAD,
        }
        for name, value in looks.items():
            motion[:, COLUMN[f"EyeLook{name}{side}"]] = value.clip(0, 1)


def _rows(table: Mapping[str, Mapping[str, float]]) -> Floats:
    """Return a table as a matrix, (controls, 52)."""
    rows = np.zeros((len(table), len(SHAPES)))
    for row, shapes in zip(rows, table.values(), strict=True):
        for name, amount in shapes.items():
            names = [name] if name in COLUMN else [f"{name}Left", f"{name}Right"]
            row[[COLUMN[each] for each in names]] = amount
    return rows


@cache
def _sizes() -> Floats:
    """Return about how far each shape moves, (52,)."""
    tables = np.concatenate([_rows(SPEECH), _rows(CONSONANTS), _rows(MOODS), _rows(SIDEWAYS)])
    sizes: Floats = np.sqrt(np.square(tables).sum(axis=0))
    for name, size in RARE.items():
        sizes[COLUMN[name]] = size
    return sizes


@cache
def _mirrored() -> NDArray[np.int64]:
    """Return the column that each shape shares its random numbers with: of a pair, the left one's, (52,)."""
    lefts = {name: name.removesuffix("Right") + "Left" for name in SHAPES if name not in ("JawRight", "MouthRight")}
    return np.array([COLUMN.get(lefts.get(name, name), COLUMN[name]) for name in SHAPES])
