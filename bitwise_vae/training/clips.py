"""Clips of motion in memory, one behind another: their statistics, identity, and division into training and held-out.

Knows numpy only; no files, no model, no device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Motion = npt.NDArray[np.float32]


class TrainingDataError(ValueError):
    """Motion that no codec can be fitted to; the message says what was wanted and what was found."""


@dataclass(frozen=True)
class MotionStatistics:
    """Mean and deviation of every column, (M,) float32 each; the deviation is above 0."""

    mean: Motion
    std: Motion


@dataclass(frozen=True)
class MotionClips:
    """Clips of one motion space and frame rate. Built by whoever reads motion, never changed.

    Attributes:
        clip_ids: (n,), unique.
        frames: (sum of frames, M) float32, finite, in motion units.
        edges: (n + 1,) int64; clip i is frames[edges[i] : edges[i + 1]].
    """

    clip_ids: tuple[str, ...]
    frames: Motion
    edges: npt.NDArray[np.int64]

    @staticmethod
    def of(clips: Sequence[tuple[str, Motion]]) -> MotionClips:
        """Joins (clip_id, motion (frames, M)) pairs.

        Raises:
            TrainingDataError: there is none, their dimensions differ, or one holds NaN or infinity.
        """
        if not clips:
            raise TrainingDataError("no clip of motion was given")
        dims = sorted({motion.shape[1] for _, motion in clips})
        if len(dims) > 1:
            raise TrainingDataError(f"clips have {dims} columns: train on one motion space at a time")
        for clip_id, motion in clips:
            if not np.isfinite(motion).all():
                frame = int(np.argwhere(~np.isfinite(motion).all(axis=1))[0, 0])
                raise TrainingDataError(f"clip {clip_id} holds NaN or infinity, first in frame {frame}: leave it out")
        edges = np.cumsum([0, *(len(motion) for _, motion in clips)], dtype=np.int64)
        frames = np.concatenate([motion for _, motion in clips]).astype(np.float32, copy=False)
        return MotionClips(tuple(clip_id for clip_id, _ in clips), frames, edges)

    @property
    def num_clips(self) -> int:
        """How many clips there are."""
        return len(self.clip_ids)

    @property
    def num_frames(self) -> int:
        """How many frames all clips have together."""
        return len(self.frames)

    def clip(self, index: int) -> Motion:
        """Returns the motion of one clip, (frames, M)."""
        return self.frames[self.edges[index] : self.edges[index + 1]]

    def at_least(self, num_frames: int) -> MotionClips:
        """Leaves out clips that are shorter.

        Raises:
            TrainingDataError: none is left.
        """
        lengths = np.diff(self.edges)
        if self.num_clips and (lengths >= num_frames).all():
            return self
        long = [(clip_id, self.clip(i)) for i, clip_id in enumerate(self.clip_ids) if lengths[i] >= num_frames]
        if not long:
            raise TrainingDataError(
                f"no clip is long enough: a window has {num_frames} frames, the longest of {self.num_clips} clips has "
                f"{int(lengths.max(initial=0))}; give longer clips or a codec of smaller patch_nums"
            )
        return MotionClips.of(long)

    def divide(self, held_out_share: float, salt: str = "") -> tuple[MotionClips, MotionClips]:
        """Divides clips by a hash of their id into those to train on and held-out ones, at least one each.

        A clip is held out where the hash of its id falls below the share, whatever else is in the corpus; where that
        takes none or all, the clip with the smallest (or all but that with the largest) hash.

        Args:
            held_out_share: above 0, below 1.
            salt: another text holds out other clips.

        Returns:
            Training clips, held-out clips.

        Raises:
            TrainingDataError: there is only one clip.
        """
        if self.num_clips < 2:
            raise TrainingDataError(
                f"one clip is held out to measure the error, but there is only {self.clip_ids[0]}: cut it in two, or "
                "give more clips"
            )
        hashes = np.array([_hash64(f"{salt}\0{clip_id}") for clip_id in self.clip_ids])
        held_out = hashes <= max(held_out_share, hashes.min())
        if held_out.all():
            held_out[hashes.argmax()] = False
        chosen: list[list[tuple[str, Motion]]] = [[], []]
        for index, clip_id in enumerate(self.clip_ids):
            chosen[int(held_out[index])].append((clip_id, self.clip(index)))
        return MotionClips.of(chosen[0]), MotionClips.of(chosen[1])

    def statistics(self) -> MotionStatistics:
        """Mean and deviation of every column over all frames, summed in float64; 1 where a column never changes.

        Raises:
            TrainingDataError: no column changes.
        """
        mean = np.zeros(self.frames.shape[1])
        squares = np.zeros_like(mean)
        for index in range(self.num_clips):
            mean += self.clip(index).sum(axis=0, dtype=np.float64)
        mean /= self.num_frames
        for index in range(self.num_clips):
            squares += np.square(self.clip(index) - mean).sum(axis=0)
        std = np.sqrt(squares / self.num_frames).astype(np.float32)
        is_constant = self.frames.max(axis=0) == self.frames.min(axis=0)
        if is_constant.all():
            raise TrainingDataError(
                f"all {len(mean)} columns are constant over {self.num_frames} frames: there is nothing to learn; "
                "look at input.motion_field and input.columns"
            )
        std[is_constant | (std == 0)] = 1.0
        return MotionStatistics(mean.astype(np.float32), std)

    def digest(self) -> str:
        """SHA-256 (hex) over ids, lengths and frames."""
        digest = hashlib.sha256(repr((self.clip_ids, self.edges.tolist())).encode())
        digest.update(np.ascontiguousarray(self.frames).tobytes())
        return digest.hexdigest()


def _hash64(text: str) -> float:
    """A number in 0 .. 1 that belongs to the text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
