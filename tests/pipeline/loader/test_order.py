"""Order: permutations, exact shares of ranks, and which dataset gives each sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pipeline.errors import ConfigError
from pipeline.loader.order import DatasetOrder, Mixture, PassOrder, Steps, floor_sum

sizes_of_groups = st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(sum).map(np.array)
seeds = st.integers(0, 1000).map(str)


@given(sizes=sizes_of_groups, groups=st.integers(0, 8), key=seeds)
def test_pass_order_is_a_permutation_whatever_is_asked_at_once(sizes, groups, key):
    count = int(sizes.sum())
    whole = PassOrder(sizes, groups, key).samples(np.arange(count))
    assert sorted(whole) == list(range(count))
    one_by_one = PassOrder(sizes, groups, key)
    backwards = [int(one_by_one.samples(np.array([position]))[0]) for position in reversed(range(count))]
    assert backwards[::-1] == whole.tolist()


@given(sizes=sizes_of_groups, groups=st.integers(1, 8), key=seeds)
def test_pass_order_mixes_rows_of_neighbouring_groups_only(sizes, groups, key):
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    order = group_of[PassOrder(sizes, groups, key).samples(np.arange(int(sizes.sum())))]
    met: list[int] = []
    for group in order:
        if group not in met:
            met.append(int(group))
    filled = [group for group in range(len(sizes)) if sizes[group]]
    assert sorted(met) == filled
    last = {group: int(np.flatnonzero(order == group)[-1]) for group in filled}
    first = {group: int(np.flatnonzero(order == group)[0]) for group in filled}
    for group in filled:  # while one is open, at most the others of its part are
        overlapping = [other for other in filled if first[other] <= last[group] and last[other] >= first[group]]
        assert len(overlapping) <= groups


def test_pass_order_keeps_the_stored_order_without_shuffling():
    assert PassOrder(np.array([3, 0, 4]), 0, "any").samples(np.arange(7)).tolist() == list(range(7))


def test_pass_order_is_the_same_on_every_machine():
    order = PassOrder(np.array([2, 3, 1]), 2, "7").samples(np.arange(6))
    assert order.tolist() == FIXED


FIXED = [0, 4, 1, 2, 3, 5]


def test_dataset_order_has_another_order_in_each_pass_and_each_seed():
    sizes = np.array([16] * 8)
    order = DatasetOrder(sizes, 4, "0")
    two = order.samples(np.arange(256))
    assert sorted(two[:128]) == sorted(two[128:]) == list(range(128))
    assert two[:128].tolist() != two[128:].tolist()
    assert DatasetOrder(sizes, 4, "1").samples(np.arange(128)).tolist() != two[:128].tolist()
    assert order.samples(np.array([5, 130, 7])).tolist() == [two[5], two[130], two[7]]


@given(st.integers(0, 60), st.integers(1, 50), st.integers(0, 99), st.integers(0, 99))
def test_floor_sum_equals_the_sum_written_out(count, divisor, slope, offset):
    assert floor_sum(count, divisor, slope, offset) == sum((slope * i + offset) // divisor for i in range(count))


weights = st.lists(st.sampled_from([0.0, 0.001, 0.5, 1.0, 1.5, 7.0, 1e6]), min_size=1, max_size=5).filter(any)


@given(weights=weights, key=seeds, first=st.integers(0, 500), count=st.integers(1, 200))
def test_mixture_counts_what_each_dataset_gave_before(weights, key, first, count):
    mixture = Mixture(weights, key)
    which, draws = mixture.choose(0, first + count)
    for number in range(len(weights)):
        assert draws[which == number].tolist() == list(range(int((which == number).sum())))
    later = mixture.choose(first, count)
    assert later[0].tolist() == which[first:].tolist()
    assert later[1].tolist() == draws[first:].tolist()
    assert not set(which.tolist()) - {number for number, weight in enumerate(weights) if weight}


@given(key=seeds, first=st.integers(0, 10**12))
def test_mixture_holds_the_shares_in_every_stretch(key, first):
    which, _ = Mixture([5, 3, 2], key).choose(first, 1000)
    assert np.abs(np.bincount(which, minlength=3) - [500, 300, 200]).max() <= 8


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [float("nan"), 1.0], [float("inf")], []])
def test_mixture_refuses_weights_that_say_nothing(weights):
    with pytest.raises(ConfigError, match="weights"):
        Mixture(weights, "0")


def positions(steps: Steps, step: int, rank: int) -> list[int]:
    return (steps.first_of(step) + steps.offsets(step, rank)).tolist()


shapes = st.tuples(st.integers(1, 5), st.integers(1, 4))


@given(num_samples=st.integers(1, 120), shapes=st.lists(shapes, min_size=1, max_size=5), data=st.data())
def test_steps_exact_give_each_position_once_through_kills_and_other_numbers_of_ranks(num_samples, shapes, data):
    start, seen = 0, []
    for number, (batch_size, num_ranks) in enumerate(shapes):
        steps = Steps(num_samples, start, batch_size, num_ranks, "exact")
        is_last = number == len(shapes) - 1
        done = steps.num_steps if is_last else data.draw(st.integers(0, steps.num_steps))
        for step in range(done):
            for rank in range(num_ranks):
                found = positions(steps, step, rank)
                assert bool(found) == (step < steps.num_batches(rank))
                seen += found
            start = steps.position_after(step)
    assert sorted(seen) == list(range(num_samples))


@given(st.integers(1, 120), st.integers(0, 60), shapes)
def test_steps_pad_and_drop_give_all_ranks_whole_batches(num_samples, start, shape):
    batch_size, num_ranks = shape
    start = min(start, num_samples)
    for even in ("pad", "drop"):
        steps = Steps(num_samples, start, batch_size, num_ranks, even)
        assert len({steps.num_batches(rank) for rank in range(num_ranks)}) == 1
        seen = [p for step in range(steps.num_steps) for rank in range(num_ranks) for p in positions(steps, step, rank)]
        assert len(seen) == steps.num_steps * batch_size * num_ranks
        left = num_samples - start
        assert sorted(seen) == list(range(start, start + len(seen)))
        assert -batch_size * num_ranks < (left - len(seen)) < batch_size * num_ranks
        assert (left >= len(seen)) if even == "drop" else (left <= len(seen))
