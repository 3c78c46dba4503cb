"""Who speaks, and when: a speaker's habits and a timeline of syllables, blinks and stresses, drawn from a seed.

Knows numpy only, and no motion space: curves of jaw, lips, lids, brows and head, which a face turns into columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FPS = 25.0
MAX_JAW_RAD = 0.25
NUM_BROWS, NUM_MOODS = 2, 5

VALUE_STEP = 2.0**-16
"""Motion is rounded to multiples of it, so that the last bits of a machine's arithmetic do not show."""

VOWELS = np.array(
    [[1.0, 0.1, -0.2], [0.65, 0.6, -0.4], [0.35, 1.0, -0.5], [0.75, -0.5, 0.8], [0.35, -0.9, 1.0], [0.5, 0.0, 0.0]]
)
"""(vowel, 3): jaw opening, lip width and lip rounding of a, e, i, o, u and a neutral vowel, -1 .. 1."""


@dataclass(frozen=True)
class SpeakingStyle:
    """How one speaker talks; drawn once a clip. Times in seconds, angles in radians."""

    syllable_hz: float
    opening_rad: float
    phrase_s: float
    pause_s: float
    blink_s: float
    liveliness: float
    stress_share: float
    nod_rad: float
    sway_rad: Floats
    sway_hz: float
    rest_pose_rad: Floats
    rest_face: Floats


@dataclass(frozen=True)
class Syllables:
    """Times (s), lengths (s), loudness 0 .. 1, stress (0 where there is none) and vowel shapes (n, 3)."""

    times: Floats
    lengths: Floats
    loudness: Floats
    stress: Floats
    shapes: Floats
    phrase_times: Floats


@dataclass(frozen=True)
class Timeline:
    """One speaker's clip: what `draw_timeline` draws. Curves have the clip's frames.

    Attributes:
        opening: (frames,) of the jaw, 0 .. 0.25 rad.
        mouth: (frames, 4) opening, width, rounding and press of the lips, of unit size.
        lids: (frames, 1) 0 open .. 4 closed.
        brows: (frames, 2) inner and outer, raised above 0, of unit size.
    """

    style: SpeakingStyle
    syllables: Syllables
    opening: Floats
    mouth: Floats
    lids: Floats
    brows: Floats


def draw_timeline(rng: np.random.Generator, num_frames: int, fps: float) -> Timeline:
    """Return a speaker and what they do; equal states of the generator give equal timelines.

    Raises:
        ValueError: num_frames or fps is not positive.
    """
    if num_frames < 1 or not fps > 0:
        raise ValueError(f"num_frames {num_frames} and fps {fps} must be positive")
    style = _draw_style(rng)
    syllables = _draw_syllables(rng, style, num_frames / fps)
    opening = _jaw_opening(syllables, style, num_frames, fps)
    mouth = _mouth_curves(rng, syllables, opening, fps)
    lids = _lid_curves(rng, style, num_frames, fps)
    return Timeline(style, syllables, opening, mouth, lids, _brow_curves(rng, style, syllables, num_frames, fps))


def head_pose(rng: np.random.Generator, timeline: Timeline, fps: float) -> Floats:
    """Return pitch, yaw and roll in radians: a rest pose, slow sway, and nods on stressed syllables, (frames, 3)."""
    style, syllables, num_frames = timeline.style, timeline.syllables, len(timeline.opening)
    cutoffs_hz = style.sway_hz * np.array([1.3, 1.0, 0.8])
    sway = style.sway_rad * smooth_noise(rng, cutoffs_hz, num_frames, fps)
    tilt = np.array([1.0, *(np.array([0.15, 0.1]) * rng.choice([-1.0, 1.0], 2))])
    nods = style.nod_rad * syllables.stress[:, None] * tilt
    nodding = sum_bumps(syllables.times + 0.04, np.full(len(nods), 0.28), nods, num_frames, fps)
    return np.asarray(style.rest_pose_rad + sway + nodding)


def on_value_grid(motion: Floats) -> NDArray[np.float32]:
    """Round motion to multiples of VALUE_STEP."""
    return (np.round(motion / VALUE_STEP) * VALUE_STEP).astype(np.float32)


def _draw_style(rng: np.random.Generator) -> SpeakingStyle:
    """Return a speaker's habits."""
    return SpeakingStyle(
        syllable_hz=rng.uniform(3.0, 6.0),
        opening_rad=rng.uniform(0.06, 0.2),
        phrase_s=rng.uniform(1.2, 4.0),
        pause_s=rng.uniform(0.3, 1.5),
        blink_s=rng.uniform(2.0, 4.5),
        liveliness=rng.uniform(0.6, 1.35),
        stress_share=rng.uniform(0.15, 0.4),
        nod_rad=rng.uniform(0.02, 0.1),
        sway_rad=rng.uniform(0.4, 1.4) * np.array([0.08, 0.09, 0.06]),
        sway_hz=rng.uniform(0.12, 0.5),
        rest_pose_rad=rng.normal(size=3) * np.array([0.05, 0.07, 0.03]),
        rest_face=rng.normal(size=NUM_MOODS),
    )


def smooth_noise(rng: np.random.Generator, cutoffs_hz: Floats, num_frames: int, fps: float) -> Floats:
    """Return Gaussian noise of unit variance behind a low-pass filter.

    The gain at f is ``(1 + (f / cutoff) ** 4) ** -0.5``, a Butterworth filter of second order.

    Args:
        cutoffs_hz: (channels,).

    Returns:
        (num_frames, channels).
    """
    margin = math.ceil(2 * fps / float(cutoffs_hz.min()))  # keeps the ends apart: the transform is circular
    length = 1 << (num_frames + margin - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal((len(cutoffs_hz), length)), axis=1)
    frequencies = np.fft.rfftfreq(length, 1 / fps)
    gain = (1 + (frequencies / cutoffs_hz[:, None]) ** 4) ** -0.5
    twice = np.full(len(frequencies), 2.0)
    twice[[0, -1]] = 1.0
    power = (np.square(gain) * twice).sum(axis=1, keepdims=True) / length
    curves = np.fft.irfft(spectrum * gain / np.sqrt(power), length, axis=1)
    return np.asarray(curves[:, :num_frames].T)


def sum_bumps(times: Floats, half_widths: Floats, heights: Floats, num_frames: int, fps: float) -> Floats:
    """Return the sum of raised cosines ``h * (1 + cos(pi * (t - t0) / w)) / 2`` for ``|t - t0| < w``.

    Args:
        times: (n,) t0, seconds; they may lie outside the clip.
        half_widths: (n,) w, seconds.
        heights: (n, curves) h.

    Returns:
        (num_frames, curves).
    """
    curves = np.zeros((num_frames, heights.shape[1]))
    if not len(times):
        return curves
    reach = math.ceil(float(half_widths.max()) * fps) + 1
    frames = np.round(times * fps).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    phase = (frames / fps - times[:, None]) / half_widths[:, None]
    shape = np.where(np.abs(phase) < 1, 0.5 + 0.5 * np.cos(np.pi * np.clip(phase, -1, 1)), 0.0)
    is_inside = (frames >= 0) & (frames < num_frames)
    for curve, height in enumerate(heights.T):
        values = (shape * height[:, None])[is_inside]
        curves[:, curve] = np.bincount(frames[is_inside], values, num_frames)
    return curves


def _draw_syllables(rng: np.random.Generator, style: SpeakingStyle, duration_s: float) -> Syllables:
    """Lay phrases and pauses over the clip, which may begin inside either, and syllables into the phrases."""
    mean_s = style.phrase_s + style.pause_s
    num_phrases = math.ceil(duration_s / (0.4 * mean_s)) + 2
    phrases_s = style.phrase_s * rng.uniform(0.4, 1.6, num_phrases)
    pauses_s = style.pause_s * rng.uniform(0.4, 1.6, num_phrases)
    begins = np.cumsum(phrases_s + pauses_s) - (phrases_s + pauses_s) - rng.uniform(0, mean_s)
    lengths = rng.uniform(0.7, 1.3, math.ceil((duration_s + mean_s) * style.syllable_hz / 0.7) + 2) / style.syllable_hz
    times = np.cumsum(lengths) - mean_s
    phrase = np.searchsorted(begins, times, side="right") - 1
    place = (times - begins[phrase]) / phrases_s[phrase]  # 0 at a phrase's begin, 1 at its end
    num = len(times)
    loudness = rng.uniform(0.7, 1.0, num) * (1.1 - 0.4 * place)
    stress = np.where(rng.random(num) < style.stress_share, rng.uniform(0.5, 1.0, num), 0.0)
    shapes = VOWELS[rng.integers(0, len(VOWELS), num)] + rng.normal(0, 0.12, (num, VOWELS.shape[1]))
    is_said = (phrase >= 0) & (place < 1)
    return Syllables(
        times[is_said], lengths[is_said], loudness[is_said], stress[is_said], shapes[is_said], begins + 0.1
    )


def _jaw_opening(syllables: Syllables, style: SpeakingStyle, num_frames: int, fps: float) -> Floats:
    """Return the jaw's opening, 0 .. 0.25 rad: one bump a syllable, limited by ``0.25 * tanh(x / 0.25)``."""
    height = syllables.shapes[:, 0].clip(0.15) * syllables.loudness * (1 + 0.4 * syllables.stress)
    bumps = sum_bumps(syllables.times, 0.75 * syllables.lengths, style.opening_rad * height[:, None], num_frames, fps)
    return np.asarray(MAX_JAW_RAD * np.tanh(bumps[:, 0] / MAX_JAW_RAD))


def _mouth_curves(rng: np.random.Generator, syllables: Syllables, opening: Floats, fps: float) -> Floats:
    """Return opening, width, rounding and press of the lips, of unit size: (frames, 4).

    Lips shape a vowel 60 ms before the jaw does and into its neighbours; they press for p, b and m between two.
    """
    num_frames, lips = len(opening), syllables.shapes[:, 1:] * syllables.loudness[:, None]
    shape = sum_bumps(syllables.times - 0.06, 1.4 * syllables.lengths, 1.2 * lips, num_frames, fps)
    press = np.where(rng.random(len(lips)) < 0.25, 2.2, 0.0)[:, None]
    pressed = sum_bumps(syllables.times - 0.5 * syllables.lengths, np.full(len(lips), 0.1), press, num_frames, fps)
    return np.concatenate([opening[:, None] / 0.05, shape, pressed], axis=1)


def _lid_curves(rng: np.random.Generator, style: SpeakingStyle, num_frames: int, fps: float) -> Floats:
    """Return the lids, 0 open .. 4 closed: about one blink of 150 ms every `blink_s` seconds, (frames, 1)."""
    num = math.ceil(num_frames / fps / (0.3 * style.blink_s)) + 1
    times = np.cumsum(style.blink_s * rng.uniform(0.3, 1.7, num)) - style.blink_s * rng.random()
    return sum_bumps(times, np.full(num, 0.075), np.full((num, 1), 4.0), num_frames, fps)


def _brow_curves(
    rng: np.random.Generator, style: SpeakingStyle, syllables: Syllables, num_frames: int, fps: float
) -> Floats:
    """Return inner and outer brows, of unit size: raised on some stresses and at a phrase's begin, (frames, 2)."""
    is_raised = rng.random(len(syllables.times)) < 0.6
    heights = syllables.stress * is_raised * style.liveliness
    both = np.stack([heights, heights * rng.uniform(0.3, 1.2, len(heights))], axis=1)
    on_stress = sum_bumps(syllables.times - 0.08, np.full(len(heights), 0.35), 3 * both, num_frames, fps)
    begins = syllables.phrase_times
    rise = np.abs(rng.normal(0, style.liveliness, (len(begins), NUM_BROWS)))
    return on_stress + sum_bumps(begins, np.full(len(begins), 0.7), rise, num_frames, fps)
