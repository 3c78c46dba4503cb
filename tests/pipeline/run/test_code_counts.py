"""Counts of ones: by hand, added up, and compared."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.run.code_counts import TASK_WINDOWS, add_codes, code_drift, count_codes

PATCH_NUMS = (1, 2)


def packed(windows: list[list[str]]) -> np.ndarray:
    """Windows of tokens, each a text of eight bits."""
    return np.array([[int(token, 2) for token in window] for window in windows], np.uint8)


def test_count_codes_counts_ones_by_scale_and_bit():
    found = count_codes(
        packed([["10000000", "11000000", "01000001"], ["10000000", "00000000", "00000001"]]), PATCH_NUMS
    )
    assert (found["windows"], found["tokens"]) == (2, [1, 2])
    assert found["ones"] == [[2, 0, 0, 0, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 2]]


def test_count_codes_of_many_windows_looks_at_some_spread_over_all():
    rows = np.zeros((10_000, 3), np.uint8)
    rows[5_000:] = 255
    found = count_codes(rows, PATCH_NUMS)
    assert found["windows"] == TASK_WINDOWS
    assert np.allclose(np.array(found["ones"]) / (TASK_WINDOWS * np.array([[1], [2]])), 0.5, atol=0.01)


def test_count_codes_of_no_window_is_empty():
    assert count_codes(np.zeros((0, 3), np.uint8), PATCH_NUMS) == {}


def test_add_codes_adds_and_takes_empty_ones():
    one = count_codes(packed([["10000000", "11000000", "01000001"]]), PATCH_NUMS)
    both = add_codes(one, one)
    assert both["windows"] == 2
    assert both["ones"] == [[2 * count for count in scale] for scale in one["ones"]]
    assert add_codes({}, one) == add_codes(one, {}) == one


def test_code_drift_is_the_difference_of_shares():
    before = {"windows": 100, "tokens": [1, 2], "ones": [[50, 50], [100, 100]]}
    now = {"windows": 200, "tokens": [1, 2], "ones": [[100, 120], [200, 200]]}
    drift = code_drift(now, before)
    assert drift is not None
    assert drift.by_scale == pytest.approx((0.05, 0.0))
    assert (drift.mean, drift.largest) == pytest.approx((0.025, 0.1))
    assert (drift.largest_scale, drift.largest_bit) == (0, 1)


def test_code_drift_of_the_same_source_is_about_its_noise():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, (TASK_WINDOWS, 3), np.uint8) for _ in range(2)]
    drift = code_drift(*(count_codes(each, PATCH_NUMS) for each in rows))
    assert drift is not None
    assert 0.5 < drift.mean / drift.noise < 1.5


@pytest.mark.parametrize("other", [{}, {"windows": 1, "tokens": [1, 3], "ones": [[1], [3]]}])
def test_code_drift_is_none_where_nothing_compares(other):
    counts = {"windows": 1, "tokens": [1, 2], "ones": [[1], [2]]}
    assert code_drift(counts, other) is None
