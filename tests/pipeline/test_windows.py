from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import WindowRule
from pipeline.windows import phase_offset, valid_frames, window_starts


def rule(stride=10, tail="shift", phases=0, seed=0):
    return WindowRule(stride=stride, tail=tail, phases=phases, seed=seed)


@pytest.mark.parametrize(
    ("num_frames", "tail", "expected"),
    [
        (30, "shift", [0, 10, 20]),
        (34, "shift", [0, 10, 20, 24]),
        (34, "drop", [0, 10, 20]),
        (34, "pad", [0, 10, 20, 30]),
        (10, "shift", [0]),
        (9, "shift", []),
        (9, "drop", []),
        (9, "pad", [0]),
        (0, "pad", []),
    ],
)
def test_window_starts_follows_the_tail_rule(num_frames, tail, expected):
    assert window_starts("clip", num_frames, 10, rule(tail=tail)).tolist() == expected


def test_window_starts_overlaps_where_the_stride_is_shorter():
    assert window_starts("clip", 23, 10, rule(stride=5)).tolist() == [0, 5, 10, 13]
    assert window_starts("clip", 23, 10, rule(stride=5, tail="pad")).tolist() == [0, 5, 10, 15]
    assert window_starts("clip", 23, 10, rule(stride=1)).tolist() == list(range(14))


def test_window_starts_leaves_gaps_where_the_stride_is_longer():
    assert window_starts("clip", 60, 10, rule(stride=25, tail="drop")).tolist() == [0, 25, 50]
    assert window_starts("clip", 47, 10, rule(stride=25, tail="pad")).tolist() == [0, 25]


def test_phase_offset_depends_on_seed_and_clip():
    offsets = {phase_offset(f"clip{n}", 0, rule(stride=1000)) for n in range(50)}
    assert len(offsets) > 40
    assert phase_offset("a", 0, rule(stride=1000)) == phase_offset("a", 0, rule(stride=1000))
    assert phase_offset("a", 0, rule(stride=1000)) != phase_offset("a", 0, rule(stride=1000, seed=1))


@given(
    num_frames=st.integers(0, 500),
    stride=st.integers(1, 60),
    tail=st.sampled_from(["shift", "drop", "pad"]),
    phases=st.integers(0, 3),
)
def test_window_starts_covers_what_the_rule_promises(num_frames, stride, tail, phases):
    frames = 20
    starts = window_starts("clip", num_frames, frames, rule(stride, tail, phases))
    assert (np.diff(starts) > 0).all()
    prev_valid, this_valid = valid_frames(starts, num_frames, frames)
    assert ((this_valid >= 1) & (this_valid <= frames) & (prev_valid >= 0) & (prev_valid <= frames)).all()
    if tail != "pad":
        assert (this_valid == frames).all()
    else:
        assert (this_valid < frames).sum() <= 1
    covered = np.zeros(num_frames, bool)
    for start in starts:
        covered[start : start + frames] = True
    if stride <= frames and tail in ("shift", "pad") and (num_frames >= frames or tail == "pad"):
        assert covered.all()
    base = set(window_starts("clip", num_frames, frames, rule(stride, tail)).tolist())
    assert base <= set(starts.tolist())


def test_valid_frames_counts_real_frames():
    prev_valid, this_valid = valid_frames(np.array([0, 5, 10, 15]), 23, 10)
    assert prev_valid.tolist() == [0, 5, 10, 10]
    assert this_valid.tolist() == [10, 10, 10, 8]
