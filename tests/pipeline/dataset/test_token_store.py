from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.columns import clip_schema, emitted_columns, token_schema
from pipeline.contract.schema import LEDGER_SCHEMA
from pipeline.contract.specs import CarriedColumn, Contract, FlipRule, Numerics
from pipeline.dataset.fragment import fragment_to_bytes
from pipeline.dataset.parquet_shard import tokens_to_parquet
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import OutputMismatchError
from pipeline.plan.plan import Plan
from pipeline.plan.units import Unit
from pipeline.run.account import UnitAccount
from pipeline.run.ownership import Ownership
from pipeline.sources.clip import Part
from pipeline.stages.blocks import RUN_LEDGER_SCHEMA, MotionBlock, TokenBlock
from pipeline.stages.write import FragmentWriter, token_rows
from pipeline.storage import Folder


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
    assert rows.schema.equals(token_schema(contract.codec))
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
    tokens = pa.Table.from_pylist([], schema=token_schema(contract.codec))
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


@pytest.fixture
def rich(make_codec, make_corpus):
    """A contract with every additional column, and a block of it."""
    corpus = make_corpus(
        emit=("latent", "flips", "decoded_prev"),
        flips=FlipRule(pairs=2, ratio=0.3, seed=0),
        carry=(CarriedColumn(name="speaker", kind="string"), CarriedColumn(name="mood", kind="list<float64>")),
    )
    contract = Contract(codec=make_codec(), corpus=corpus, numerics=Numerics(device="cpu", torch="2", pyarrow="3"))
    rows = [ledger_row("a", 2), ledger_row("bad", 0, reason="non_finite"), ledger_row("b", 1), ledger_row("c", 3, 1)]
    generator = np.random.default_rng(0)
    emitted = {
        array.name: generator.integers(0, 100, (6, *array.shape)).astype(array.dtype)
        for array in emitted_columns(contract.codec, corpus)
    }
    clips = pa.table({"speaker": ["anna", None, "ben"], "mood": [[0.5, None], [], None]}, schema=clip_schema(corpus))
    block = TokenBlock(
        units=(unit_named("aa11"), unit_named("bb22"), unit_named("cc33")),
        bits=generator.integers(0, 256, (6, 2, 8)).astype(np.uint8),
        ledger=pa.Table.from_pylist(rows, schema=RUN_LEDGER_SCHEMA),
        start_frame=np.array([0, 5, 0, 0, 5, 10]),
        clip_columns=clips,
        emitted=emitted,
    )
    return contract, block


def test_write_keeps_additional_columns_with_their_windows(tmp_path, rich):
    contract, block = rich
    store = TokenStore.of(Folder(str(tmp_path)), "spec")
    FragmentWriter(store, contract).write(TokenBlock.from_table(block.to_table()))
    first, second = store.read_fragment("aa11", "s1"), store.read_fragment("bb22", "s1")
    assert first.schema.equals(token_schema(contract.codec, contract.corpus))
    assert first["speaker"].to_pylist() == ["anna", "anna", None]
    assert first["mood"].to_pylist() == [[0.5, None], [0.5, None], []]
    assert second["speaker"].to_pylist() == ["ben"] * 3
    for name, array in block.emitted.items():
        for table, rows in ((first, slice(0, 3)), (second, slice(3, 6))):
            assert b"".join(table[name].to_pylist()) == array[rows].tobytes()
    assert first["this_latent"].to_pylist()[1] == block.emitted["this_latent"][1].astype("<f2").tobytes()
    assert store.read_fragment("cc33", "s1").schema.equals(first.schema)


def test_blocks_cross_with_additional_columns(rich):
    _, block = rich
    restored = TokenBlock.from_table(block.to_table())
    assert restored.clip_columns.equals(block.clip_columns)
    assert list(restored.emitted) == list(block.emitted)
    for name, array in block.emitted.items():
        assert restored.emitted[name].dtype == array.dtype
        assert (restored.emitted[name] == array).all()


def test_a_corpus_without_additional_columns_is_described_as_before_there_were_any(contract, rich):
    names = {
        "motion_field", "clip_id_field", "motion_dim", "format", "columns", "fps", "resample", "max_abs_z",
        "max_frozen_frames", "clips", "window", "unit_bytes", "unit_files", "precision", "batch_size",
    }  # fmt: skip
    assert set(contract.corpus.model_dump(mode="json")) == names
    assert contract.spec.spec_id == "107de38612975d33"
    described = rich[0].model_dump(mode="json")
    assert set(described["corpus"]) == names | {"emit", "flips", "carry"}
    assert Contract.model_validate(described) == rich[0]
    assert rich[0].spec.spec_id != contract.spec.spec_id


def test_tokens_to_parquet_writes_plain_rows_as_before_there_were_other_columns(contract, block):
    tokens = token_rows(block.ledger.drop_columns(["unit"]), block, slice(0, 6), block.clip_columns, contract)
    sink = io.BytesIO()
    plain = ["clip_id", "start_frame", "num_frames", "prev_valid_frames", "this_valid_frames", "source"]
    bits = ["prev_bits", "this_bits"]
    writer = pq.ParquetWriter(
        sink,
        tokens.schema,
        compression={**dict.fromkeys(plain, "zstd"), **dict.fromkeys(bits, "none")},
        use_dictionary=["clip_id", "source"],
        write_statistics=plain,
    )
    with writer:
        writer.write_table(tokens, row_group_size=1024)
        writer.add_key_value_metadata({b"k": b"v"})
    assert tokens_to_parquet(tokens, {b"k": b"v"}) == sink.getvalue()


def test_tokens_to_parquet_makes_row_groups_smaller_where_rows_are_large(rich):
    contract, block = rich
    tokens = token_rows(block.ledger.drop_columns(["unit"]), block, slice(0, 6), block.clip_columns, contract)
    metadata = pq.read_metadata(io.BytesIO(tokens_to_parquet(tokens, {}, group_bytes=500)))
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [4, 2]
    columns = [metadata.row_group(0).column(n) for n in range(metadata.num_columns)]
    chunks = {column.path_in_schema: column for column in columns}
    assert chunks["this_latent"].compression == "UNCOMPRESSED"
    assert not chunks["this_latent"].is_stats_set
    assert chunks["mood.list.element"].compression == "ZSTD"
    assert "RLE_DICTIONARY" in chunks["speaker"].encodings


def test_plan_of_version_knows_published_versions_only(tmp_path, contract):
    store = TokenStore.of(Folder(str(tmp_path)), "spec")
    plan = Plan((unit_named("aa11"),))
    with Ownership(Folder(str(tmp_path)), "test").held() as owner:
        store.publish_plan(owner, plan)
        store.publish_version(owner, "v1", plan)
    assert store.plan_of_version("v1") == plan
    with pytest.raises(OutputMismatchError, match="v2"):
        store.plan_of_version("v2")


def test_read_contract_returns_what_was_published(tmp_path, contract):
    store = TokenStore.of(Folder(str(tmp_path)), "spec")
    assert store.read_contract() is None
    with Ownership(Folder(str(tmp_path)), "test").held() as owner:
        store.publish_contract(owner, contract)
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
