"""Where windows lie in frames: columns of numbers checked and stacked, windows cut by them.

Knows tensors on any device, but no network. A span is (begin, end, start): rows [begin, end) of a window's clip, and
the first frame of `this`, counted from begin; frames of a window outside its clip are zeros.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Int64s = NDArray[np.int64]


def checked_spans(clip_begin: Int64s, clip_end: Int64s, start_frame: Int64s, num_frames: int) -> Tensor:
    """Stacks the columns (N,) of spans as (N, 3).

    Raises:
        ValueError: columns of several lengths, or a clip outside of frames 0 to num_frames.
    """
    columns = [np.asarray(column, dtype=np.int64) for column in (clip_begin, clip_end, start_frame)]
    if any(column.ndim != 1 or len(column) != len(columns[0]) for column in columns):
        raise ValueError(f"wanted three columns of one length, found {[column.shape for column in columns]}")
    begin, end, _ = columns
    outside = np.flatnonzero((begin < 0) | (begin >= end) | (end > num_frames))
    if len(outside):
        first = outside[0]
        raise ValueError(
            f"window {first} lies in a clip of rows {begin[first]}:{end[first]}, but motion has {num_frames}"
        )
    return torch.from_numpy(np.stack(columns, axis=1))


def spans_of_windows(num_windows: int, window_frames: int) -> Tensor:
    """Returns the spans of windows that lie one behind the other, 2T frames each: (num_windows, 3)."""
    begin = 2 * window_frames * torch.arange(num_windows)
    return torch.stack([begin, begin + 2 * window_frames, torch.full_like(begin, window_frames)], dim=1)


def cut_windows(motion: Tensor, spans: Tensor, window_frames: int) -> Tensor:
    """Cuts windows: motion (frames, M), spans (n, 3) -> (n, 2T, M)."""
    begin, end, start = spans.unsqueeze(-1).unbind(dim=1)
    rows = begin + start + torch.arange(-window_frames, window_frames, device=motion.device)
    is_inside = (rows >= begin) & (rows < end)
    return torch.where(is_inside.unsqueeze(-1), motion[torch.where(is_inside, rows, 0)], 0.0)


def is_real_prev(spans: Tensor, window_frames: int) -> Tensor:
    """Says which frames of `prev` lie in each window's clip: spans (n, 3) -> (n, T, 1)."""
    begin, end, start = spans.unsqueeze(-1).unbind(dim=1)
    frames = start + torch.arange(-window_frames, 0, device=spans.device)
    return ((frames >= 0) & (frames < end - begin)).unsqueeze(-1)


def frame_range(spans: Tensor, window_frames: int) -> tuple[int, int]:
    """Returns the first row that windows read and the row after the last; (0, 0) where they read none."""
    begin, end, start = spans.unbind(dim=1)
    first = begin + (start - window_frames).clamp(min=0)
    last = torch.minimum(begin + start + window_frames, end)
    is_any = first < last
    if not bool(is_any.any()):
        return 0, 0
    return int(first[is_any].min()), int(last[is_any].max())
