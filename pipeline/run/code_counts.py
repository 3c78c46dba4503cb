"""How often each bit of a code is one, on a few windows of every task: what a later run is compared with.

Knows numpy alone: no Ray, torch, Arrow or storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TASK_WINDOWS = 256
"""Windows that are counted in one task, spread over it: enough for a share, too few to cost time."""

Counts = Mapping[str, Any]
"""`windows`: how many were counted; `tokens`: tokens of each scale; `ones`: (scales, code_dim) ones in them."""


@dataclass(frozen=True)
class Drift:
    """How far the use of bits moved between two runs, as differences of shares of ones."""

    mean: float
    by_scale: tuple[float, ...]
    """Mean over the bits of each scale, coarse to fine."""
    largest: float
    largest_scale: int
    largest_bit: int
    noise: float
    """What `mean` would be by chance, if all tokens that were counted were drawn independently of each other."""


def count_codes(packed: NDArray[np.uint8], patch_nums: Sequence[int]) -> dict[str, Any]:
    """Return the counts of some of a task's windows; empty where it has none.

    Args:
        packed: (n, half_bytes), bits of `this`.
        patch_nums: tokens of each scale.
    """
    if not len(packed):
        return {}
    rows = np.unique(np.linspace(0, len(packed) - 1, min(len(packed), TASK_WINDOWS)).astype(np.int64))
    bits = np.unpackbits(packed[rows], axis=1).reshape(len(rows), sum(patch_nums), -1)
    begins = np.cumsum([0, *patch_nums[:-1]])
    ones = np.add.reduceat(bits.sum(axis=0, dtype=np.int64), begins, axis=0)
    return {"windows": len(rows), "tokens": list(patch_nums), "ones": ones.tolist()}


def add_codes(total: Counts, more: Counts) -> dict[str, Any]:
    """Return the counts of both."""
    if not total or not more:
        return dict(total or more)
    ones = np.array(total["ones"]) + np.array(more["ones"])
    return {"windows": total["windows"] + more["windows"], "tokens": total["tokens"], "ones": ones.tolist()}


def code_drift(now: Counts, before: Counts) -> Drift | None:
    """Return how far the use of bits moved; None where one run counted none, or their codes have another shape."""
    if not now or not before or now["tokens"] != before["tokens"]:
        return None
    counted = [np.array(counts["tokens"])[:, None] * counts["windows"] for counts in (now, before)]
    shares = [np.array(counts["ones"]) / num for counts, num in zip((now, before), counted, strict=True)]
    if shares[0].shape != shares[1].shape:
        return None
    moved = np.abs(shares[0] - shares[1])
    scale, bit = (int(index) for index in np.unravel_index(moved.argmax(), moved.shape))
    variance = sum(share * (1 - share) / num for share, num in zip(shares, counted, strict=True))
    return Drift(
        mean=float(moved.mean()),
        by_scale=tuple(float(value) for value in moved.mean(axis=1)),
        largest=float(moved.max()),
        largest_scale=scale,
        largest_bit=bit,
        noise=float(np.sqrt(2 / np.pi * variance).mean()),
    )
