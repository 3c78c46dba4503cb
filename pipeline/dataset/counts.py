"""Counts over tables: clips dropped by reason, and windows that differ in a column beside their bits.

Knows no Ray, torch or storage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.contract.schema import EVERY_DATASETS_COLUMNS


@dataclass
class ColumnCounts:
    """Built for some columns; grows while pairs of windows are compared."""

    names: Sequence[str]
    num_windows: int = 0
    differing: dict[str, int] = field(default_factory=dict)
    """Column -> windows whose values are not equal."""

    def add(self, ours: pa.Table, theirs: pa.Table) -> None:
        """Compare rows in pairs, by their columns of these names."""
        self.num_windows += ours.num_rows
        for name in self.names:
            differs = rows_that_differ(ours[name], theirs[name])
            self.differing[name] = self.differing.get(name, 0) + int(differs.sum())

    @property
    def is_equal(self) -> bool:
        """Whether no window differs in any column."""
        return not any(self.differing.values())


def common_columns(ours: pa.Schema, theirs: pa.Schema) -> list[str]:
    """Return the names of columns beside clips, frames, sources and bits that both token schemas have with one type."""
    return [field.name for field in ours if field.name not in EVERY_DATASETS_COLUMNS and field in list(theirs)]


def rows_that_differ(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return which values of two columns of one length and type are not equal; nulls are equal to nulls."""
    if pa.types.is_fixed_size_binary(ours.type):
        return np.asarray((array_of(ours, "|u1") != array_of(theirs, "|u1")).any(axis=1), np.bool_)
    pairs = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
    return np.fromiter((here != there for here, there in pairs), np.bool_, len(ours))


def array_of(column: pa.ChunkedArray, dtype: str) -> NDArray[np.generic]:
    """Return a fixed-size binary column as one array, (rows, values).

    Args:
        dtype: of the values; `ArrayColumn` says which.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no chunk
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    width = array.type.byte_width
    if not len(array):
        return np.zeros((0, width // np.dtype(dtype).itemsize), dtype)
    start = array.offset * width
    data = np.frombuffer(array.buffers()[1], np.uint8)[start : start + len(array) * width]
    return np.ascontiguousarray(data).view(dtype).reshape(len(array), -1)


def count_drops(drop_reasons: pa.ChunkedArray) -> Counter[str]:
    """Return how many clips of a ledger or an index were dropped for each reason; a kept clip has an empty one."""
    counted = pc.value_counts(drop_reasons.filter(pc.not_equal(drop_reasons, "")))
    return Counter(dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)))
