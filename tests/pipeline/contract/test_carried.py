from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from pipeline.contract.carried import MAX_VALUE_BYTES, as_kind, fields_to_carry, kind_of_type, kind_of_value
from pipeline.contract.schema import CARRIED_TYPES
from pipeline.errors import ConfigError

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.floats()
VALUES = st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec="utf-8")) | st.lists(NUMBERS, max_size=4)


@given(VALUES, st.sampled_from(sorted(CARRIED_TYPES)))
def test_as_kind_gives_what_both_formats_keep(value, kind):
    try:
        held = as_kind(value, kind)
    except ValueError:
        return
    assert pa.array([held], CARRIED_TYPES[kind]).to_pylist() == [held]
    assert json.loads(json.dumps(held, allow_nan=False)) == held
    assert as_kind(held, kind) == held


def test_as_kind_holds_the_largest_value():
    assert as_kind([0.5] * (MAX_VALUE_BYTES // 8), "list<float64>") == [0.5] * (MAX_VALUE_BYTES // 8)


@given(VALUES)
def test_as_kind_takes_every_value_of_its_own_kind(value):
    kind = kind_of_value(value)
    if kind is None:
        assert value is None
        return
    held = as_kind(value, kind)
    items = zip(held, value, strict=True) if isinstance(value, list) else [(held, value)]
    for item, stored in items:
        is_number = not isinstance(stored, float) or math.isfinite(stored)
        as_stored = float(stored) if kind == "list<float64>" and is_number else stored
        assert item == (as_stored if is_number else None)


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        (7, "string", "7"),
        (7, "float64", 7.0),
        (math.inf, "float64", None),
        (np.float32(0.5), "float64", 0.5),
        (np.array([1, 2]), "list<float64>", [1.0, 2.0]),
        (pa.scalar("a"), "string", "a"),
        ((1, None), "list<int64>", [1, None]),
    ],
)
def test_as_kind_converts(value, kind, wanted):
    assert as_kind(value, kind) == wanted


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "int64"),
        (True, "string"),
        (1.5, "int64"),
        (1 << 63, "int64"),
        (10**400, "float64"),
        ("a", "float64"),
        ("\ud800", "string"),
        ([1.5], "list<int64>"),
        (1, "list<int64>"),
        (b"a", "string"),
        ("x" * (MAX_VALUE_BYTES + 1), "string"),
        ([0.5] * (MAX_VALUE_BYTES // 8 + 1), "list<float64>"),
    ],
)
def test_as_kind_refuses(value, kind):
    with pytest.raises(ValueError, match=r"wanted|UTF-8|large"):
        as_kind(value, kind)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (pa.large_string(), "string"),
        (pa.dictionary(pa.int32(), pa.string()), "string"),
        (pa.int16(), "int64"),
        (pa.float32(), "float64"),
        (pa.list_(pa.float32(), 3), "list<float64>"),
        (pa.large_list(pa.int8()), "list<int64>"),
        (pa.list_(pa.string()), None),
        (pa.binary(), None),
        (pa.null(), None),
    ],
)
def test_kind_of_type_names_what_can_be_carried(kind, wanted):
    assert kind_of_type(kind) == wanted


def test_kind_of_value_knows_lists():
    assert kind_of_value([1, 2]) == "list<int64>"
    assert kind_of_value([1, 2.5]) == "list<float64>"
    assert kind_of_value([]) == "list<float64>"
    assert kind_of_value(["a"]) is None
    assert kind_of_value({"a": 1}) is None


def test_fields_to_carry_takes_names_with_and_without_a_kind():
    assert fields_to_carry(["score:float64", "speaker", "mood : list<int64>"]) == {
        "score": "float64",
        "speaker": None,
        "mood": "list<int64>",
    }
    assert fields_to_carry([]) == {}


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["score:float"], "'score:float' asks for the kind 'float'; there are string, bool, int64, float64, list"),
        (["score:"], "asks for the kind ''"),
        ([":int64"], "twice or empty: ''"),
        (["score", "score:int64"], "twice or empty: 'score'"),
    ],
)
def test_fields_to_carry_refuses_unknown_kinds_and_names_that_stand_twice(items, words):
    with pytest.raises(ConfigError, match=r"input\.carry") as refused:
        fields_to_carry(items)
    assert words in str(refused.value)
