"""Tallies of clips: what survives the way from worker to driver, and what no order changes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sources.clip import RawClip
from pipeline.stages.measure import UnitStatistics, hours_of, length_bin, next_length_bin
from pipeline.stages.moments import MOMENT_FIELDS


def clip(name, frames, dims=3, fps=25.0, seed=None):
    rng = np.random.default_rng(len(name) + frames if seed is None else seed)
    return RawClip(name, f"{name}.npz", "", rng.normal(size=(frames, dims)).astype(np.float32), fps)


def unit_of(*clips):
    unit = UnitStatistics("key", 10)
    for one in clips:
        unit.tally(one.motion.shape[1]).add(one)
    return unit


def test_length_bin_gives_four_bins_an_octave_without_gaps():
    assert [length_bin(frames) for frames in range(1, 21)] == [
        *range(1, 8),
        *(8, 8, 10, 10, 12, 12, 14, 14),
        *(16, 16, 16, 16, 20),
    ]
    first = 1
    for frames in range(1, 5000):
        if frames >= next_length_bin(first):
            first = next_length_bin(first)
        assert length_bin(frames) == first


def test_unit_statistics_survive_as_bytes():
    clips = [clip("a", 7), clip("b", 300, fps=None), clip("c", 9, dims=5, fps=29.97)]
    clips[0].motion[2, 1] = np.nan
    unit = unit_of(*clips)
    unit.drops["unreadable"] = 2
    copy = UnitStatistics.from_bytes(unit.to_bytes())
    assert (copy.unit_key, copy.num_bytes, copy.drops) == ("key", 10, {"unreadable": 2})
    assert list(copy.by_dims) == [3, 5]
    for dims, tally in unit.by_dims.items():
        other = copy.by_dims[dims]
        for name in MOMENT_FIELDS:
            np.testing.assert_array_equal(getattr(tally.moments, name), getattr(other.moments, name))
        plain = {name: value for name, value in vars(tally).items() if name != "moments"}
        assert plain == {name: value for name, value in vars(other).items() if name != "moments"}
    assert unit.by_dims[3].non_finite_clips == 1


def test_content_depends_on_clips_and_not_on_their_order():
    clips = [clip("a", 7), clip("b", 300), clip("c", 9)]
    whole = unit_of(*clips).tally(3).content
    assert unit_of(*reversed(clips)).tally(3).content == whole
    parts = unit_of(clips[2])
    parts.merge(unit_of(*clips[:2]))
    assert parts.tally(3).content == whole
    for other in (clip("d", 9, seed=12), clip("c", 9, seed=1), clip("c", 9, fps=30.0)):
        assert unit_of(*clips[:2], other).tally(3).content != whole


def test_hours_of_counts_known_rates_only():
    assert hours_of({"25": 90_000, "": 5_000, "50": 180_000}) == pytest.approx(2.0)
