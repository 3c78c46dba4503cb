"""Linear coding as a yardstick: bits go where the variance is, more bits lose less, and time helps smooth motion."""

from __future__ import annotations

import numpy as np
import pytest

from bitwise_vae import MotionClips
from jobs.demo_codecs.transform_baseline import MAX_BITS, allotted_bits, fit_baseline

BLOCK, DIMS = 20, 6


def smooth_clips(seed: int, num_clips: int = 12) -> MotionClips:
    """Slow sines of three controls in six columns."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(3, DIMS))
    time = np.arange(10 * BLOCK)[:, None]
    clips = []
    for index in range(num_clips):
        rates, phases = rng.uniform(0.01, 0.04, 3), rng.uniform(0, 2 * np.pi, 3)
        curves = np.sin(2 * np.pi * rates * time + phases)
        clips.append((f"clip-{index}", (3 + curves @ mixing).astype(np.float32)))
    return MotionClips.of(clips)


def error_of(block_frames: int, bits_a_frame: int) -> float:
    training, other = smooth_clips(0), smooth_clips(9, 3)
    statistics = training.statistics()
    baseline = fit_baseline(training, statistics, block_frames, bits_a_frame * block_frames, 100)
    assert baseline.block_frames == block_frames
    assert baseline.bits_per_second(25.0) <= bits_a_frame * 25
    decoded = baseline.coded(other.frames)
    assert decoded.shape == other.frames.shape
    return float(np.abs((decoded - other.frames) / statistics.std).mean())


def test_allotted_bits_go_to_the_largest_error_first() -> None:
    deviation = np.array([[8.0, 4.0], [1.0, 0.001]])
    np.testing.assert_array_equal(allotted_bits(deviation, 1), [[1, 0], [0, 0]])
    np.testing.assert_array_equal(allotted_bits(deviation, 3), [[2, 1], [0, 0]])
    np.testing.assert_array_equal(allotted_bits(deviation, 1000), np.full((2, 2), MAX_BITS))


def test_more_bits_lose_less_and_coding_over_time_loses_least() -> None:
    few, many = error_of(1, 6), error_of(1, 18)
    assert many < few / 2
    assert error_of(BLOCK, 6) < few / 2


def test_coded_without_bits_is_the_mean() -> None:
    training = smooth_clips(0)
    statistics = training.statistics()
    decoded = fit_baseline(training, statistics, 1, 0, 100).coded(training.frames[:BLOCK])
    np.testing.assert_allclose(decoded, np.broadcast_to(statistics.mean, decoded.shape), atol=0.2)


@pytest.mark.parametrize("block_frames", [1, BLOCK])
def test_coded_depends_on_nothing_but_the_block(block_frames: int) -> None:
    training = smooth_clips(0)
    baseline = fit_baseline(training, training.statistics(), block_frames, 8 * block_frames, 100)
    whole = baseline.coded(training.frames[: 3 * BLOCK])
    np.testing.assert_allclose(baseline.coded(training.frames[BLOCK : 2 * BLOCK]), whole[BLOCK : 2 * BLOCK])
