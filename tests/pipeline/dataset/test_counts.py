from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.contract.columns import token_schema
from pipeline.contract.specs import CarriedColumn, FlipRule
from pipeline.dataset.counts import ColumnCounts, array_of, common_columns, rows_that_differ


def test_common_columns_are_those_of_one_name_and_type(make_codec, make_corpus):
    flips = FlipRule(pairs=2, ratio=0.3, seed=0)
    ours = make_corpus(emit=("latent", "flips"), flips=flips, carry=(CarriedColumn(name="age", kind="int64"),))
    more = flips.model_copy(update={"pairs": 3})
    theirs = make_corpus(emit=("latent", "flips"), flips=more, carry=(CarriedColumn(name="age", kind="string"),))
    codec = make_codec()
    assert common_columns(token_schema(codec, ours), token_schema(codec, theirs)) == ["this_latent"]
    assert common_columns(token_schema(codec, ours), token_schema(codec, make_corpus())) == []
    every = common_columns(token_schema(codec, ours), token_schema(codec, ours))
    assert every == ["this_latent", "flip_targets", "flip_bits", "age"]


def test_rows_that_differ_compares_values_and_nulls():
    ours = pa.chunked_array([["a", None], ["b", None]])
    theirs = pa.chunked_array([["a", None, "c", "d"]])
    assert rows_that_differ(ours, theirs).tolist() == [False, False, True, True]
    lists = pa.chunked_array([[[1.0, None], []]])
    assert rows_that_differ(lists, pa.chunked_array([[[1.0, None], None]])).tolist() == [False, True]
    bits = pa.chunked_array([pa.array([b"ab", b"cd"], pa.binary(2)), pa.array([b"ef"], pa.binary(2))])
    others = pa.chunked_array([pa.array([b"ab", b"cx", b"ef"], pa.binary(2))])
    assert rows_that_differ(bits, others).tolist() == [False, True, False]


def test_array_of_reads_slices_and_nothing():
    latents = np.arange(12, dtype="<f2").reshape(4, 3)
    column = pa.chunked_array([pa.array([row.tobytes() for row in latents], pa.binary(6))])
    np.testing.assert_array_equal(array_of(column.slice(1, 2), "<f2"), latents[1:3])
    assert array_of(column.slice(4), "<f2").shape == (0, 3)
    assert array_of(pa.chunked_array([], pa.binary(6)), "<f2").shape == (0, 3)


def test_column_counts_adds_up():
    counts = ColumnCounts(("text",))
    for theirs in (["a", "b"], ["a", "x"]):
        counts.add(pa.table({"text": ["a", "b"]}), pa.table({"text": theirs}))
    assert (counts.num_windows, counts.differing, counts.is_equal) == (4, {"text": 1}, False)
