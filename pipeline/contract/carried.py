"""Carried columns: which kinds of values there are, and what becomes of a clip's own value.

Pure. Knows no Ray, torch, format or storage. A value is the same in Parquet and in the JSON of a tar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from pipeline.contract.schema import CarriedKind
from pipeline.errors import ConfigError

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1

MAX_VALUE_BYTES = 1 << 20
"""Of one value: it stands in every window of its clip, and a shard of windows is built in memory."""

_ITEM_BYTES = 8


def fields_to_carry(items: Sequence[str]) -> dict[str, CarriedKind | None]:
    """Return the kind of each field that `input.carry` names: None where its values are to say it.

    Args:
        items: ``NAME`` or ``NAME:KIND`` each.

    Raises:
        ConfigError: a kind is unknown, a name is missing or stands twice.
    """
    known: tuple[CarriedKind, ...] = get_args(CarriedKind)
    fields: dict[str, CarriedKind | None] = {}
    for item in items:
        name, colon, wanted = item.rpartition(":") if ":" in item else (item, "", "")
        kind = next((kind for kind in known if kind == wanted.strip()), None)
        name = name.strip()
        if colon and kind is None:
            raise ConfigError(f"input.carry: {item!r} asks for the kind {wanted!r}; there are {', '.join(known)}")
        if not name or name in fields:
            raise ConfigError(f"input.carry: name each field once; twice or empty: {name!r}")
        fields[name] = kind
    return fields


def kind_of_type(kind: pa.DataType) -> CarriedKind | None:
    """Return the kind of an Arrow column's values; None where no column can carry them, or they are all null."""
    if pa.types.is_dictionary(kind):
        return kind_of_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int64"
    if pa.types.is_floating(kind):
        return "float64"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _list_of(kind_of_type(kind.value_type))
    return None


def kind_of_value(value: object) -> CarriedKind | None:
    """Return the kind of one stored value, such as a JSON field's or an array's; None where no column can carry it."""
    plain = _plain(value)
    if isinstance(plain, str):
        return "string"
    if isinstance(plain, bool):
        return "bool"
    if isinstance(plain, int):
        return "int64"
    if isinstance(plain, float):
        return "float64"
    if isinstance(plain, list):
        kinds = {kind_of_value(item) for item in plain if item is not None}
        if kinds <= {"int64", "float64"}:
            return "list<int64>" if kinds == {"int64"} else "list<float64>"
    return None


def as_kind(value: object, kind: CarriedKind) -> Any:
    """Return a stored value as its column holds it: a plain Python value, None where there is none.

    Whole numbers become text or floating numbers where the column holds these. Numbers that are not finite become
    None, since JSON has no such numbers.

    Raises:
        ValueError: it does not fit the column.
    """
    plain = _plain(value)
    if plain is None:
        return None
    if kind == "list<int64>" or kind == "list<float64>":
        if not isinstance(plain, list):
            raise _misfit(plain, kind)
        _check_size(_ITEM_BYTES * len(plain))
        item_kind: CarriedKind = "int64" if kind == "list<int64>" else "float64"
        return [as_kind(item, item_kind) for item in plain]
    is_int = isinstance(plain, int) and not isinstance(plain, bool)
    if kind == "string" and (isinstance(plain, str) or is_int):
        return _checked_text(str(plain))
    if kind == "bool" and isinstance(plain, bool):
        return plain
    if kind == "int64" and is_int and INT64_MIN <= plain <= INT64_MAX:
        return plain
    if kind == "float64" and (is_int or isinstance(plain, float)):
        return _checked_float(plain)
    raise _misfit(plain, kind)


def _checked_text(text: str) -> str:
    try:
        _check_size(len(text.encode()))
    except UnicodeEncodeError as error:
        raise ValueError("the text is not UTF-8") from error
    return text


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_VALUE_BYTES:
        raise ValueError(
            f"{num_bytes:,} bytes, wanted {MAX_VALUE_BYTES:,} at most, since each window has them; leave it out, or"
            " name it as input.audio if it is audio"
        )


def _checked_float(number: float) -> float | None:
    try:
        return float(number) if math.isfinite(number) else None
    except OverflowError as error:
        raise ValueError("the number is too large") from error


def _misfit(value: object, kind: str) -> ValueError:
    return ValueError(f"wanted {kind}, found {type(value).__name__} {str(value)[:40]!r}")


def _list_of(kind: CarriedKind | None) -> CarriedKind | None:
    return "list<int64>" if kind == "int64" else "list<float64>" if kind == "float64" else None


def _plain(value: object) -> Any:
    """Return a value of Arrow or numpy as plain Python; sequences as lists."""
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return value
