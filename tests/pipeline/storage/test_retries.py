"""The count of repeated tries."""

from __future__ import annotations

import pytest

from pipeline.storage import RetryPolicy, num_retries
from pipeline.storage.retries import with_retries

PATIENT = RetryPolicy(sleep=lambda seconds: None)


def failing(times: int):
    """Return an operation that fails so many times with an error that may pass."""
    left = [times]

    def operate() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("the line broke")
        return "done"

    return operate


@pytest.mark.parametrize("times", [0, 1, 3])
def test_num_retries_counts_what_is_tried_again(times):
    before = num_retries()
    assert with_retries(failing(times), "read a file", PATIENT) == "done"
    assert num_retries() - before == times


def test_num_retries_leaves_out_what_is_given_up_at_once():
    before = num_retries()
    with pytest.raises(FileNotFoundError):
        with_retries(lambda: open("/nowhere/at/all"), "read a file", PATIENT)  # noqa: PTH123, SIM115
    assert num_retries() == before
