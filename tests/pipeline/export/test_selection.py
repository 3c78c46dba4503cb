from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pipeline.contract.specs import CarriedColumn, WindowRule
from pipeline.errors import ConfigError, DataError, NoClipLeftError
from pipeline.export.clips import join_ledgers
from pipeline.export.selection import check_columns, keep_passing
from pipeline.settings.job_config import SplitConfig
from pipeline.settings.where import parse_where
from pipeline.sources.clip_filter import ClipFilter

SPEAKERS = ["anna", "bob", None]
few = settings(
    max_examples=14, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def units(tools):
    """Twelve units of up to four clips, some dropped; windows every two frames, with a phase."""
    random = np.random.default_rng(1)
    return {
        f"{random.integers(2**62):020x}": [
            tools.Clip(f"clip{n:02}-{k}", int(random.integers(3, 40)), SPEAKERS[(n + k) % 3]) for k in range(1 + n % 4)
        ]
        for n in range(12)
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_source, units):
    rule = WindowRule(stride=2, tail="shift", phases=1, seed=3)
    return make_source(tmp_path_factory.mktemp("store"), units, window=rule)


@pytest.fixture(scope="module")
def everything(tmp_path_factory, source, tools):
    return tools.export(source, tmp_path_factory.mktemp("all"), tools.spec()).rows


def key(row):
    return row["clip_id"], row["start_frame"], row["prev_bits"], row["this_bits"], row["speaker"]


FILTERS = {
    "speaker == 'anna'": lambda row: row["speaker"] == "anna",
    "speaker != 'anna' and num_frames > 20": lambda row: row["speaker"] == "bob" and row["num_frames"] > 20,
    "speaker is None or clip_id.endswith('-0')": lambda row: row["speaker"] is None or row["clip_id"].endswith("-0"),
    "start_frame >= 4": lambda row: row["start_frame"] >= 4,
    "start_frame in [0, 2, 4, 9] and speaker == 'bob'": lambda row: (
        row["start_frame"] in (0, 2, 4, 9) and row["speaker"] == "bob"
    ),
    "start_frame < 3 or start_frame > num_frames": lambda row: row["start_frame"] < 3,
    "prev_valid_frames == 5 and not source == ''": lambda row: row["prev_valid_frames"] == 5,
}


@few
@given(text=st.sampled_from(sorted(FILTERS)), shuffle=st.sampled_from(["none", "shard", "global"]))
def test_an_export_holds_each_window_that_passes_once(tmp_path_factory, source, everything, tools, text, shuffle):
    spec = tools.spec(where=parse_where(text).text, shuffle=shuffle, windows_per_shard=9)
    found = tools.export(source, tmp_path_factory.mktemp("o"), spec)
    wanted = [key(row) for row in everything if FILTERS[text](row)]
    assert 0 < len(wanted) < len(everything)
    rows = [key(row) for row in found.rows]
    assert sorted(rows, key=repr) == sorted(wanted, key=repr)
    if shuffle == "none":
        assert rows == wanted
    counts = found.manifest["counts"]
    assert counts["windows"] == len(wanted)
    assert counts["clips"] == len({row[0] for row in wanted})
    kept = {row["clip_id"] for row in everything}
    assert counts.get("filtered_clips", 0) == len(kept) - counts["clips"]
    assert sum(found.manifest["drops"].values()) == counts["dropped_clips"]


def test_an_export_takes_and_leaves_out_listed_clips(tmp_path, source, everything, tools):
    from dataclasses import replace

    names = sorted({row["clip_id"] for row in everything})
    lists = ClipFilter(include=frozenset(names[:9]), exclude=frozenset(names[3:5]))
    spec = tools.spec(clips=lists.digest)
    found = tools.export(replace(source, clips=lists), tmp_path / "o", spec)
    assert {row["clip_id"] for row in found.rows} == {*names[:3], *names[5:9]}
    assert found.manifest["export"]["clips"] == lists.digest
    assert "lists of clips" in found.files["README.md"].decode()


def test_splits_by_a_carried_column_keep_its_clips_together(tmp_path, make_source, tools):
    units = {
        f"{n:020x}": [tools.Clip(f"c{n}-{k}", 20, f"speaker{(3 * n + k) % 25}") for k in range(3)] for n in range(40)
    }
    source = make_source(tmp_path / "store", units)
    splits = SplitConfig(by="speaker", ratios={"train": 0.5, "val": 0.5})
    found = tools.export(source, tmp_path / "o", tools.spec(splits=splits))
    split_of = {}
    for shard, rows in zip(found.manifest["shards"]["parquet"], found.shards, strict=True):
        for row in rows:
            assert split_of.setdefault(row["speaker"], shard["split"]) == shard["split"]
    assert len(split_of) == 25
    assert sorted(set(split_of.values())) == ["train", "val"]


def test_clips_that_do_not_pass_are_no_duplicates(tmp_path, make_source, tools):
    units = {"a" * 20: [tools.Clip("x", 20, "anna")], "b" * 20: [tools.Clip("x", 20, "bob")]}
    source = make_source(tmp_path / "store", units)
    with pytest.raises(NoClipLeftError, match="duplicate_id"):
        tools.export(source, tmp_path / "o", tools.spec())
    found = tools.export(source, tmp_path / "p", tools.spec(where="speaker == 'bob'"))
    assert {row["speaker"] for row in found.rows} == {"bob"}
    assert (found.manifest["counts"]["filtered_clips"], found.manifest["drops"]) == (1, {})


def test_renamed_clips_keep_their_names_where_windows_are_left_out(tmp_path, make_source, tools):
    units = {"a" * 20: [tools.Clip("x", 22, "anna"), tools.Clip("y", 12)], "b" * 20: [tools.Clip("x", 22, "bob")]}
    source = make_source(tmp_path / "store", units)
    spec = tools.spec(where="start_frame > 5", duplicate_ids="suffix")
    for shuffle in ("none", "global"):
        rows = tools.export(source, tmp_path / shuffle, spec.model_copy(update={"shuffle": shuffle})).rows
        found = {(row["clip_id"].partition("~")[0], row["speaker"]) for row in rows}
        assert found == {("x", "anna"), ("x", "bob"), ("y", None)}
        assert len({row["clip_id"] for row in rows}) == 3
        assert all(row["start_frame"] > 5 for row in rows)


def test_an_export_of_nothing_says_what_was_asked(tmp_path, source, tools):
    with pytest.raises(NoClipLeftError, match=r"none of .* passes .*speaker == 'carl'"):
        tools.export(source, tmp_path / "o", tools.spec(where="speaker == 'carl'"))
    assert [path.name for path in (tmp_path / "o").rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"where": "speeker == 'a'"}, "export.where: .*did you mean 'speaker'"),
        ({"where": "num_frames == 'a'"}, "num_frames is int64"),
        ({"splits": SplitConfig(by="speeker")}, "export.splits.by: .*did you mean 'speaker'"),
        ({"splits": SplitConfig(by="tags")}, "lists"),
    ],
)
def test_check_columns_refuses_columns_that_are_not_there(make_corpus, tools, changes, expected):
    carry = (CarriedColumn(name="speaker", kind="string"), CarriedColumn(name="tags", kind="list<int64>"))
    with pytest.raises(ConfigError, match=expected):
        check_columns(tools.spec(**changes), make_corpus(carry=carry))


def test_keep_passing_refuses_ledgers_that_are_not_of_the_window_rule(source, tools):
    fragment = source.fragments[7]
    store = source.stores[0]
    ledger = store.read_ledger(fragment.unit_key, fragment.stamp)
    other = source.contract.model_copy(
        update={
            "corpus": source.contract.corpus.model_copy(
                update={"window": WindowRule(stride=1, tail="drop", phases=0, seed=0)}
            )
        }
    )
    clips = join_ledgers([ledger])
    with pytest.raises(DataError, match="by the window rule"):
        keep_passing(clips, np.ones(clips.table.num_rows, np.bool_), tools.spec(where="start_frame > 1"), other)


def test_unchanged_shards_are_those_of_clips_that_pass_in_both(tmp_path, source, tools):
    """A filter touches the shards of the units whose clips it leaves out, and no bytes of others."""
    plain = tools.export(source, tmp_path / "a", tools.spec(windows_per_shard=30))
    names = [rows[0]["clip_id"] for rows in plain.shards]
    found = tools.export(source, tmp_path / "b", tools.spec(windows_per_shard=30, where=f"clip_id != '{names[0]}'"))
    shared = set(plain.files) & set(found.files)
    assert sum(path.startswith("parquet/") for path in shared) >= len(plain.shards) - 3
    assert not any(row["clip_id"] == names[0] for row in itertools.chain(*found.shards))


def test_a_spec_without_a_filter_keeps_its_export_id(tools):
    spec = tools.spec()
    assert "where" not in spec.described()
    assert "clips" not in spec.described()
    ids = {spec.export_id, tools.spec(where="num_frames > 1").export_id, tools.spec(clips="abc").export_id}
    assert len(ids) == 3
    assert spec.export_id == "c191aca429c071f7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speaker > 3", "speaker is string"),
        ("num_frames == '3'", "num_frames is int64"),
        ("score > '3'", "score is float64"),
        ("num_frames in [1, 'a']", "num_frames is int64"),
        ("num_frames in ['1']", "num_frames is int64"),
        ("speaker in [1]", "speaker is string"),
        ("score in ['1']", "score is float64"),
        ("is_song == 1", "is_song is bool"),
        ("is_song in [1.5]", "is_song is bool"),
        ("speaker", "speaker is string"),
        ("num_frames", "num_frames is int64"),
        ("not num_frames", "num_frames is int64"),
        ("num_frames.startswith('a')", "num_frames is int64"),
        ("tags == 3", r"tags is list"),
        ("tags in [3]", r"tags is list"),
        ("'a' in num_frames", "num_frames is int64"),
        ("'a' in tags", "tags is list"),
        ("start_frame < 'a'", "start_frame is int64"),
    ],
)
def test_check_columns_names_the_term_whose_values_do_not_go_together(tools, make_corpus, text, expected):
    kinds = {"speaker": "string", "score": "float64", "is_song": "bool", "tags": "list<float64>"}
    corpus = make_corpus(carry=tuple(CarriedColumn(name=name, kind=kind) for name, kind in kinds.items()))
    with pytest.raises(ConfigError, match=expected):
        check_columns(tools.spec(where=parse_where(text).text), corpus)
    check_columns(tools.spec(where="tags is None and score in [1, 2.5] and num_frames in [1, 2.0]"), corpus)
