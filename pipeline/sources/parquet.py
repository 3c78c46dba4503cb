"""Parquet: one row is one clip. Decoded by Arrow's buffers, a batch of rows at a time.

Knows no other format.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import CodecSpec, CorpusSpec
from pipeline.quarantine import ClipProblem, DropReason
from pipeline.sources.clip import ClipError, Part, RawClip, fps_field, raw_clip
from pipeline.sources.parquet_footer import ChunkClaim, chunk_claims
from pipeline.sources.sizes import MAX_GROWTH, growth_fault
from pipeline.storage import Folder

BATCH_BYTES = 16 << 20

_MAGIC = b"PAR1"
_REFERENCE_BYTES = 8
_FAULTS = (pa.ArrowException, OSError, ValueError, MemoryError)


@dataclass(frozen=True)
class _Columns:
    """Names of the columns to read; None where the file has none and none is asked for."""

    motion: str
    clip_id: str | None
    fps: str | None

    def names(self) -> list[str]:
        return [name for name in (self.motion, self.clip_id, self.fps) if name is not None]


@dataclass(frozen=True)
class _RowGroup:
    """A row group and the rows of it that a part asks for, [start, stop) of the whole file."""

    index: int
    first_row: int
    start: int
    stop: int
    num_rows: int
    num_bytes: int


def cut_parquet(folder: Folder, whole: Part, corpus: CorpusSpec) -> list[Part]:
    """Return parts of about `unit_bytes` decoded: runs of row groups, a larger row group by rows.

    A file whose footer cannot be read stays whole: its reader reports it.
    """
    try:
        with folder.open(whole.path) as file, closing(_opened(file)) as parquet, _damage_in("the footer"):
            groups = list(_row_groups(parquet, whole))
            max_bytes = MAX_GROWTH * file.seek(0, os.SEEK_END)
    except ClipError:
        return [whole]
    cuts: list[int] = []
    held_bytes = 0
    for group in groups:
        num_bytes = min(group.num_bytes, max_bytes)
        if held_bytes and held_bytes + num_bytes > corpus.unit_bytes:
            cuts.append(group.first_row)
            held_bytes = 0
        pieces = min(math.ceil(num_bytes / corpus.unit_bytes), group.num_rows)
        cuts.extend(group.first_row + group.num_rows * piece // pieces for piece in range(1, pieces))
        held_bytes += num_bytes
    if not cuts:
        return [whole]
    edges = [0, *cuts, groups[-1].stop]
    return [Part(whole.input_name, whole.path, whole.format, start, stop) for start, stop in itertools.pairwise(edges)]


def read_parquet(folder: Folder, part: Part, corpus: CorpusSpec, codec: CodecSpec) -> Iterator[RawClip | ClipProblem]:
    """Yield the clips of a part's rows in order; a row group that cannot be decoded is one problem.

    Raises:
        FileNotFoundError: the file is gone.
        StorageError, OSError: storage does not answer.
    """
    flat_dim = corpus.motion_dim or codec.motion_dim
    with folder.open(part.path) as file:
        try:
            parquet = _opened(file)
            with _damage_in("the footer"):
                schema = parquet.schema_arrow
                columns = _find_columns(schema, corpus)
                if columns.clip_id in schema.names and pa.types.is_string(schema.field(columns.clip_id).type):
                    # a long text that repeats is held once
                    parquet = pq.ParquetFile(
                        file, metadata=parquet.metadata, pre_buffer=True, read_dictionary=[columns.clip_id]
                    )
                groups = list(_row_groups(parquet, part))
                claims = _claims(parquet)
                file_bytes = file.seek(0, os.SEEK_END)
        except ClipError as error:
            yield part.problem(part.stem, "", error.reason, error.detail)
            return
        with closing(parquet):
            for group in groups:
                try:
                    num_bytes = _decoded_bytes(claims[group.index], columns, schema, file_bytes)
                    for row, batch in _batches(parquet, group, columns, num_bytes):
                        yield from _clips(batch, row, part, columns, corpus, flat_dim)
                except ClipError as error:
                    yield part.problem(part.stem, _rows(group), error.reason, error.detail)


def motions_of(column: Any, flat_dim: int) -> Iterator[npt.NDArray[Any] | ClipError]:
    """Yield the motion of every row, (frames, dims) without copies, or what is wrong with it.

    Args:
        column: Arrow array of lists of frames, or of flat lists of frames * flat_dim numbers; sliced or not.
        flat_dim: dims of a frame where the list is flat; 0 where nobody knows.
    """
    column = _without_extension(column)
    if not _is_list(column.type):
        yield from [ClipError(DropReason.WRONG_DTYPE, f"wanted lists of numbers, found {column.type}")] * len(column)
        return
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    edges = _edges(column)
    values, frame_edges = column.flatten(), None
    if _is_list(values.type):
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


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _without_extension(column: Any) -> Any:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _opened(file: BinaryIO) -> Any:
    """Return the ParquetFile; ClipError where the file is none or ends early."""
    try:
        return pq.ParquetFile(file, pre_buffer=True)
    except _FAULTS as error:
        _raise_if_storage(error)
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(len(_MAGIC))
        file.seek(max(0, num_bytes - len(_MAGIC)))
        is_cut = head == _MAGIC and file.read() != _MAGIC
        reason = DropReason.TRUNCATED if is_cut else DropReason.UNREADABLE
        raise ClipError(reason, f"no Parquet footer at the end of {num_bytes} bytes: {error}") from error


@contextmanager
def _damage_in(place: str) -> Iterator[None]:
    """Turn what Arrow says of bad bytes into a ClipError."""
    try:
        yield
    except _FAULTS as error:
        _raise_if_storage(error)
        raise ClipError(DropReason.UNREADABLE, f"{place} is damaged: {error}") from error


def _raise_if_storage(error: BaseException) -> None:
    """Raise an error again that the system gave: Arrow's own for bad bytes carry no number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _find_columns(schema: Any, corpus: CorpusSpec) -> _Columns:
    def required(name: str) -> str:
        if not _has_column(schema, name):
            found = ", ".join(schema.names) or "none"
            raise ClipError(DropReason.MISSING_FIELD, f"no column {name!r}, found: {found}")
        return name

    def optional(configured: str | None, default: str) -> str | None:
        if configured is not None:
            return required(configured)
        return default if default in schema.names else None

    return _Columns(
        motion=required(corpus.motion_field),
        clip_id=optional(corpus.clip_id_field, "clip_id"),
        fps=optional(fps_field(corpus), "fps"),
    )


def _has_column(schema: Any, name: str) -> bool:
    if name in schema.names:
        return True
    outer, dot, inner = name.partition(".")
    kind = schema.field(outer).type if dot and outer in schema.names else None
    return kind is not None and pa.types.is_struct(kind) and inner in {field.name for field in kind}


def _column(batch: Any, name: str) -> Any:
    """Return a column, or the field `b` of a struct column `a` for the name ``a.b``."""
    if name in batch.schema.names:
        return batch.column(name)
    outer, _, inner = name.partition(".")
    return pc.struct_field(batch.column(outer), inner)


def _row_groups(parquet: Any, part: Part) -> Iterator[_RowGroup]:
    """Yield the row groups that hold rows of a part.

    Sizes are those of all columns: asking pyarrow for one column's ends the process where its entry is damaged.
    """
    metadata, first_row = parquet.metadata, 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        start = max(first_row, part.start or 0)
        stop = first_row + group.num_rows
        if part.stop is not None:
            stop = min(stop, part.stop)
        if start < stop:
            yield _RowGroup(index, first_row, start, stop, group.num_rows, group.total_byte_size)
        first_row += group.num_rows


def _claims(parquet: Any) -> list[list[ChunkClaim]]:
    """Return what the footer claims of every row group's chunks."""
    footer = io.BytesIO()
    parquet.metadata.write_metadata_file(footer)
    return chunk_claims(footer.getbuffer()[len(_MAGIC) : -len(_MAGIC) - 4])


def _decoded_bytes(chunks: list[ChunkClaim], columns: _Columns, schema: Any, file_bytes: int) -> int:
    """Return the bytes that the wanted columns of a row group become.

    Raises:
        ClipError: far more than is stored: runs of one value can stand for any number of them.
    """
    wanted = [chunk for name in columns.names() for chunk in chunks if _is_in(chunk, name)]
    num_nulls = sum(chunk.num_nulls for chunk in chunks if _is_in(chunk, columns.motion))
    num_bytes = sum(chunk.decoded_bytes for chunk in wanted)
    # a null in place of a fixed-size list takes as much as the list
    num_bytes += _fixed_bytes(schema, columns.motion) * max(1, num_nulls)
    fault = growth_fault("the row group", num_bytes, min(file_bytes, sum(chunk.stored_bytes for chunk in wanted)))
    if fault:
        raise ClipError(DropReason.UNREADABLE, fault)
    return num_bytes


def _is_in(chunk: ChunkClaim, name: str) -> bool:
    """Return whether a chunk belongs to a column, or to the field `b` of a struct column `a` for the name ``a.b``."""
    return chunk.path[:1] == (name,) or chunk.path[: name.count(".") + 1] == tuple(name.split("."))


def _fixed_bytes(schema: Any, motion: str) -> int:
    """Return the bytes of one fixed-size list of the motion's type, 0 without one."""
    outer, _, inner = motion.partition(".")
    kind = schema.field(motion).type if motion in schema.names else schema.field(outer).type.field(inner).type
    num_bytes, is_fixed = _REFERENCE_BYTES, False
    while _is_list(kind):
        if pa.types.is_fixed_size_list(kind):
            num_bytes, is_fixed = num_bytes * kind.list_size, True
        kind = kind.value_type
    return num_bytes if is_fixed else 0


def _rows(group: _RowGroup) -> str:
    return f"rows {group.start} to {group.stop - 1}"


def _batches(parquet: Any, group: _RowGroup, columns: _Columns, num_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yield (first row, batch) of a row group's wanted rows; ClipError where they cannot be decoded."""
    batch_rows = max(1, BATCH_BYTES * group.num_rows // max(1, group.num_bytes, num_bytes))
    row = group.first_row
    with _damage_in("the row group"):
        for batch in parquet.iter_batches(
            batch_rows, row_groups=[group.index], columns=columns.names(), use_threads=False
        ):
            start, stop = max(row, group.start), min(row + batch.num_rows, group.stop)
            if start < stop:
                yield start, batch.slice(start - row, stop - start)
            row += batch.num_rows
            if row >= group.stop:
                return


def _clips(
    batch: Any, first_row: int, part: Part, columns: _Columns, corpus: CorpusSpec, flat_dim: int
) -> Iterator[RawClip | ClipProblem]:
    ids = _values(batch, columns.clip_id)
    rates = _values(batch, columns.fps)
    motions = motions_of(_column(batch, columns.motion), flat_dim)
    for index, motion in enumerate(motions):
        row = first_row + index
        where, default_id = f"row {row}", f"{part.stem}#{row}"
        if isinstance(motion, ClipError):
            clip_id = ids[index] if isinstance(ids[index], str) else default_id
            yield part.problem(clip_id, where, motion.reason, motion.detail)
        else:
            yield raw_clip(part, where, default_id, motion, (ids[index], rates[index]), corpus)


def _values(batch: Any, name: str | None) -> list[Any]:
    """Return a column as Python values, None without one; what Python cannot hold stays an Arrow scalar."""
    if name is None:
        return [None] * batch.num_rows
    column = _column(batch, name)
    if isinstance(column, pa.DictionaryArray):
        values = [_value(scalar) for scalar in column.dictionary]
        return [None if index is None else values[index] for index in column.indices.to_pylist()]
    return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return scalar
