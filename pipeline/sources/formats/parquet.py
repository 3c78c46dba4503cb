"""Parquet: one row is one clip. Decoded by Arrow's buffers, a batch of rows at a time.

Knows no other format.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contract.drop_reasons import ClipError, ClipProblem, DropReason
from pipeline.contract.specs import CodecSpec, CorpusSpec
from pipeline.sources.clip import ClipFields, Part, RawClip, fps_field, raw_clip
from pipeline.sources.formats.parquet_lists import is_list, motions_of, value_at
from pipeline.sources.limits import MAX_GROWTH, growth_fault
from pipeline.sources.stored_audio import StoredAudio
from pipeline.storage import Folder
from pipeline.tables import (
    ChunkClaim,
    CutTableError,
    DamagedTableError,
    Footer,
    extension_of,
    metadata_of,
    open_parquet,
    read_footer,
)

BATCH_BYTES = 16 << 20
"""Of decoded rows in a batch, about."""

_REFERENCE_BYTES = 8
_FAULTS = (pa.ArrowException, OSError, ValueError, MemoryError)


@dataclass(frozen=True)
class _Columns:
    """Names of the columns to read; None where the file has none and none is asked for."""

    motion: str
    clip_id: str | None
    fps: str | None
    carried: tuple[str, ...]
    audio: str | None

    def names(self) -> list[str]:
        names = (self.motion, self.clip_id, self.fps, *self.carried, self.audio)
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True)
class _Reading:
    """What a part is read with: built by `read_parquet`, once a part."""

    folder: Folder
    part: Part
    columns: _Columns
    corpus: CorpusSpec
    flat_dim: int


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
        with folder.open(whole.path) as file:
            groups = list(_row_groups(_footer(file), whole))
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


def read_parquet(
    folder: Folder, part: Part, corpus: CorpusSpec, codec: CodecSpec, batch_bytes: int = BATCH_BYTES
) -> Iterator[RawClip | ClipProblem]:
    """Yield the clips of a part's rows in order; a row group that cannot be decoded is one problem.

    Args:
        batch_bytes: about so many bytes of rows are decoded at once.

    Raises:
        FileNotFoundError: the file is gone.
        StorageError, OSError: storage does not answer.
    """
    flat_dim = corpus.motion_dim or codec.motion_dim
    with folder.open(part.path) as file:
        try:
            footer = _footer(file)
            with _damage_in("the footer"):
                metadata = metadata_of(footer)
                schema = metadata.schema.to_arrow_schema()
                columns = _find_columns(schema, corpus)
                texts = [name for name in columns.names() if name not in (columns.motion, columns.fps)]
                repeating = [leaf for name in texts for leaf in _text_leaves(type_of(schema, name), name)]
                # long texts and bytes that repeat are held once
                parquet = open_parquet(file, metadata, pre_buffer=True, read_dictionary=repeating)
                groups = list(_row_groups(footer, part))
                file_bytes = file.seek(0, os.SEEK_END)
        except ClipError as error:
            yield part.problem(part.stem, "", error.reason, error.detail)
            return
        reading = _Reading(folder, part, columns, corpus, flat_dim)
        with closing(parquet):
            for group in groups:
                try:
                    num_bytes = _decoded_bytes(footer.groups[group.index].chunks, columns, schema, file_bytes)
                    for row, batch in _batches(parquet, group, columns, num_bytes, batch_bytes):
                        yield from _clips(batch, row, reading)
                except ClipError as error:
                    yield part.problem(part.stem, _rows(group), error.reason, error.detail)


def _footer(file: BinaryIO) -> Footer:
    """Return the checked footer; ClipError where the file has none, ends early, or contradicts itself."""
    try:
        return read_footer(file)
    except CutTableError as error:
        raise ClipError(DropReason.TRUNCATED, str(error)) from error
    except DamagedTableError as error:
        raise ClipError(DropReason.UNREADABLE, str(error)) from error


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

    found = _Columns(
        motion=required(corpus.motion_field),
        clip_id=optional(corpus.clip_id_field, "clip_id"),
        fps=optional(fps_field(corpus), "fps"),
        carried=tuple(column.name for column in corpus.carry if _has_column(schema, column.name)),
        audio=corpus.audio.field if corpus.audio is not None and _has_column(schema, corpus.audio.field) else None,
    )
    for name in found.names():
        _refuse_pickles(name, _field(schema, name))
    return found


def _field(schema: Any, name: str) -> Any:
    """Return the field of a column, or the field `b` of a struct column `a` for the name ``a.b``."""
    if name in schema.names:
        return schema.field(name)
    outer, _, inner = name.partition(".")
    return schema.field(outer).type.field(inner)


def _refuse_pickles(name: str, field: Any) -> None:
    """Raise ClipError where a column holds pickled objects, at any depth: loading one runs what its writer wants."""
    extension = extension_of(field)
    if extension is not None and extension.holds_pickles:
        detail = f"column {name!r} holds pickled Python objects ({extension.name}): write it as numbers or text"
        raise ClipError(DropReason.WRONG_DTYPE, detail)
    kind = field.type
    for index in range(kind.num_fields):
        _refuse_pickles(name, kind.field(index))


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


def _row_groups(footer: Footer, part: Part) -> Iterator[_RowGroup]:
    """Yield the row groups that hold rows of a part; sizes are those of all columns."""
    first_row = 0
    for index, group in enumerate(footer.groups):
        start = max(first_row, part.start or 0)
        stop = first_row + group.num_rows
        if part.stop is not None:
            stop = min(stop, part.stop)
        if start < stop:
            yield _RowGroup(index, first_row, start, stop, group.num_rows, group.num_bytes)
        first_row += group.num_rows


def _decoded_bytes(chunks: Sequence[ChunkClaim], columns: _Columns, schema: Any, file_bytes: int) -> int:
    """Return the bytes that the wanted columns of a row group become.

    Raises:
        ClipError: far more than is stored: runs of one value can stand for any number of them.
    """
    wanted = [chunk for name in columns.names() for chunk in chunks if _is_in(chunk, name)]
    num_bytes = sum(chunk.decoded_bytes for chunk in wanted)
    for name in columns.names():
        # a null in place of a fixed-size list takes as much as the list
        num_nulls = sum(chunk.num_nulls for chunk in chunks if _is_in(chunk, name))
        num_bytes += _fixed_bytes(type_of(schema, name)) * max(1, num_nulls)
    fault = growth_fault("the row group", num_bytes, min(file_bytes, sum(chunk.stored_bytes for chunk in wanted)))
    if fault:
        raise ClipError(DropReason.UNREADABLE, fault)
    return num_bytes


def _is_in(chunk: ChunkClaim, name: str) -> bool:
    """Return whether a chunk belongs to a column, or to the field `b` of a struct column `a` for the name ``a.b``."""
    return chunk.path[:1] == (name,) or chunk.path[: name.count(".") + 1] == tuple(name.split("."))


def type_of(schema: Any, name: str) -> Any:
    """Return the type of a column, or of the field `b` of a struct column `a` for the name ``a.b``."""
    return _field(schema, name).type


def _text_leaves(kind: Any, path: str) -> Iterator[str]:
    """Yield the paths of texts and bytes in a column that is not a list."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _text_leaves(field.type, f"{path}.{field.name}")
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        yield path


def _fixed_bytes(kind: Any) -> int:
    """Return the bytes of one value's fixed-size lists, 0 without any."""
    if pa.types.is_struct(kind):
        return sum(_fixed_bytes(field.type) for field in kind)
    num_bytes, is_fixed = _REFERENCE_BYTES, False
    while is_list(kind):
        if pa.types.is_fixed_size_list(kind):
            num_bytes, is_fixed = num_bytes * kind.list_size, True
        kind = kind.value_type
    return num_bytes if is_fixed else 0


def _rows(group: _RowGroup) -> str:
    return f"rows {group.start} to {group.stop - 1}"


def _batches(
    parquet: Any, group: _RowGroup, columns: _Columns, num_bytes: int, batch_bytes: int
) -> Iterator[tuple[int, Any]]:
    """Yield (first row, batch) of a row group's wanted rows; ClipError where they cannot be decoded."""
    batch_rows = max(1, batch_bytes * group.num_rows // max(1, group.num_bytes, num_bytes))
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


def _clips(batch: Any, first_row: int, reading: _Reading) -> Iterator[RawClip | ClipProblem]:
    part, columns, corpus = reading.part, reading.columns, reading.corpus
    ids = _values(batch, columns.clip_id)
    rates = _values(batch, columns.fps)
    carried = {name: _column(batch, name) for name in columns.carried}
    audio = None if columns.audio is None else _column(batch, columns.audio)
    motions = motions_of(_column(batch, columns.motion), reading.flat_dim)
    for index, motion in enumerate(motions):
        row = first_row + index
        where, default_id = f"row {row}", f"{part.stem}#{row}"
        if isinstance(motion, ClipError):
            clip_id = ids[index] if isinstance(ids[index], str) else default_id
            yield part.problem(clip_id, where, motion.reason, motion.detail)
            continue
        fields = ClipFields(
            clip_id=ids[index],
            fps=rates[index],
            carried={name: value_at(column, index) for name, column in carried.items()},
            audio=None if audio is None else StoredAudio(value_at(audio, index), reading.folder, part),
        )
        yield raw_clip(part, where, default_id, motion, fields, corpus)


def _values(batch: Any, name: str | None) -> list[Any]:
    """Return a column as Python values, None without one."""
    if name is None:
        return [None] * batch.num_rows
    column = _column(batch, name)
    if isinstance(column, pa.DictionaryArray):
        values = [value_at(column.dictionary, index) for index in range(len(column.dictionary))]
        return [None if index is None else values[index] for index in column.indices.to_pylist()]
    return [value_at(column, index) for index in range(len(column))]
