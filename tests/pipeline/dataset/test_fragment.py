"""A fragment proves itself: no byte of it can be another without whoever reads it being told."""

from __future__ import annotations

import io

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.columns import token_schema
from pipeline.contract.schema import LEDGER_SCHEMA
from pipeline.contract.specs import Contract, Numerics
from pipeline.dataset.fragment import (
    fragment_columns,
    fragment_contract,
    fragment_ledger,
    fragment_rows,
    fragment_to_bytes,
)
from pipeline.dataset.token_store import TokenStore, damaged_units
from pipeline.errors import DamagedFragmentError, IncompleteError
from pipeline.plan.units import Unit
from pipeline.sources.clip import Part
from pipeline.stages.write import fixed_binary
from pipeline.storage import Folder

NUM_ROWS = 6


@pytest.fixture(scope="module")
def contract(make_codec, make_corpus):
    return Contract(codec=make_codec(), corpus=make_corpus(), numerics=Numerics(device="cpu", torch="2", pyarrow="3"))


@pytest.fixture(scope="module")
def tokens(contract):
    bits = fixed_binary(np.random.default_rng(3).integers(0, 256, (NUM_ROWS, 8), np.uint8))
    columns = [
        pa.array([f"clip{n}" for n in range(NUM_ROWS)]),
        pa.array(range(NUM_ROWS), pa.int32()),
        pa.array([50] * NUM_ROWS, pa.int32()),
        pa.array([5] * NUM_ROWS, pa.int16()),
        pa.array([5] * NUM_ROWS, pa.int16()),
        pa.array(["a.npz"] * NUM_ROWS).dictionary_encode(),
        bits,
        bits,
    ]
    return pa.table(columns, schema=token_schema(contract.codec))


@pytest.fixture(scope="module")
def ledger():
    row = {
        "clip_id": "clip0",
        "source": "a.npz",
        "where": "",
        "num_frames": 50,
        "num_windows": NUM_ROWS,
        "motion_digest": "d",
        "drop_reason": "",
        "drop_detail": "",
    }
    return pa.Table.from_pylist([row], schema=LEDGER_SCHEMA)


@pytest.fixture(scope="module")
def data(contract, tokens, ledger):
    return fragment_to_bytes(tokens, ledger, contract)


def flipped(data):
    """Yield the fragment with each of its bytes changed, in one bit and in all."""
    for place in range(len(data)):
        for mask in (1 << place % 8, 0xFF):
            other = bytearray(data)
            other[place] ^= mask
            yield place, bytes(other)


def told(read, data):
    """What a reader returns, or that it says the fragment is damaged."""
    try:
        return read(data)
    except (ValueError, pa.ArrowException):
        return None


def test_a_fragment_holds_what_was_written_and_any_reader_reads_it(data, contract, tokens, ledger, tmp_path):
    assert fragment_rows(data).equals(tokens)
    assert fragment_ledger(io.BytesIO(data)).equals(ledger)
    assert fragment_contract(io.BytesIO(data)) == contract
    assert fragment_columns(io.BytesIO(data), ["clip_id", "prev_bits"]).equals(tokens.select(["clip_id", "prev_bits"]))
    path = tmp_path / "fragment.parquet"
    path.write_bytes(data)
    assert pq.read_table(path).num_rows == NUM_ROWS
    assert duckdb.sql(f"select count(*), max(start_frame) from '{path}'").fetchall() == [(NUM_ROWS, NUM_ROWS - 1)]


def test_equal_rows_are_equal_bytes(data, contract, tokens, ledger):
    assert fragment_to_bytes(tokens, ledger, contract) == data


def test_every_changed_byte_is_found_when_rows_are_read(data):
    passed = [place for place, other in flipped(data) if told(fragment_rows, other) is not None]
    assert passed == []


def test_no_changed_byte_changes_a_ledger_or_a_contract_that_is_read(data, contract, ledger):
    for place, other in flipped(data):
        assert told(lambda found: fragment_ledger(io.BytesIO(found)), other) in (None, ledger), place
        assert told(lambda found: fragment_contract(io.BytesIO(found)), other) in (None, contract), place


def test_no_changed_byte_changes_columns_that_are_read(data, tokens):
    names = ["clip_id", "start_frame", "source"]
    wanted = tokens.select(names)
    for place, other in flipped(data):
        found = told(lambda found: fragment_columns(io.BytesIO(found), names), other)
        assert found is None or found.equals(wanted), place


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 40, 100, -1])
def test_a_fragment_cut_short_is_damaged(data, num_bytes):
    cut = data[:num_bytes]
    for read in (fragment_rows, lambda found: fragment_ledger(io.BytesIO(found))):
        with pytest.raises((ValueError, pa.ArrowException)):
            read(cut)


def test_a_store_names_the_damaged_fragment_and_lists_its_unit(data, tokens, tmp_path):
    store = TokenStore.of(Folder(str(tmp_path)), "spec")
    units = [Unit(key, "s1", 100, (Part("", f"{key}.npz", "npz"),)) for key in ("aa11", "bb22", "cc33")]
    store.publish_fragment(units[0], data)
    place = data.index(tokens["prev_bits"][0].as_py())
    store.publish_fragment(units[1], data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    assert damaged_units(store, units) == [units[1]]
    for read in (store.read_fragment, lambda *unit: store.read_columns(*unit, ["clip_id", "prev_bits", "this_bits"])):
        with pytest.raises(DamagedFragmentError, match=r"bb22-s1\.parquet is damaged .* run the same tokenize command"):
            read("bb22", "s1")
        with pytest.raises(IncompleteError, match=r"cc33-s1\.parquet is missing"):
            read("cc33", "s1")
