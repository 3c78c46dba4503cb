"""Reading a plain tar column by column gives what reading it sample by sample gives, or nothing at all."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pipeline.contract.columns import array_columns, token_schema
from pipeline.contract.schema import CarriedKind
from pipeline.contract.specs import CarriedColumn
from pipeline.dataset.plain_tar import plain_table
from pipeline.dataset.tar_members import END, members_of
from pipeline.dataset.tar_shard import rows_of_tar, shard_to_tar

KINDS: dict[str, CarriedKind] = {
    "word": "string",
    "flag": "bool",
    "count": "int64",
    "level": "float64",
    "counts": "list<int64>",
    "levels": "list<float64>",
}
INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = {
    "word": st.none() | TEXTS,
    "flag": st.none() | st.booleans(),
    "count": st.none() | INTS,
    "level": st.none() | FLOATS,
    "counts": st.none() | st.lists(st.none() | INTS, max_size=3),
    "levels": st.none() | st.lists(st.none() | FLOATS, max_size=3),
}
ROW = st.fixed_dictionaries(
    {
        "clip_id": TEXTS,
        "source": TEXTS,
        "start_frame": st.integers(0, 2**31 - 1),
        "num_frames": st.integers(0, 2**31 - 1),
        "prev_valid_frames": st.integers(0, 5),
        "this_valid_frames": st.integers(0, 5),
        "prev_bits": st.binary(min_size=8, max_size=8),
        "this_bits": st.binary(min_size=8, max_size=8),
        **VALUES,
    }
)


@pytest.fixture(scope="module")
def corpus(make_corpus):
    return make_corpus(carry=tuple(CarriedColumn(name=name, kind=kind) for name, kind in KINDS.items()))


def head_of(array):
    """What numpy writes before the bytes of a window's array."""
    sink = io.BytesIO()
    np.save(sink, np.zeros(array.shape, array.dtype))
    return sink.getvalue()[: -array.num_bytes]


def read_plainly(data, codec, corpus):
    return plain_table(data, codec, corpus, head_of)


def read_by_sample(data, codec, corpus):
    rows = list(rows_of_tar(bytes(data), codec, corpus, "s"))
    return pa.Table.from_pylist(rows, schema=token_schema(codec, corpus))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, min_size=1, max_size=5))
def test_plain_table_is_what_reading_by_sample_gives(make_codec, corpus, rows):
    codec = make_codec()
    table = pa.Table.from_pylist(rows, schema=token_schema(codec, corpus))
    data = bytes(shard_to_tar(table, codec, corpus))
    found = read_plainly(data, codec, corpus)
    assert found is not None
    found.validate(full=True)
    assert found.equals(read_by_sample(data, codec, corpus))
    assert found.equals(table)


def tar_with(codec, text):
    """Return a tar of two windows, the second with another text as its JSON."""
    fields = {"clip_id": "a", "start_frame": 0, "num_frames": 9, "prev_valid_frames": 0, "this_valid_frames": 5}
    fields["source"] = "a.npz"
    members = []
    for key, content in (("k", json.dumps(fields)), ("l", text.replace("SAME", json.dumps(fields)[1:-1]))):
        for array in array_columns(codec):
            members += members_of([f"{key}.{array.member}"], [head_of(array) + bytes(array.num_bytes)])
        members += members_of([f"{key}.json"], [content.encode()])
    return b"".join(members) + END


def test_plain_table_reads_spaces_too(make_codec):
    codec = make_codec()
    data = tar_with(codec, "{ SAME }")
    found = read_plainly(data, codec, None)
    assert found is not None
    assert found.equals(read_by_sample(data, codec, None))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "[]",
        "{SAME}{SAME}",
        "{SAME,\n}",
        "{}",
        '{SAME,"more":1}',
        '{"start_frame":0.5}',
        '{SAME,"source":null}',
    ],
)
def test_plain_table_leaves_other_json_alone(make_codec, text):
    assert read_plainly(tar_with(make_codec(), text), make_codec(), None) is None


def test_plain_table_leaves_other_samples_alone(make_codec):
    codec = make_codec()
    data = tar_with(codec, "{SAME}")
    assert read_plainly(data, codec, None) is not None
    assert read_plainly(data, make_codec(code_dim=16), None) is None
    assert read_plainly(data[:1024] + data[2048:], codec, None) is None
    assert read_plainly(END, codec, None) is None
