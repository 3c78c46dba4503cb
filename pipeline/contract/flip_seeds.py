"""The seed of each flip pair: pairs stored at encoding and pairs drawn later from stored latents share it.

Pure. Knows no Ray, torch, Arrow or storage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hash64


def flip_seed(seed: int, clip_id: str, start_frame: int, k: int) -> int:
    """Return the seed of pair `k` of a window, 0 to 2**64 - 1.

    Args:
        seed: the dataset's `flips.seed`.
        clip_id: of the window.
        start_frame: of the window.
        k: number of the pair, from 0.
    """
    return hash64(f"{seed}\0{clip_id}\0{start_frame}\0{k}")


def flip_seeds(seed: int, clip_ids: Sequence[str], start_frames: Sequence[int], k: int) -> NDArray[np.uint64]:
    """Return the seed of pair `k` of every window, (windows,), as `flip_seed` gives it.

    Raises:
        ValueError: there is not one start frame a clip id.
    """
    seeds = [flip_seed(seed, clip_id, int(start), k) for clip_id, start in zip(clip_ids, start_frames, strict=True)]
    return np.array(seeds, dtype=np.uint64)
