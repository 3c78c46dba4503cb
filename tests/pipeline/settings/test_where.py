from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.export.selection import passing
from pipeline.settings.where import MAX_LENGTH, Where, parse_where

KINDS = {
    "clip_id": "string",
    "source": "string",
    "num_frames": "int64",
    "speaker": "string",
    "is_song": "bool",
    "score": "float64",
    "tags": "list<int64>",
}
TYPES = {"clip_id": pa.string(), "num_frames": pa.int32(), "speaker": pa.string(), "is_song": pa.bool_()}
TYPES["score"] = pa.float64()


def kept(text, **columns):
    where = parse_where(text)
    where.check_names(list(KINDS))
    arrays = {name: pa.array(values, TYPES.get(name, pa.int64())) for name, values in columns.items()}
    num_rows = len(next(iter(columns.values())))
    return passing([*where.clip_terms, *where.window_terms], arrays, num_rows).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speaker == 'anna'", [True, False, False]),
        ("speaker != 'anna'", [False, True, False]),
        ("not speaker == 'anna'", [False, True, False]),
        ("speaker is None", [False, False, True]),
        ("speaker is not None", [True, True, False]),
        ("speaker in ['anna', 'carl']", [True, False, False]),
        ("speaker not in ('anna', 'carl')", [False, True, False]),
        ("'nn' in speaker", [True, False, False]),
        ("speaker.startswith('b')", [False, True, False]),
        ("speaker.endswith('a')", [True, False, False]),
        ("100 < num_frames <= 300", [False, True, True]),
        ("num_frames in [100, 300]", [True, False, True]),
        ("num_frames in [100.5, 300.0]", [False, False, True]),
        ("num_frames > 99.5 and score >= -1", [True, True, True]),
        ("score == -0.5 or is_song", [True, True, False]),
        ("not is_song", [True, False, False]),
        ("is_song == True", [False, True, False]),
        ("num_frames == score", [False, False, True]),
    ],
)
def test_parse_where_says_what_passes(text, expected):
    columns = {"speaker": ["anna", "bob", None], "num_frames": [100, 200, 300], "score": [-0.5, 2.0, 300.0]}
    assert kept(text, **columns, is_song=[False, True, None]) == expected


def test_parse_where_asks_columns_of_any_name():
    columns = {"meta.speaker": ["anna", "bob", None], "spk-id": [1, 2, 3], "class": ["x", "y", "z"]}
    for text, expected in (
        ("meta.speaker == 'anna'", [True, False, False]),
        ("meta.speaker.startswith('b')", [False, True, False]),
        ("'nn' in meta.speaker and meta.speaker is not None", [True, False, False]),
        ("column('spk-id') in [2, 3] and column('class').endswith('z')", [False, False, True]),
        ("column('meta.speaker') is None", [False, False, True]),
    ):
        where = parse_where(text)
        assert parse_where(where.text) == where
        where.check_names(list({**KINDS, "meta.speaker": "string", "spk-id": "int64", "class": "string"}))
        arrays = {name: pa.array(values) for name, values in columns.items()}
        assert passing(where.clip_terms, arrays, 3).tolist() == expected, text
    assert parse_where("column('speaker') == column('a.b')").text == "speaker == a.b"
    assert parse_where("column('start_frame') > 3").clip_terms == []


def test_parse_where_reads_several_lines():
    assert parse_where("speaker == 'anna'\n  and num_frames > 3\r\n").text == "speaker == 'anna' and num_frames > 3"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("take > 1.5", [False, True, True]),
        ("take == 9007199254740993", [False, True, False]),
        ("take >= 1.7e18", [False, False, True]),
        ("take < score", [False, False, False]),
    ],
)
def test_large_whole_numbers_compare_with_floating_ones(text, expected):
    where = parse_where(text)
    where.check_names(list({**KINDS, "take": "int64"}))
    columns = {"take": pa.array([1, 2**53 + 1, 17 * 10**17]), "score": pa.array([0.5, 1.0, None])}
    assert passing(where.clip_terms, columns, 3).tolist() == expected


def test_parse_where_knows_one_spelling():
    wanted = parse_where("speaker == 'anna' and num_frames > 500").text
    assert wanted == "speaker == 'anna' and num_frames > 500"
    assert parse_where('  (speaker=="anna")   and (num_frames>500) ').text == wanted
    assert parse_where("((a == 1 and b == 2) and (c == 3 or (d == 4 and e == 5)))").text == (
        "a == 1 and b == 2 and (c == 3 or d == 4 and e == 5)"
    )
    assert parse_where("not(a==-1 or b in (1,2.5))").text == "not (a == -1 or b in [1, 2.5])"
    assert parse_where('a.startswith("x") or 1<b<=3 or c is not None').text == (
        "a.startswith('x') or 1 < b <= 3 or c is not None"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speaker = 'anna'", "as in Python"),
        ("speaker == 'anna' AND num_frames > 3", "as in Python"),
        ("num_frames >", "as in Python"),
        ("num_frames > 3; import os", "as in Python"),
        ("__import__('os').system('true')", "calls there are"),
        ("speaker.upper() == 'A'", "text, number"),
        ("speaker.startswith(source)", "calls there are"),
        ("speaker.startswith('a', 2)", "calls there are"),
        ("().__class__", "no comparison"),
        ("num_frames + 1 > 3", "text, number"),
        ("1 < 2", "names no column"),
        ("True", "no comparison"),
        ("speaker == None", "is None"),
        ("speaker is 'anna'", "is None"),
        ("speaker in []", r"in \[VALUE"),
        ("speaker in 'anna'", r"in \[VALUE"),
        ("num_frames in [1, [2]]", "text, number"),
        ("lambda: 0", "no comparison"),
        ("num_frames == 99999999999999999999", "too large"),
        ("num_frames < 1e999", "too large"),
        ("num_frames > -1e999", "too large"),
        (r"speaker == '\ud800'", "not UTF-8"),
        ("column(3) == 3", "text, number"),
        ("column() == 3", "text, number"),
        ("a\0b", "as in Python"),
        ("speaker == 'anna' or start_frame > 3", "mixes columns"),
        ("clip_id == 'a' or this_valid_frames > 3", "mixes columns"),
        ("not " * 60 + "is_song", "nested"),
        ("x" * (MAX_LENGTH + 1), "list of clips"),
        ("(" * 500 + "a == 1" + ")" * 500, "as in Python"),
    ],
)
def test_parse_where_refuses_what_is_no_filter(text, expected):
    with pytest.raises(ValueError, match=expected):
        parse_where(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speeker == 'anna'", "did you mean 'speaker'"),
        ("nothing_like_it == 3", "there are clip_id"),
        ("speaker.__class__ == 'a'", "unknown column 'speaker.__class__'"),
    ],
)
def test_check_names_says_which_column_there_is_not(text, expected):
    with pytest.raises(ValueError, match=expected):
        parse_where(text).check_names(list(KINDS))


def test_where_parts_terms_of_clips_and_of_windows():
    where = parse_where(
        "speaker == 'a' and (start_frame > 3 and num_frames < 9) and (source == 's' or start_frame < 2)"
    )
    assert (len(where.clip_terms), len(where.window_terms)) == (2, 2)
    assert where.clip_columns == ["num_frames", "speaker"]


def test_an_empty_filter_lets_everything_pass():
    where = Where("")
    where.check_names(list(KINDS))
    assert (where.clip_terms, where.window_terms, where.clip_columns) == ([], [], [])


numbers = st.integers(-3, 3)
texts = st.sampled_from(["a", "b", "ab", ""])
leaves = st.one_of(
    st.builds("num_frames {} {}".format, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), numbers),
    st.builds("score {} {}".format, st.sampled_from(["==", "<", ">="]), st.sampled_from([-0.5, 0.0, 1.5])),
    st.builds("speaker {} '{}'".format, st.sampled_from(["==", "!=", "<", ">="]), texts),
    st.builds("speaker {} ('{}', '{}')".format, st.sampled_from(["in", "not in"]), texts, texts),
    st.builds("num_frames {} ({}, {})".format, st.sampled_from(["in", "not in"]), numbers, numbers),
    st.sampled_from(["is_song", "num_frames == score", "num_frames < score"]),
)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=6,
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "num_frames": st.none() | numbers,
            "score": st.none() | st.sampled_from([-0.5, 0.0, 1.0, 1.5]),
            "speaker": st.none() | texts,
            "is_song": st.none() | st.booleans(),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=filters, rows=rows)
def test_a_filter_keeps_what_sql_keeps(text, rows):
    """DuckDB reads the same text as SQL; three-valued logic included."""
    schema = pa.schema([pa.field(name, TYPES[name]) for name in rows[0]])
    table = pa.Table.from_pylist(rows, schema=schema)
    where = parse_where(text)
    where.check_names(list(KINDS))
    assert parse_where(where.text) == where
    found = passing(where.clip_terms, {name: table[name] for name in table.column_names}, len(rows))
    numbered = table.append_column("row", pa.array(np.arange(len(rows))))
    connection = duckdb.connect()
    connection.register("numbered", numbered)
    wanted = connection.sql(f"SELECT row FROM numbered WHERE {text} ORDER BY row").fetchall()
    assert np.flatnonzero(found).tolist() == [row for (row,) in wanted]
