"""Which clips and windows an export holds: lists of clips and a filter, asked of ledgers and of carried columns.

Knows no Ray or torch. Fragments are read only for carried columns, one row a clip; a window's columns are worked out
from its clip's length and the window rule.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.contract.schema import CARRIED_TYPES, CarriedKind
from pipeline.contract.specs import Contract, CorpusSpec, ExportSpec
from pipeline.contract.windows import valid_frames, window_starts
from pipeline.errors import ConfigError, DataError
from pipeline.export.clips import CLIPS_AT_ONCE, ClipTable, Spans, texts_of, with_values
from pipeline.export.splits import split_shares
from pipeline.settings.where import WINDOW_COLUMNS, Where, constant, unknown_column
from pipeline.sources.clip_filter import ClipFilter

CLIP_KINDS = {"clip_id": "string", "source": "string", "num_frames": "int64"}
"""Columns that every clip has, and their kinds."""

READ_THREADS = 8

ReadColumns = Callable[[int, Sequence[str]], pa.Table]
"""Unit and names of columns -> these columns of its fragment."""

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

_COMPARISONS: dict[type[ast.cmpop], Callable[..., Any]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}


@dataclass(frozen=True)
class Judged:
    """What was found out of each clip before its duplicates are looked for."""

    passes: Bools
    """(num_clips,) whether the lists and the filter's terms for clips keep it."""
    split_shares: NDArray[np.float64] | None
    """(num_clips,) where it falls on the line of splits; None where its ledger says so."""


def check_columns(export: ExportSpec, corpus: CorpusSpec) -> None:
    """Make sure that filter and splits ask for columns that there are.

    Raises:
        ConfigError: they ask for another one, or for one of another kind.
    """
    kinds = {**CLIP_KINDS, **{column.name: column.kind for column in corpus.carry}}
    where = Where(export.where)
    try:
        where.check_names(list(kinds))
    except ValueError as error:
        raise ConfigError(f"export.where: {error}") from error
    _check_kinds(where, {**kinds, **dict.fromkeys(WINDOW_COLUMNS, "int64")})
    by = export.splits.by
    if by == "file":
        return
    if by not in kinds:
        raise ConfigError(f"export.splits.by: {unknown_column(by, [*kinds, 'file'])}")
    if kinds[by].startswith("list"):
        raise ConfigError(f"export.splits.by: {by!r} holds lists: name a column of single values")


def _check_kinds(where: Where, kinds: Mapping[str, str]) -> None:
    """Ask every term about no rows: Arrow says which values do not go together."""
    columns = {name: pa.array([], CARRIED_TYPES[cast(CarriedKind, kind)]) for name, kind in kinds.items()}
    for term in [*where.clip_terms, *where.window_terms]:
        try:
            passing([term], columns, 0)
        except (pa.ArrowException, TypeError) as error:
            asked = {node.id for node in ast.walk(term) if isinstance(node, ast.Name)}
            found = ", ".join(f"{name} is {kinds[name]}" for name in sorted(asked))
            said = str(error).splitlines()[0]
            raise ConfigError(
                f"export.where: {ast.unparse(term)!r} asks for other kinds of values: {found} ({said})"
            ) from error


def judge_clips(
    clips: ClipTable, lists: ClipFilter, export: ExportSpec, contract: Contract, read: ReadColumns
) -> Judged:
    """Ask lists, filter and splits about every clip.

    Args:
        read: called only where carried columns are asked for.
    """
    carried = {column.name for column in contract.corpus.carry}
    where = Where(export.where)
    terms = where.clip_terms
    by = export.splits.by if export.splits.by in carried else ""
    names = sorted({name for name in [*where.clip_columns, by] if name in carried})
    passes = np.ones(clips.table.num_rows, np.bool_)
    shares = np.zeros(clips.table.num_rows) if by else None
    edges = np.searchsorted(clips.unit, np.arange(int(clips.unit.max(initial=-1)) + 2))

    def judge(unit: int) -> None:
        first, last = int(edges[unit]), int(edges[unit + 1])
        with_rows = first + np.flatnonzero(clips.num_rows[first:last])
        if not len(with_rows):
            return
        ledger = clips.table.slice(first, last - first)
        columns = {name: ledger[name].take(pa.array(with_rows - first)) for name in CLIP_KINDS}
        if names:
            values = read(unit, names)
            columns |= {name: values[name].take(pa.array(clips.first_row[with_rows])) for name in names}
        passes[with_rows] = passing(terms, columns, len(with_rows))
        if shares is not None:
            shares[with_rows] = split_shares(export.splits.salt, columns[by].to_pylist())

    if terms or by:
        with ThreadPoolExecutor(READ_THREADS if names else 1) as pool:
            list(pool.map(judge, range(len(edges) - 1)))
    if lists.include is not None or lists.exclude:
        passes &= np.array([lists.admits(clip_id) for clip_id in texts_of(clips.table["clip_id"])], np.bool_)
    return Judged(passes, shares)


def unknown_ids(clips: ClipTable, lists: ClipFilter) -> list[str]:
    """Return the ids in lists that no clip has, dropped ones included, sorted."""
    wanted = (lists.include or frozenset()) | lists.exclude
    return sorted(wanted.difference(texts_of(clips.table["clip_id"]))) if wanted else []


def keep_passing(clips: ClipTable, passes: Bools, export: ExportSpec, contract: Contract) -> ClipTable:
    """Return the clips with the windows that are left of each: none where it does not pass as a whole.

    Raises:
        DataError: a fragment holds another number of windows than the window rule says.
    """
    windows = np.where(passes, clips.num_windows, 0)
    where, spans = Where(export.where), None
    if where.window_terms:
        spans = _spans(clips, np.flatnonzero(windows), where, contract)
        lengths = (spans.stop - spans.start).astype(np.int64)
        windows = np.zeros(len(windows), np.int64)
        np.add.at(windows, spans.clip, lengths)
    table = with_values(clips.table, "num_windows", pa.array(windows.astype(np.int32)))
    return replace(clips, table=table, spans=spans)


def windows_passing(where: Where, starts: Int64s, num_frames: Int64s, sources: pa.Array, window_frames: int) -> Bools:
    """Return which windows the filter's terms for windows keep.

    Args:
        starts: (n,) start frames.
        num_frames: (n,) lengths of their clips, frames.
        sources: (n,) sources of their clips.
        window_frames: frames of one half of a window.
    """
    prev_valid, this_valid = valid_frames(starts, num_frames, window_frames)
    columns = {
        "start_frame": pa.array(starts),
        "prev_valid_frames": pa.array(prev_valid),
        "this_valid_frames": pa.array(this_valid),
        "num_frames": pa.array(num_frames),
        "source": sources,
    }
    return passing(where.window_terms, columns, len(starts))


def starts_passing(where: Where, starts: Int64s, num_frames: int, source: str, window_frames: int) -> Int64s:
    """Return which windows of one clip the filter's terms for windows keep.

    Args:
        starts: (n,) start frames of all windows.
        num_frames: length of the clip, frames.
        window_frames: frames of one half of a window.

    Returns:
        The start frames that pass.
    """
    if not where.window_terms:
        return starts
    lengths, sources = np.full(len(starts), num_frames), pa.array([source] * len(starts), pa.string())
    return starts[windows_passing(where, starts, lengths, sources, window_frames)]


def _spans(clips: ClipTable, chosen: Int64s, where: Where, contract: Contract) -> Spans:
    """Return the rows of chosen clips that pass, in runs."""
    names, sources = clips.table["clip_id"], clips.table["source"]
    lengths = clips.table["num_frames"].to_numpy().astype(np.int64)
    frames, rule = contract.codec.window_frames, contract.corpus.window
    found: list[tuple[Int64s, Int64s, Int64s]] = []
    for first in range(0, len(chosen), CLIPS_AT_ONCE):
        group = chosen[first : first + CLIPS_AT_ONCE]
        starts = [window_starts(names[clip].as_py(), int(lengths[clip]), frames, rule) for clip in group.tolist()]
        counts = np.array([len(of_clip) for of_clip in starts])
        for clip, count in zip(group.tolist(), counts.tolist(), strict=True):
            if count != clips.num_rows[clip]:
                raise DataError(
                    f"clip {names[clip].as_py()!r} ({sources[clip].as_py()}) has {clips.num_rows[clip]} windows in its"
                    f" fragment, and {count} by the window rule: run motion-tokens verify on the source"
                )
        clip_of = np.repeat(group, counts)
        all_starts = np.concatenate(starts)
        row = np.arange(len(all_starts)) - np.repeat(np.cumsum(counts) - counts, counts) + clips.first_row[clip_of]
        sources_of = sources.slice(group[0], group[-1] - group[0] + 1)  # taken of all, every group would copy all
        kept = windows_passing(
            where, all_starts, lengths[clip_of], sources_of.take(pa.array(clip_of - group[0])), frames
        )
        found.append(_runs(clip_of[kept], row[kept]))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    clip, start, stop = columns if columns else [np.zeros(0, np.int64)] * 3
    return Spans(clip, start, stop)


def _runs(clip: Int64s, row: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Return clip, first row and row behind the last of each run of neighbouring rows of one clip."""
    if not len(clip):
        return clip, row, row
    is_first = np.concatenate([[True], (clip[1:] != clip[:-1]) | (row[1:] != row[:-1] + 1)])
    firsts = np.flatnonzero(is_first)
    lasts = np.append(firsts[1:], len(row)) - 1
    return clip[firsts], row[firsts], row[lasts] + 1


def passing(terms: Sequence[ast.expr], columns: Mapping[str, pa.Array], num_rows: int) -> Bools:
    """Return the rows for which every term is true; one that is neither true nor false for want of a value is not."""
    kept = np.ones(num_rows, np.bool_)
    for term in terms:
        truth = _truth(term, columns)
        if not pa.types.is_boolean(truth.type):
            raise pa.ArrowTypeError(f"{truth.type} is neither true nor false")
        kept &= np.asarray(pc.fill_null(truth, False), np.bool_)
    return kept


def _truth(node: ast.expr, columns: Mapping[str, pa.Array]) -> pa.Array:
    """Return true, false or null a row."""
    if isinstance(node, ast.BoolOp):
        join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
        found = [_truth(value, columns) for value in node.values]
        return _joined(join, found)
    if isinstance(node, ast.UnaryOp):
        return pc.invert(_truth(node.operand, columns))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        found = [_compared(sides[n], operator, sides[n + 1], columns) for n, operator in enumerate(node.ops)]
        return _joined(pc.and_kleene, found)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        match = pc.starts_with if node.func.attr == "startswith" else pc.ends_with
        return match(_operand(node.func.value, columns), pattern=str(constant(node.args[0])))
    return _operand(node, columns)


def _joined(join: Callable[[pa.Array, pa.Array], pa.Array], found: Sequence[pa.Array]) -> pa.Array:
    result = found[0]
    for other in found[1:]:
        result = join(result, other)
    return result


def _compared(left: ast.expr, operator: ast.cmpop, right: ast.expr, columns: Mapping[str, pa.Array]) -> pa.Array:
    if isinstance(operator, ast.Is):
        return pc.is_null(_operand(left, columns))
    if isinstance(operator, ast.IsNot):
        return pc.is_valid(_operand(left, columns))
    if isinstance(operator, ast.In | ast.NotIn):
        found = _contained(left, right, columns)
        return found if isinstance(operator, ast.In) else pc.invert(found)
    sides = [_operand(left, columns), _operand(right, columns)]
    are_numbers = all(_is_number(side.type) for side in sides)
    if are_numbers and any(pa.types.is_floating(side.type) for side in sides):  # beyond 2**53 to the nearest
        sides = [pc.cast(side, pa.float64(), safe=False) for side in sides]
    return _COMPARISONS[type(operator)](*sides)


def _contained(left: ast.expr, right: ast.expr, columns: Mapping[str, pa.Array]) -> pa.Array:
    if isinstance(right, ast.Name):
        return pc.match_substring(_operand(right, columns), pattern=str(constant(left)))
    column = _operand(left, columns)
    items = right.elts if isinstance(right, ast.List | ast.Tuple | ast.Set) else []
    values = [constant(item) for item in items]
    wanted = pa.array(values)
    if _is_number(column.type) and _is_number(wanted.type):
        is_whole = pa.types.is_integer(column.type) and pa.types.is_integer(wanted.type)
        column, wanted = (side.cast(pa.int64() if is_whole else pa.float64(), safe=False) for side in (column, wanted))
    elif pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type != wanted.type:
        raise pa.ArrowTypeError(f"{wanted.type} in the list, {column.type} in the column")
    found = pc.is_in(column, value_set=wanted)
    return pc.if_else(pc.is_valid(column), found, pa.scalar(None, pa.bool_()))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _operand(node: ast.expr, columns: Mapping[str, pa.Array]) -> pa.Array | pa.Scalar:
    return columns[node.id] if isinstance(node, ast.Name) else pa.scalar(constant(node))
