from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.contract.schema import LEDGER_SCHEMA
from pipeline.errors import ConfigError
from pipeline.export.build import select_rows
from pipeline.export.clips import join_ledgers, resolve_duplicates
from pipeline.export.layout import lay_out_shards, shuffled_order
from pipeline.export.splits import Splits, assign_splits, split_shares, splits_from_json
from pipeline.settings.job_config import SplitConfig


def ledger(*clips):
    rows = []
    for clip in clips:
        row = {"source": "f.npz", "where": "", "num_frames": 100, "num_windows": 1, "motion_digest": "d"}
        rows.append({**row, "drop_reason": "", "drop_detail": "", **clip})
    return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)


def units_of(counts, start=0):
    """One ledger a unit, one clip a window count."""
    return [
        ledger(*({"clip_id": f"c{start + u}-{k}", "num_windows": n} for k, n in enumerate(unit)))
        for u, unit in enumerate(counts)
    ]


def windows_of(shards):
    found = []
    for shard in shards:
        for piece in shard.pieces:
            for begin, end in piece.intervals:
                found.extend((shard.split, piece.unit, row) for row in range(begin, end))
    return found


def all_train(clips):
    return Splits(("train",), np.zeros(clips.table.num_rows, np.int32))


def split_names(*args):
    return assign_splits(*args).to_arrow().to_pylist()


def keys(num, salt="k"):
    return [f"{salt}{index:05}" for index in range(num)]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 30), max_size=6), max_size=12),
    target=st.integers(1, 60),
    shuffle=st.sampled_from(["none", "shard"]),
    ratios=st.sampled_from([{"train": 1.0}, {"train": 0.5, "val": 0.3, "test": 0.2}]),
)
def test_lay_out_shards_holds_every_window_once(tools, counts, target, shuffle, ratios):
    spec = tools.spec(windows_per_shard=target, shuffle=shuffle, splits=SplitConfig(ratios=ratios))
    clips = join_ledgers(units_of(counts))
    splits = assign_splits(clips, spec, {})
    names = splits.to_arrow().to_pylist()
    shards = lay_out_shards(clips, splits, keys(len(counts)), spec)
    found = windows_of(shards)
    expected = []
    for clip in range(clips.table.num_rows):
        first = int(clips.first_row[clip])
        expected += [(names[clip], int(clips.unit[clip]), first + n) for n in range(int(clips.num_windows[clip]))]
    assert sorted(found) == sorted(expected)
    if shuffle == "none":
        for split in set(names):
            assert [w for w in found if w[0] == split] == [w for w in expected if w[0] == split]
    assert all(0 < shard.num_windows <= 2 * target for shard in shards)


def test_lay_out_shards_reaches_the_target_on_average(tools):
    clips = join_ledgers(units_of([[20]] * 3000))
    spec = tools.spec(windows_per_shard=400)
    sizes = [shard.num_windows for shard in lay_out_shards(clips, all_train(clips), keys(3000), spec)]
    assert 250 < np.mean(sizes) < 500


def test_lay_out_shards_changes_few_shards_with_a_unit(tools):
    counts = [[5, 7]] * 400
    spec = tools.spec(windows_per_shard=100)

    def shards_by_keys(all_counts, all_keys):
        clips = join_ledgers(units_of(all_counts))
        shards = lay_out_shards(clips, all_train(clips), all_keys, spec)
        return {tuple((all_keys[p.unit], p.intervals.tolist().__repr__()) for p in s.pieces) for s in shards}

    names = keys(400)
    before = shards_by_keys(counts, names)
    removed = shards_by_keys(counts[:200] + counts[201:], names[:200] + names[201:])
    assert len(removed - before) <= 2
    grown = shards_by_keys([*counts[:200], [5, 9], *counts[201:]], names)
    assert len(grown - before) <= 3


def test_lay_out_shards_cuts_a_huge_unit_inside(tools):
    clips = join_ledgers(units_of([[450, 3, 450]]))
    shards = lay_out_shards(clips, all_train(clips), ["k"], tools.spec(windows_per_shard=100))
    assert [shard.num_windows for shard in shards] == [180, 181, 180, 181, 181]


def test_shuffled_order_is_a_seeded_permutation():
    order = shuffled_order("a", 1000)
    assert sorted(order) == list(range(1000))
    assert (order == shuffled_order("a", 1000)).all()
    assert (order != shuffled_order("b", 1000)).mean() > 0.9
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def test_resolve_duplicates_keeps_one_of_equal_motion():
    clips = join_ledgers([ledger({"clip_id": "a"}, {"clip_id": "b"}), ledger({"clip_id": "a", "source": "g.npz"})])
    resolved = resolve_duplicates(clips, "reject")
    assert resolved.num_windows.tolist() == [1, 1, 0]
    assert resolved.table["drop_reason"].to_pylist() == ["", "", "duplicate_id"]
    assert "f.npz" in resolved.table["drop_detail"][2].as_py()


def test_resolve_duplicates_rejects_all_holders_of_different_motion():
    tables = [ledger({"clip_id": "a"}), ledger({"clip_id": "a", "motion_digest": "e"}), ledger({"clip_id": "c"})]
    resolved = resolve_duplicates(join_ledgers(tables), "reject")
    assert resolved.num_windows.tolist() == [0, 0, 1]


def test_resolve_duplicates_tells_apart_by_suffix():
    tables = [
        ledger({"clip_id": "a", "motion_digest": "1" * 32}),
        ledger({"clip_id": "a", "motion_digest": "2" * 32}, {"clip_id": "a", "motion_digest": "1" * 32}),
    ]
    resolved = resolve_duplicates(join_ledgers(tables), "suffix")
    assert resolved.table["clip_id"].to_pylist()[:2] == ["a~11111111", "a~22222222"]
    assert resolved.num_windows.tolist() == [1, 1, 0]


def test_resolve_duplicates_ignores_dropped_holders():
    tables = [ledger({"clip_id": "a"}), ledger({"clip_id": "a", "num_windows": 0, "drop_reason": "non_finite"})]
    assert resolve_duplicates(join_ledgers(tables), "reject").num_windows.tolist() == [1, 0]


def test_assign_splits_depends_on_the_id_alone(tools):
    names = [f"clip{n}" for n in range(4000)]
    spec = tools.spec(splits=SplitConfig(ratios={"train": 0.8, "val": 0.1, "test": 0.1}))
    clips = join_ledgers([ledger(*({"clip_id": name} for name in names))])
    splits = split_names(clips, spec, {})
    assert 0.77 < splits.count("train") / 4000 < 0.83
    assert 0.08 < splits.count("val") / 4000 < 0.12
    uneven = tools.spec(splits=SplitConfig(ratios={"train": 0.7, "val": 0.25, "test": 0.05}))
    assert split_names(clips, uneven, {}).count("test") / 4000 < 0.07
    some = join_ledgers([ledger(*({"clip_id": name} for name in names[::7]))])
    assert split_names(some, spec, {}) == splits[::7]
    salted = spec.model_copy(update={"splits": spec.splits.model_copy(update={"salt": "x"})})
    assert split_names(clips, salted, {}) != splits


def test_assign_splits_by_source_keeps_files_together(tools):
    rows = [{"clip_id": f"c{n}", "source": f"s{n % 40}"} for n in range(400)]
    spec = tools.spec(splits=SplitConfig(by="source", ratios={"train": 0.5, "val": 0.5}))
    splits = split_names(join_ledgers([ledger(*rows)]), spec, {})
    assert len({(row["source"], split) for row, split in zip(rows, splits, strict=True)}) == 40
    assert set(splits) == {"train", "val"}


def test_splits_from_json_reads_lists_and_refuses_others():
    listed = splits_from_json('{"train": ["a", "b"], "val": ["c"]}', "m.json")
    assert listed == {"a": "train", "b": "train", "c": "val"}
    for text in ("[", "[]", '{"train": "a"}', '{"train": ["a"], "val": ["a"]}'):
        with pytest.raises(ConfigError, match=r"m\.json"):
            splits_from_json(text, "m.json")


def test_splits_of_the_later_training_code_are_pairs_of_key_and_length(tools):
    text = '{"train": [["a/0", 120], ["b", 300]], "test": [["c", 1], ["d", 2]], "val": [["d", 2]]}'
    listed = splits_from_json(text, "metadata.json")
    assert listed == {"a/0": "train", "b": "train", "c": "test", "d": "val"}
    rows = [{"clip_id": clip_id, "source": "s"} for clip_id in ("data#a/0", "x/data#d", "d", "data#e", "data")]
    spec = tools.spec(splits=SplitConfig(by="file", file="metadata.json"))
    found = split_names(join_ledgers([ledger(*rows)]), spec, listed)
    assert found == ["train", "val", "val", "unlisted", "unlisted"]
    with pytest.raises(ConfigError, match="stands in train and in val"):
        splits_from_json('{"train": [["a", 1]], "val": [["a", 1]]}', "metadata.json")


def test_select_rows_keeps_no_table_alive_for_few_of_its_rows():
    table = pa.table({"bits": pa.array([bytes([n % 256]) * 100 for n in range(10_000)], pa.binary(100))})
    few, most = np.array([[3, 7], [500, 502]]), np.array([[0, 9_000]])
    for intervals in (few, most):
        rows = np.concatenate([np.arange(*edges) for edges in intervals])
        assert select_rows(table, intervals).equals(table.take(pa.array(rows)))
    assert sum(chunk.buffers()[1].size for chunk in select_rows(table, few)["bits"].chunks) < 2000


def test_clips_without_a_value_stand_where_an_empty_one_stands():
    shares = split_shares("salt", [None, "", "None", None])
    assert shares[0] == shares[1] == shares[3] != shares[2]
