"""The words of a filter such as ``speaker == 'anna' and num_frames > 500``: read, checked, and put in one spelling.

Knows no Ray, torch, Arrow or storage, and runs nothing: the text becomes a tree of known nodes. What passes is
worked out in export/selection.py.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

MAX_LENGTH = 4096
MAX_DEPTH = 50

WINDOW_COLUMNS = ("start_frame", "prev_valid_frames", "this_valid_frames")
"""Columns that differ between the windows of a clip."""
BESIDE_WINDOWS = ("num_frames", "source")
"""Columns of clips that may stand in one term with those of windows: the index knows them too."""

_SPELLING = "write it as in Python, for example \"speaker == 'anna' and num_frames > 500\", with ==, and, or, not, in"


@dataclass(frozen=True)
class Where:
    """A filter as it was written; built by `parse_where`, owns only the text.

    It is a conjunction of terms: each asks for columns of clips, or for columns of windows.
    """

    text: str
    """In the one spelling: spaces, brackets and quotes that mean nothing are gone; empty: everything passes."""

    @property
    def clip_terms(self) -> list[ast.expr]:
        """The terms that keep a clip as a whole, or not."""
        return [term for term in self._terms if not _names(term) & set(WINDOW_COLUMNS)]

    @property
    def window_terms(self) -> list[ast.expr]:
        """The terms that keep some windows of a clip."""
        return [term for term in self._terms if _names(term) & set(WINDOW_COLUMNS)]

    @property
    def clip_columns(self) -> list[str]:
        """The columns of clips that the terms for clips ask for, sorted."""
        return sorted({name for term in self.clip_terms for name in _names(term)})

    def check_names(self, columns: Sequence[str]) -> None:
        """Compare the filter with the columns of clips that there are.

        Raises:
            ValueError: it asks for another one.
        """
        known = [*columns, *WINDOW_COLUMNS]
        for name in sorted({name for term in self._terms for name in _names(term)}):
            if name not in known:
                raise ValueError(unknown_column(name, known))

    @cached_property
    def _terms(self) -> list[ast.expr]:
        return list(_parts(_tree_of(self.text), ast.And)) if self.text else []


def unknown_column(name: str, known: list[str]) -> str:
    """Return what to say of a column that there is not."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}, and what input.carry names"
    return f"unknown column {name!r}; {hint}"


def parse_where(text: str) -> Where:
    """Return a filter.

    Raises:
        ValueError: it is no expression of columns, values and comparisons.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a filter has {MAX_LENGTH:,} characters at most, this one {len(text):,}: use a list of clips")
    text = text.replace("\r", " ").replace("\n", " ").strip()
    try:
        tree = _tree_of(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        at = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise ValueError(f"{text!r} cannot be read{at}: {_SPELLING}") from error
    _check(tree, text, 0)
    for term in _parts(tree, ast.And):
        names = _names(term)
        others = names - set(WINDOW_COLUMNS) - set(BESIDE_WINDOWS)
        if names & set(WINDOW_COLUMNS) and others:
            raise ValueError(
                f"{ast.unparse(term)!r} mixes columns of windows with {', '.join(sorted(others))}: join them with `and`"
                f" only (beside columns of windows stand {' and '.join(BESIDE_WINDOWS)})"
            )
    return Where(_spelled(tree))


def _tree_of(text: str) -> ast.expr:
    """Return the expression that a line of text is, columns of any name as `ast.Name`."""
    tree: ast.expr = _Columns().visit(ast.parse(text, mode="eval").body)
    return tree


class _Columns(ast.NodeTransformer):
    """Makes ``a.b`` and ``column('a-b')`` names of columns. Built for one tree."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        value = self.visit(node.value)
        if isinstance(value, ast.Name):
            return ast.copy_location(ast.Name(f"{value.id}.{node.attr}"), node)
        return ast.copy_location(ast.Attribute(value, node.attr), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_column = isinstance(node.func, ast.Name) and node.func.id == "column" and not node.keywords
        if is_column and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
            name = node.args[0].value
            return ast.copy_location(ast.Name(name), node) if isinstance(name, str) else node
        if isinstance(node.func, ast.Attribute):  # the method's own name is no part of the column's
            function = ast.copy_location(ast.Attribute(self.visit(node.func.value), node.func.attr), node.func)
            return ast.copy_location(ast.Call(function, node.args, node.keywords), node)
        return node


def _spelled(node: ast.expr) -> str:
    """Return the one spelling of an expression that was checked: joined terms flat, as few brackets as may be."""
    if isinstance(node, ast.BoolOp):
        is_and = isinstance(node.op, ast.And)  # `and` binds closer than `or`
        parts = _parts(node, type(node.op))
        spelled = (
            f"({_spelled(part)})" if is_and and isinstance(part, ast.BoolOp) else _spelled(part) for part in parts
        )
        return (" and " if is_and else " or ").join(spelled)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _spelled(node.operand)
        return f"not ({inner})" if isinstance(node.operand, ast.BoolOp) else f"not {inner}"
    return ast.unparse(_Spelling().visit(node))


class _Spelling(ast.NodeTransformer):
    """Writes values in square brackets, and columns as they are asked for. Built for one comparison."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(node.value)  # without the u of u'..'

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        return ast.List([self.visit(item) for item in node.elts], ast.Load())

    def visit_Set(self, node: ast.Set) -> ast.AST:
        return ast.List([self.visit(item) for item in node.elts], ast.Load())

    def visit_Name(self, node: ast.Name) -> ast.AST:
        is_plain = all(part.isidentifier() and not keyword.iskeyword(part) for part in node.id.split("."))
        return node if is_plain else ast.Call(ast.Name("column"), [ast.Constant(node.id)], [])


def _parts(node: ast.expr, operator: type[ast.boolop]) -> Iterator[ast.expr]:
    """Yield what is joined by one operator, however it was bracketed."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, operator):
        for value in node.values:
            yield from _parts(value, operator)
    else:
        yield node


def _names(node: ast.expr) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def _check(node: ast.expr, text: str, depth: int) -> None:
    """Refuse every node that is not known to be harmless and meant."""
    if depth > MAX_DEPTH:
        raise ValueError(f"a filter is nested {MAX_DEPTH} deep at most: use a list of clips")
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value, text, depth + 1)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand, text, depth + 1)
    elif isinstance(node, ast.Compare):
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            _check_comparison(left, operator, right, text)
            left = right
    elif isinstance(node, ast.Call):
        _check_call(node)
    elif not isinstance(node, ast.Name):
        raise ValueError(f"{_shown(node, text)} is no comparison: {_SPELLING}")


def _check_comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr, text: str) -> None:
    shown = f"{_shown(left, text)} .. {_shown(right, text)}"
    if isinstance(operator, ast.Is | ast.IsNot):
        if not (isinstance(left, ast.Name) and isinstance(right, ast.Constant) and right.value is None):
            raise ValueError(f"{shown}: `is` asks a column for None: write COLUMN is None, or is not None")
    elif isinstance(operator, ast.In | ast.NotIn):
        is_list = isinstance(right, ast.List | ast.Tuple | ast.Set)
        values = [constant(item) for item in right.elts] if isinstance(right, ast.List | ast.Tuple | ast.Set) else []
        if not (isinstance(left, ast.Name) and is_list and values) and not (
            isinstance(right, ast.Name) and isinstance(left, ast.Constant) and isinstance(left.value, str)
        ):
            raise ValueError(f"{shown}: write COLUMN in [VALUE, ..], or 'text' in COLUMN")
    else:
        sides = [left, right]
        for side in sides:
            if not isinstance(side, ast.Name):
                constant(side)
        if not any(isinstance(side, ast.Name) for side in sides):
            raise ValueError(f"{shown} names no column: {_SPELLING}")


def _check_call(node: ast.Call) -> None:
    function = node.func
    is_known = (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.attr in ("startswith", "endswith")
    )
    is_text = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    if not is_known or not is_text or node.keywords:
        raise ValueError(
            f"{ast.unparse(node)!r}: the calls there are COLUMN.startswith('text') and COLUMN.endswith('text')"
        )


def constant(node: ast.AST) -> str | int | float | bool:
    """Return the value that a node stands for.

    Raises:
        ValueError: it is no text, number, True or False.
    """
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        sign, node = -1, node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool | str) and sign == 1:
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError(f"{value!r} is not UTF-8: no text holds it")
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and value >= 2**63:
            raise ValueError(f"{value} is too large: numbers lie below 2**63")
        if not math.isfinite(value):
            raise ValueError("a number is too large: numbers lie below 1.8e308")
        return sign * value
    raise ValueError(f"{ast.unparse(node)!r} is no text, number, True or False; ask for None with `is None`")


def _shown(node: ast.expr, text: str) -> str:
    return repr(ast.get_source_segment(text, node) or ast.unparse(node))
