"""Motion and sound in Arrow's lists, taken out without copies.

Knows no file: columns come in, arrays go out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contract.drop_reasons import ClipError, DropReason


def motions_of(column: Any, flat_dim: int) -> Iterator[npt.NDArray[Any] | ClipError]:
    """Yield the motion of every row, (frames, dims) without copies, or what is wrong with it.

    Args:
        column: Arrow array of lists of frames, or of flat lists of frames * flat_dim numbers; sliced or not.
        flat_dim: dims of a frame where the list is flat; 0 where nobody knows.
    """
    if not is_list(column.type):
        yield from [ClipError(DropReason.WRONG_DTYPE, f"wanted lists of numbers, found {column.type}")] * len(column)
        return
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    edges = _edges(column)
    values, frame_edges = column.flatten(), None
    if is_list(values.type):
        frame_edges, values = _edges(values), values.flatten()
    if not pa.types.is_floating(values.type):
        yield from [ClipError(DropReason.WRONG_DTYPE, f"wanted floats, found {column.type}")] * len(column)
        return
    numbers = values.to_numpy(zero_copy_only=False)
    for row in range(len(column)):
        start, stop = int(edges[row]), int(edges[row + 1])
        if is_null[row]:
            yield ClipError(DropReason.MISSING_FIELD, "the motion is null")
        elif frame_edges is None:
            yield _flat_motion(numbers[start:stop], flat_dim)
        else:
            yield _nested_motion(numbers, frame_edges[start : stop + 1], flat_dim)


def _flat_motion(numbers: npt.NDArray[Any], flat_dim: int) -> npt.NDArray[Any] | ClipError:
    if not flat_dim:
        detail = "a flat list does not say its dims a frame: name them with --set input.motion_dim=NUMBER"
        return ClipError(DropReason.WRONG_DIM, detail)
    if len(numbers) % flat_dim:
        detail = f"wanted a multiple of {flat_dim} numbers in a flat list, found {len(numbers)}"
        return ClipError(DropReason.WRONG_DIM, detail)
    return numbers.reshape(-1, flat_dim)


def _nested_motion(
    numbers: npt.NDArray[Any], frame_edges: npt.NDArray[np.int64], flat_dim: int
) -> npt.NDArray[Any] | ClipError:
    dims = np.diff(frame_edges)
    if not len(dims):
        return np.empty((0, flat_dim), numbers.dtype)
    is_other = dims != dims[0]
    if is_other.any():
        frame = int(np.argmax(is_other))
        return ClipError(DropReason.WRONG_DIM, f"frame {frame} has {dims[frame]} dims, frame 0 has {dims[0]}")
    return numbers[frame_edges[0] : frame_edges[-1]].reshape(len(dims), int(dims[0]))


def _edges(lists: Any) -> npt.NDArray[np.int64]:
    """Return where each list begins and ends in `lists.flatten()`, which leaves out nulls; (n + 1,)."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def value_at(column: Any, row: int) -> Any:
    """Return one value: a list of numbers as array, else as Python has it; what Python cannot hold stays a scalar."""
    scalar = column[row]
    if is_list(column.type) and scalar.is_valid:
        values = scalar.values
        if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
            return values.to_numpy(zero_copy_only=False)
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return scalar


def is_list(kind: Any) -> bool:
    """Return whether a type is one of Arrow's lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
