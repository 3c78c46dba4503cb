from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.blocks import RUN_LEDGER_SCHEMA, MotionBlock, TokenBlock, UnitAccount
from pipeline.config import Contract, Numerics
from pipeline.errors import OutputMismatchError
from pipeline.plan import Plan, Unit
from pipeline.schema import LEDGER_SCHEMA, token_schema
from pipeline.sources.clip import Part
from pipeline.storage import Folder
from pipeline.token_store import TokenStore, fragment_to_bytes
from pipeline.write_fragments import FragmentWriter


@pytest.fixture
def contract(make_codec, make_corpus):
    numerics = Numerics(device="cpu", torch="2", pyarrow="3")
    return Contract(codec=make_codec(), corpus=make_corpus(), numerics=numerics)


def unit_named(key, stamp="s1", path="a.npz"):
    return Unit(key, stamp, 100, (Part("", path, "npz"),))


def ledger_row(clip_id, num_windows, unit=0, reason=""):
    return {
        "clip_id": clip_id,
        "source": "a.npz",
        "where": "",
        "num_frames": 5 * num_windows,
        "num_windows": num_windows,
        "motion_digest": "d",
        "drop_reason": reason,
        "drop_detail": "",
        "unit": unit,
    }


@pytest.fixture
def block():
    rows = [ledger_row("é/1", 2), ledger_row("bad", 0, reason="non_finite"), ledger_row("b", 1), ledger_row("c", 3, 1)]
    bits = np.arange(6 * 2 * 8, dtype=np.uint8).reshape(6, 2, 8)
    return TokenBlock(
        units=(unit_named("aa11"), unit_named("bb22"), unit_named("cc33")),
        bits=bits,
        ledger=pa.Table.from_pylist(rows, schema=RUN_LEDGER_SCHEMA),
        start_frame=np.array([0, 5, 0, 0, 5, 10]),
    )


def test_write_commits_one_fragment_a_unit(tmp_path, contract, block):
    store = TokenStore.of(Folder(str(tmp_path)), "spec")
    account = FragmentWriter(store, contract).write(block)
    assert store.list_fragments() == {("aa11", "s1"), ("bb22", "s1"), ("cc33", "s1")}
    assert (account.num_clips, account.num_windows, account.drops) == (3, 6, {"non_finite": 1})
    rows = store.read_fragment("aa11", "s1")
    assert rows.schema.equals(token_schema(8))
    assert rows["clip_id"].to_pylist() == ["é/1", "é/1", "b"]
    assert rows["start_frame"].to_pylist() == [0, 5, 0]
    assert rows["prev_valid_frames"].to_pylist() == [0, 5, 0]
    assert rows["this_bits"].to_pylist() == [bytes(block.bits[row, 1]) for row in range(3)]
    ledger = store.read_ledger("aa11", "s1")
    assert ledger.schema.equals(LEDGER_SCHEMA)
    assert ledger["drop_reason"].to_pylist() == ["", "non_finite", ""]
    assert store.read_fragment("cc33", "s1").num_rows == 0
    assert store.read_ledger("cc33", "s1").num_rows == 0


def test_write_leaves_a_standing_fragment_as_it_is(tmp_path, contract, block):
    store = TokenStore.of(Folder(str(tmp_path)), "spec")
    store.folder.publish(store.fragment_path("aa11", "s1"), b"first")
    FragmentWriter(store, contract).write(block)
    assert store.folder.read(store.fragment_path("aa11", "s1")) == b"first"


def test_fragment_to_bytes_is_a_function_of_its_arguments(contract, block):
    tokens = pa.Table.from_pylist([], schema=token_schema(8))
    ledger = block.ledger.drop_columns(["unit"])
    data = fragment_to_bytes(tokens, ledger, contract)
    assert data == fragment_to_bytes(tokens, ledger.slice(0), contract)
    footer = pq.read_metadata(io.BytesIO(data)).metadata
    assert json.loads(footer[b"motion_tokens.contract"])["codec"]["patch_nums"] == [1, 2, 5]


def test_blocks_cross_as_one_arrow_row(block):
    restored = TokenBlock.from_table(block.to_table())
    assert restored.units == block.units
    assert (restored.bits == block.bits).all()
    assert restored.ledger.equals(block.ledger)
    motion = MotionBlock(block.units, np.arange(12, dtype=np.float32).reshape(3, 4), block.ledger, block.start_frame)
    table = motion.to_table()
    assert table.num_rows == 1
    again = MotionBlock.from_table(table)
    assert (again.motion == motion.motion).all()
    assert again.motion.dtype == np.float32
    empty = MotionBlock((), np.zeros((0, 4), np.float32), RUN_LEDGER_SCHEMA.empty_table(), np.zeros(0, np.int64))
    assert MotionBlock.from_table(empty.to_table()).motion.shape == (0, 4)
    account = UnitAccount(1, 2, 3, 4, 5, {"a": 1}, {"read": 0.5})
    assert UnitAccount.from_text(account.to_table()["account"][0].as_py()) == account


def test_plan_of_version_knows_published_versions_only(tmp_path, contract):
    store = TokenStore.of(Folder(str(tmp_path)), "spec")
    plan = Plan((unit_named("aa11"),))
    store.publish_plan(plan)
    store.publish_version("v1", plan)
    assert store.plan_of_version("v1") == plan
    with pytest.raises(OutputMismatchError, match="v2"):
        store.plan_of_version("v2")


def test_read_contract_returns_what_was_published(tmp_path, contract):
    store = TokenStore.of(Folder(str(tmp_path)), "spec")
    assert store.read_contract() is None
    store.publish_contract(contract)
    assert store.read_contract() == contract
    other = contract.model_copy(update={"codec": contract.codec.model_copy(update={"patch_nums": (1, 3, 4)})})
    assert contract.differences(other) == ["codec.patch_nums: [1,2,5] here, [1,3,4] there"]
    assert contract.differences(contract) == []


def test_list_fragments_skips_what_is_no_fragment(tmp_path):
    store = TokenStore.of(Folder(str(tmp_path)), "spec")
    assert store.list_fragments() == set()
    store.folder.publish("fragments/aa/aa11-s1.parquet", b"x")
    store.folder.publish("fragments/aa/.aa12-s1.parquet.123.tmp", b"x")
    store.folder.publish("fragments/bb/notes.txt", b"x")
    assert store.list_fragments() == {("aa11", "s1")}
