"""Clips on a device, and windows cut from them there: at any offset for training, on a grid for measuring.

Knows tensors; draws are counted, not kept: seed and step name a batch, so that a resumed run sees the same ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitwise_vae.training.clips import MotionClips


class WindowBatch(NamedTuple):
    """Windows of prev and this, and which of their frames are real.

    motion (B, 2T, M) float32, in motion units, zeros where the clip has no frame.
    is_real (B, 2T) bool.
    """

    motion: Tensor
    is_real: Tensor


class WindowBank:
    """Holds all frames of a corpus on one device: 424 bytes a frame of 106 columns, 38 MB an hour at 25 fps.

    Built by a trainer or an evaluation, lives as long. Gathering a batch is one indexing on the device, so a step
    never waits for the host.
    """

    def __init__(self, clips: MotionClips, window_frames: int, device: torch.device) -> None:
        """Copies the frames; clips shorter than a window take no part.

        Raises:
            TrainingDataError: no clip is long enough.
        """
        self.clips = clips.at_least(window_frames)
        self.window_frames, self.device = window_frames, device
        self._frames = torch.from_numpy(self.clips.frames).to(device)
        lengths = np.diff(self.clips.edges)
        self._offset_edges = np.cumsum([0, *(lengths - window_frames + 1)])

    @property
    def num_offsets(self) -> int:
        """At how many places a window can stand."""
        return int(self._offset_edges[-1])

    def random_batch(self, batch_size: int, seed: int, step: int, share: slice = slice(None)) -> WindowBatch:
        """Draws windows, every offset of every clip being equally likely; equal arguments give equal windows.

        Args:
            batch_size: windows that are drawn.
            seed: of the training.
            step: of the training.
            share: which of them are cut here.
        """
        draws = np.random.Generator(np.random.Philox(key=[seed, step]))
        places = draws.integers(0, self.num_offsets, batch_size)[share]
        index = np.searchsorted(self._offset_edges, places, side="right") - 1
        return self.cut(index, places - self._offset_edges[index])

    def cut(self, index: np.ndarray, start_frame: np.ndarray) -> WindowBatch:
        """Cuts windows: index (B,) of clips, start_frame (B,) of `this` in each."""
        edges = self.clips.edges
        spans = torch.from_numpy(np.stack([edges[index], edges[index + 1], edges[index] + start_frame]))
        if self.device.type == "cuda":
            spans = spans.pin_memory()
        begin, end, start = spans.to(self.device, non_blocking=True).unsqueeze(-1)
        rows = start + torch.arange(-self.window_frames, self.window_frames, device=self.device)
        is_real = (rows >= begin) & (rows < end)
        return WindowBatch(self._frames[rows.clamp(0, len(self._frames) - 1)] * is_real.unsqueeze(-1), is_real)

    def grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Says where windows stand so that `this` covers every frame once.

        Returns:
            index of the clip, start_frame of `this`, and the first frame of `this` that no window before it
            covered (0 but for a clip's last window), (windows,) int64 each.
        """
        frames = self.window_frames
        places = []
        for index, length in enumerate(np.diff(self.clips.edges).tolist()):
            starts = list(range(0, length - frames + 1, frames))
            places += [(index, start, 0) for start in starts]
            covered = starts[-1] + frames
            if covered < length:
                places.append((index, length - frames, covered - (length - frames)))
        index, start, fresh = np.array(places, dtype=np.int64).T
        return index, start, fresh
