"""The speakers' timeline: equal for equal states, its noise and bumps as their formulas say."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.demo.speaker_timeline import MAX_JAW_RAD, VALUE_STEP, draw_timeline, on_value_grid, smooth_noise, sum_bumps


def test_draw_timeline_has_curves_in_their_ranges() -> None:
    for seed in range(20):
        timeline = draw_timeline(np.random.default_rng(seed), 300, 25.0)
        assert timeline.opening.shape == (300,)
        assert (timeline.mouth.shape, timeline.lids.shape, timeline.brows.shape) == ((300, 4), (300, 1), (300, 2))
        assert 0 <= timeline.opening.min() < timeline.opening.max() <= MAX_JAW_RAD
        assert timeline.lids.min() == 0
        assert 2 < timeline.lids.max() < 8.1
        assert timeline.brows.min() >= 0


def test_draw_timeline_draws_the_same_from_the_same_state() -> None:
    first, second, other = (draw_timeline(np.random.default_rng(seed), 100, 25.0) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.mouth, second.mouth)
    np.testing.assert_array_equal(first.syllables.times, second.syllables.times)
    assert not np.array_equal(first.mouth, other.mouth)


@pytest.mark.parametrize(("num_frames", "fps"), [(0, 25.0), (10, 0.0), (10, float("nan"))])
def test_draw_timeline_refuses_what_has_no_frames(num_frames: int, fps: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        draw_timeline(np.random.default_rng(0), num_frames, fps)


def test_on_value_grid_rounds_to_the_nearest_step() -> None:
    values = on_value_grid(np.array([0.2 * VALUE_STEP, 0.7 * VALUE_STEP, -1.6 * VALUE_STEP, 0.5]))
    assert values.dtype == np.float32
    assert values.tolist() == [0.0, VALUE_STEP, -2 * VALUE_STEP, 0.5]


def test_smooth_noise_has_unit_variance_and_little_above_its_cutoff() -> None:
    noise = smooth_noise(np.random.default_rng(0), np.array([0.5, 3.0]), 60_000, 25.0)
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.05)
    power = np.square(np.abs(np.fft.rfft(noise[:, 0])))
    above = np.fft.rfftfreq(60_000, 1 / 25) > 1.5
    assert power[above].sum() < 0.05 * power.sum()


def test_sum_bumps_adds_raised_cosines() -> None:
    curves = sum_bumps(np.array([1.0, 1.5]), np.array([0.5, 1.0]), np.array([[2.0, 0.0], [4.0, 1.0]]), 11, 4.0)
    assert curves.shape == (11, 2)
    np.testing.assert_allclose(curves[[4, 6, 5, 10], 1], [0.5, 1, 0.5 + np.cos(np.pi / 4) / 2, 0], atol=1e-12)
    assert curves[4, 0] == pytest.approx(2 + 2)


def test_sum_bumps_leaves_out_what_lies_outside_the_clip() -> None:
    curves = sum_bumps(np.array([-9.0, -0.1, 50.0]), np.full(3, 0.3), np.ones((3, 1)), 5, 10.0)
    assert curves[0, 0] == pytest.approx(0.5 + 0.5 * np.cos(np.pi / 3))
    assert not curves[2:].any()
    assert not sum_bumps(np.zeros(0), np.zeros(0), np.zeros((0, 1)), 5, 10.0).any()
