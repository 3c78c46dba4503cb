import numpy as np
import pytest
import torch

from bitwise_vae.inference.window_spans import checked_spans, cut_windows, frame_range, is_real_prev, spans_of_windows

ONE = np.array([1])


def test_cut_windows_pads_with_zeros_outside_of_the_clip() -> None:
    motion = torch.arange(1.0, 7.0).unsqueeze(1)
    spans = torch.tensor([[1, 5, 0], [1, 5, 2], [1, 5, 3]])
    found = cut_windows(motion, spans, 2).squeeze(2)
    assert found.tolist() == [[0, 0, 2, 3], [2, 3, 4, 5], [3, 4, 5, 0]]


def test_spans_of_windows_give_back_windows_that_lie_one_behind_the_other() -> None:
    windows = torch.randn(3, 4, 2)
    torch.testing.assert_close(cut_windows(windows.flatten(0, 1), spans_of_windows(3, 2), 2), windows)


def test_is_real_prev_says_which_frames_lie_in_the_clip() -> None:
    found = is_real_prev(torch.tensor([[1, 5, 0], [1, 5, 1], [1, 5, 4]]), 2).squeeze(2)
    assert found.tolist() == [[False, False], [False, True], [True, True]]


@pytest.mark.parametrize(
    ("spans", "wanted"),
    [
        ([[10, 20, 0]], (10, 12)),
        ([[10, 20, 5], [10, 20, 9]], (13, 20)),
        ([[0, 10, 8], [10, 20, 0]], (6, 12)),
        ([[0, 0, 0]], (0, 0)),
    ],
)
def test_frame_range_holds_what_the_windows_read(spans: list[list[int]], wanted: tuple[int, int]) -> None:
    assert frame_range(torch.tensor(spans), 2) == wanted


def test_checked_spans_refuses_a_clip_outside_of_the_frames() -> None:
    with pytest.raises(ValueError, match="rows 1:9, but motion has 8"):
        checked_spans(ONE, np.array([9]), np.array([0]), 8)


def test_checked_spans_refuses_columns_of_several_lengths() -> None:
    with pytest.raises(ValueError, match="one length"):
        checked_spans(ONE, np.array([2, 3]), ONE, 8)
