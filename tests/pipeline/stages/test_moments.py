"""Moments of motion against numpy, and the bins of their histograms against their edges."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.stages.moments import (
    BLOCK_FRAMES,
    NUM_SIDE,
    NUM_SLOTS,
    histogram_edges,
    histogram_slots,
    merged,
    moments_of,
    no_moments,
)


def some_motion(frames, dims=3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(frames, dims)) * [1, 100, 0.001] + [5, -1000, 0]).astype(np.float32)


def test_moments_of_agree_with_numpy_across_blocks():
    motion = some_motion(2 * BLOCK_FRAMES + 77)
    found = moments_of(motion)
    exact = motion.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.std, exact.std(axis=0), rtol=1e-10)
    np.testing.assert_array_equal(found.low, exact.min(axis=0))
    np.testing.assert_array_equal(found.high, exact.max(axis=0))
    assert found.count.tolist() == [len(motion)] * 3
    assert found.histogram.sum(axis=1).tolist() == [len(motion)] * 3


def test_moments_of_leave_out_what_is_not_finite():
    motion = some_motion(500)
    motion[3, 0], motion[4, 0], motion[5, 1] = np.nan, np.inf, -np.inf
    motion[:, 2] = np.nan
    found = moments_of(motion)
    assert found.nans.tolist() == [1, 0, 500]
    assert found.infs.tolist() == [1, 1, 0]
    assert found.count.tolist() == [498, 499, 0]
    finite = motion[:, 0][np.isfinite(motion[:, 0])].astype(np.float64)
    np.testing.assert_allclose([found.mean[0], found.std[0]], [finite.mean(), finite.std()], rtol=1e-12)
    assert (found.mean[2], found.std[2]) == (0, 0)
    assert found.low[2] > found.high[2]
    assert found.histogram.sum(axis=1).tolist() == [498, 499, 0]


def test_merged_is_what_all_frames_together_are():
    motion = some_motion(3000)
    motion[17, 1] = np.nan
    found = no_moments(3)
    for start, stop in ((0, 1), (1, 1500), (1500, 1500), (1500, 3000)):
        found = merged(found, moments_of(motion[start:stop]))
    whole = moments_of(motion)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, whole.std, rtol=1e-12)
    np.testing.assert_array_equal(found.histogram, whole.histogram)


def test_merged_by_hand():
    first = moments_of(np.array([[1], [3]], np.float32))
    second = moments_of(np.array([[8]], np.float32))
    both = merged(first, second)
    assert (both.count[0], both.mean[0], both.squares[0]) == (3, 4.0, 26.0)


def test_a_large_mean_does_not_eat_a_small_deviation():
    motion = (1e6 + np.arange(8) % 2).astype(np.float32)[:, None].repeat(2, axis=1)
    assert moments_of(motion).std.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("sign", [1, -1])
def test_histogram_slots_agree_with_the_edges(sign):
    edges = histogram_edges()
    assert edges == sorted(edges)
    assert len(edges) == 2 * NUM_SIDE + 2
    assert (edges[0], edges[-1]) == (-1024, 1024)
    positive = np.array(edges[NUM_SIDE + 1 :])
    values = np.concatenate([positive, np.nextafter(positive.astype(np.float32), np.float32(0)), positive * 1.1, [0.0]])
    values = np.concatenate([values, [1e-30, 3e38]]).astype(np.float32)
    outward = np.searchsorted(positive, values.astype(np.float64), side="right")
    wanted = NUM_SIDE + 1 + sign * outward
    assert histogram_slots(values * np.float32(sign)).tolist() == wanted.tolist()
    assert wanted.min() >= 0
    assert wanted.max() < NUM_SLOTS
