import numpy as np
import pytest
from hypothesis import given, strategies as st

from pipeline.contract.flip_seeds import flip_seed, flip_seeds

GOLDEN = (0x8C6AF04CD3C142BC, 0x47F3022D4664B150)

windows = st.tuples(st.integers(-5, 5), st.text(max_size=4), st.integers(0, 300), st.integers(0, 20))


def test_flip_seed_never_changes():
    """Pairs that one release stored must equal those that another draws."""
    assert flip_seed(0, "clip-0001", 100, 0) == GOLDEN[0]
    assert flip_seed(7, "ein\0Klip/ß", 2**31, 3) == GOLDEN[1]


@given(windows, windows)
def test_flip_seed_differs_between_windows_pairs_and_seeds(one, other):
    assert (flip_seed(*one) == flip_seed(*other)) == (one == other)


def test_flip_seed_reads_ids_that_are_no_text():
    assert flip_seed(0, "\udcff", 0, 0) != flip_seed(0, "\udcfe", 0, 0)


def test_flip_seeds_are_those_of_each_window():
    found = flip_seeds(3, ["a", "b"], np.array([0, 25], np.int32), 1)
    assert found.dtype == np.uint64
    assert found.tolist() == [flip_seed(3, "a", 0, 1), flip_seed(3, "b", 25, 1)]


def test_flip_seeds_refuse_other_lengths():
    with pytest.raises(ValueError):
        flip_seeds(0, ["a"], [0, 1], 0)
