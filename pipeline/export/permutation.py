"""A seeded permutation of 0 .. n - 1 by formula: where each number goes, without a table of the others.

Knows no Ray, torch or storage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.export.layout import mixed_hash
from pipeline.hashing import hash64

Int64s = NDArray[np.int64]

ROUNDS = 6


@dataclass(frozen=True)
class Permutation:
    """Every number below `size` to another one, each hit once; equal seed and size, equal permutation.

    Numbers are pairs (high, low) of an almost square grid that holds them; each round shifts one half by a hash of
    the other, which can be undone, so the grid is permuted. A number that lands outside is sent on until it is inside.
    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains" (generalised Feistel, cycle walking).
    """

    seed: str
    size: int

    def places(self, numbers: Int64s) -> Int64s:
        """Return where numbers go.

        Args:
            numbers: (n,) in 0 .. size - 1.

        Returns:
            (n,) in 0 .. size - 1.
        """
        found = self._once(numbers)
        outside = np.flatnonzero(found >= self.size)
        while len(outside):
            found[outside] = self._once(found[outside])
            outside = outside[found[outside] >= self.size]
        return found

    def _once(self, numbers: Int64s) -> Int64s:
        width, height = self._grid
        high, low = np.divmod(numbers, width)
        for number, key in enumerate(self._keys):
            if number % 2:
                low = (low + (mixed_hash(key, high) % np.uint64(width)).astype(np.int64)) % width
            else:
                high = (high + (mixed_hash(key, low) % np.uint64(height)).astype(np.int64)) % height
        return high * width + low

    @cached_property
    def _grid(self) -> tuple[int, int]:
        """Width and height: about square, and hardly more places than numbers."""
        width = max(1, math.isqrt(self.size))
        return width, -(-self.size // width) or 1

    @cached_property
    def _keys(self) -> list[int]:
        return [hash64(f"{self.seed}\0{number}") for number in range(ROUNDS)]
