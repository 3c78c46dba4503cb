from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.contract.specs import WindowRule
from pipeline.contract.windows import phase_offset, valid_frames, window_starts

bounded = settings(max_examples=150, deadline=None, derandomize=True)

FIXED_OFFSETS = {("a", 0, 0): 761, ("a", 1, 0): 898, ("a", 0, 1): 76, ("é/b", 2, 7): 938}
"""(clip id, phase, seed) -> offset under a stride of 1000."""


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


@bounded
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


def promised_coverage(num_frames, window_frames, rule, offsets):
    """How many windows hold each frame, as formats.md says it: grids told apart by their offset, then the tail."""
    last = num_frames - window_frames
    if last < 0:
        return [int(rule.tail == "pad")] * num_frames

    def on_grid(offset, low, high):
        """Points offset, offset + stride, .. in low .. high."""
        return max(0, (high - offset) // rule.stride - max(0, -((offset - low) // rule.stride)) + 1)

    grids = {0, *offsets}
    is_left_over = last % rule.stride != 0
    counts = []
    for frame in range(num_frames):
        low, high = max(0, frame - window_frames + 1), min(frame, last)
        counts.append(sum(on_grid(offset, low, high) for offset in grids))
        if not is_left_over:
            continue
        is_taken = any(last % rule.stride == offset and last >= offset for offset in grids)
        if rule.tail == "shift" and not is_taken:
            counts[-1] += frame >= last
        if rule.tail == "pad":
            counts[-1] += frame >= last - last % rule.stride + rule.stride
    return counts


@bounded
@given(
    num_frames=st.integers(0, 300),
    window_frames=st.integers(1, 40),
    stride=st.one_of(st.just(1), st.integers(1, 120)),
    tail=st.sampled_from(["shift", "drop", "pad"]),
    phases=st.integers(0, 4),
    seed=st.integers(0, 3),
    clip_id=st.text(max_size=5),
)
def test_window_starts_cover_each_frame_as_often_as_promised(
    num_frames, window_frames, stride, tail, phases, seed, clip_id
):
    told = rule(stride, tail, phases, seed)
    starts = window_starts(clip_id, num_frames, window_frames, told)
    assert starts.dtype == np.int64
    assert (np.diff(starts) > 0).all()
    _, this_valid = valid_frames(starts, num_frames, window_frames)
    counts = np.zeros(num_frames, int)
    for start, valid in zip(starts, this_valid, strict=True):
        counts[start : start + valid] += 1
    offsets = [phase_offset(clip_id, phase, told) for phase in range(phases)]
    assert all(0 <= offset < stride for offset in offsets)
    assert counts.tolist() == promised_coverage(num_frames, window_frames, told, offsets)


@bounded
@given(
    num_frames=st.integers(1, 120),
    window_frames=st.integers(1, 20),
    stride=st.integers(1, 50),
    tail=st.sampled_from(["shift", "drop", "pad"]),
    phases=st.integers(0, 3),
)
def test_valid_frames_counts_what_lies_inside_the_clip(num_frames, window_frames, stride, tail, phases):
    starts = window_starts("clip", num_frames, window_frames, rule(stride, tail, phases))
    prev_valid, this_valid = valid_frames(starts, num_frames, window_frames)
    inside = set(range(num_frames))
    for start, prev, this in zip(starts.tolist(), prev_valid, this_valid, strict=True):
        assert prev == len(inside & set(range(start - window_frames, start)))
        assert this == len(inside & set(range(start, start + window_frames)))


@bounded
@given(num_frames=st.integers(0, 200), more=st.integers(1, 100), stride=st.integers(1, 50), phases=st.integers(0, 3))
def test_window_starts_of_a_longer_clip_begin_alike(num_frames, more, stride, phases):
    told = rule(stride, "drop", phases)
    shorter, longer = (window_starts("clip", frames, 20, told).tolist() for frames in (num_frames, num_frames + more))
    assert longer[: len(shorter)] == shorter


@bounded
@given(num_frames=st.integers(20, 200), tail=st.sampled_from(["shift", "drop", "pad"]), phases=st.integers(0, 3))
def test_window_starts_of_stride_one_are_every_offset(num_frames, tail, phases):
    assert window_starts("clip", num_frames, 20, rule(1, tail, phases)).tolist() == list(range(num_frames - 19))


def test_phase_offset_stays_as_it_was_published():
    """Other offsets are other datasets: SCHEMA_VERSION would have to move."""
    found = [phase_offset(clip, phase, rule(1000, seed=seed)) for clip, phase, seed in FIXED_OFFSETS]
    assert found == list(FIXED_OFFSETS.values())
