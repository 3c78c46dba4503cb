"""Procedural motion: deterministic, varied, and within the ranges of real talking faces."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from jobs.demo.procedural_motion import MAX_EXPRESSION, motion_statistics, speech_motion
from jobs.demo.speaker_timeline import MAX_JAW_RAD, VALUE_STEP


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [speech_motion(250, seed) for seed in range(60)]


def test_speech_motion_has_the_shape_and_type_of_flame_motion() -> None:
    motion = speech_motion(137, 3)
    assert motion.shape == (137, 106)
    assert motion.dtype == np.float32
    assert motion.flags.c_contiguous
    assert np.isfinite(motion).all()


def test_speech_motion_is_equal_for_equal_arguments_and_differs_between_seeds() -> None:
    first = speech_motion(200, 5)
    assert first.tobytes() == speech_motion(200, 5).tobytes()
    assert not np.array_equal(first, speech_motion(200, 6))


def test_speech_motion_is_still_what_the_demonstration_codec_was_trained_on() -> None:
    digest = hashlib.sha256(speech_motion(250, 1_000_000).tobytes()).hexdigest()
    assert digest == "752d3d71c96c458964134961d149da41100ee8b39f38b0be20c340a9b67b150f"


def test_speech_motion_stands_on_a_grid_that_hides_rounding() -> None:
    scaled = speech_motion(50, 1).astype(np.float64) / VALUE_STEP
    assert np.abs(scaled - np.round(scaled)).max() < 0.01


@pytest.mark.parametrize(("num_frames", "fps"), [(1, 25.0), (2, 25.0), (3, 240.0), (40, 12.5), (4000, 30.0)])
def test_speech_motion_serves_short_long_fast_and_slow(num_frames: int, fps: float) -> None:
    motion = speech_motion(num_frames, 9, fps)
    assert motion.shape == (num_frames, 106)
    assert np.isfinite(motion).all()


@pytest.mark.parametrize(("num_frames", "fps"), [(0, 25.0), (10, 0.0), (10, float("nan"))])
def test_speech_motion_refuses_what_has_no_frames(num_frames: int, fps: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        speech_motion(num_frames, 0, fps)


def test_speech_motion_expression_has_plausible_spread(clips: list[np.ndarray]) -> None:
    _, std = motion_statistics(clips)
    assert 0.6 < std[:10].mean() < 1.4
    assert std[:10].mean() > 1.5 * std[90:100].mean()
    assert std.min() > 0
    assert max(np.abs(clip[:, :100]).max() for clip in clips) < MAX_EXPRESSION


def test_speech_motion_expression_is_smooth(clips: list[np.ndarray]) -> None:
    step = np.mean([np.abs(np.diff(clip[:, :100], axis=0)).mean() for clip in clips])
    assert 0.05 < step < 0.15


def test_speech_motion_head_and_jaw_stay_in_range(clips: list[np.ndarray]) -> None:
    head = np.concatenate([clip[:, 100:103] for clip in clips])
    jaw = np.concatenate([clip[:, 103:106] for clip in clips])
    assert 0.04 < head.std(axis=0).min() < head.std(axis=0).max() < 0.2
    assert jaw[:, 0].min() >= 0
    assert 0.1 < jaw[:, 0].max() <= MAX_JAW_RAD
    assert np.abs(jaw[:, 1:]).max() < 0.08


def test_speech_motion_jaw_moves_at_syllable_rate_and_rests_in_pauses() -> None:
    rates, closed = [], []
    for seed in range(20):
        jaw = speech_motion(1500, seed)[:, 103].astype(np.float64)
        peaks = ((jaw[1:-1] > jaw[:-2]) & (jaw[1:-1] >= jaw[2:]) & (jaw[1:-1] > 0.005)).sum()
        closed.append((jaw < 0.001).mean())
        rates.append(peaks / 60 / (1 - closed[-1]))
    assert 2 < min(rates) < max(rates) < 7
    assert 0.03 < np.mean(closed) < 0.5


def test_motion_statistics_weighs_frames_not_clips() -> None:
    parts = [np.array([[1.0, 5.0]], np.float32), np.array([[2.0, 5.0], [3.0, 5.0]], np.float32)]
    mean, std = motion_statistics(parts)
    np.testing.assert_allclose(mean, [2, 5])
    np.testing.assert_allclose(std, [np.sqrt(2 / 3), 0], rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_motion_statistics_refuses_no_frames() -> None:
    with pytest.raises(ValueError, match="frame"):
        motion_statistics([])
