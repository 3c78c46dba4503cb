from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings, strategies as st

from pipeline.export.permutation import Permutation


@settings(max_examples=150, deadline=None, derandomize=True)
@given(size=st.one_of(st.integers(1, 40), st.integers(1, 5000)), seed=st.text(max_size=5), data=st.data())
def test_places_hits_each_number_once(size, seed, data):
    places = Permutation(seed, size).places(np.arange(size))
    assert sorted(places.tolist()) == list(range(size))
    some = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), np.int64)
    assert Permutation(seed, size).places(some).tolist() == places[some].tolist()


def test_places_of_every_small_size_stay_inside():
    """A number that lands outside may land on the first place outside again, for few sizes only."""
    for size in range(1, 700):
        assert sorted(Permutation("a", size).places(np.arange(size)).tolist()) == list(range(size)), size


def test_places_are_those_of_today():
    """Bytes of shuffled exports hang on this formula: a change of it moves GLOBAL_ORDER."""
    assert Permutation("a", 12).places(np.arange(12)).tolist() == [2, 6, 7, 0, 3, 11, 9, 10, 5, 8, 1, 4]
    assert Permutation("a", 10**9).places(np.array([0, 1, 999_999_999])).tolist() == [282720664, 485527937, 362463946]


def test_places_of_small_sizes_are_drawn_evenly():
    drawn = Counter(tuple(Permutation(str(seed), 4).places(np.arange(4)).tolist()) for seed in range(2400))
    assert len(drawn) == 24
    assert min(drawn.values()) > 60
    assert max(drawn.values()) < 150


def test_places_spread_neighbours():
    places = Permutation("a", 200_000).places(np.arange(200_000))
    for distance in (1, 2, 447, 448):  # 447 is the width of its grid
        assert abs(np.corrcoef(places[distance:], places[:-distance])[0, 1]) < 0.02
    buckets = places * 100 // len(places)
    for distance in (1, 447):
        assert abs((buckets[distance:] == buckets[:-distance]).mean() - 0.01) < 0.002
