from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pipeline.contract.specs import GLOBAL_ORDER
from pipeline.dataset.paths import DEALT_PATH
from pipeline.errors import IncompleteError
from pipeline.executors.plain_loop import build_here
from pipeline.settings.job_config import SplitConfig
from pipeline.storage import Folder

SPLITS = SplitConfig(ratios={"train": 0.6, "val": 0.4})
few = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def units(tools):
    """Thirty units of one to five clips, some too short for a window."""
    random = np.random.default_rng(0)
    return {
        f"{random.integers(2**62):020x}": [
            tools.Clip(f"clip{n:02}-{k}", int(random.integers(3, 90)), "ab"[n % 2]) for k in range(1 + n % 5)
        ]
        for n in range(30)
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_source, units):
    return make_source(tmp_path_factory.mktemp("store"), units)


def keys_of(rows):
    return [(row["clip_id"], row["start_frame"], row["prev_bits"], row["this_bits"], row["speaker"]) for row in rows]


@few
@given(
    target=st.integers(8, 60),
    task_bytes=st.sampled_from([1, 700, 5000, 64 << 20]),
    seed=st.integers(0, 3),
    order=st.permutations(range(30)),
    is_backward=st.booleans(),
)
def test_shuffle_holds_each_window_once_whatever_the_tasks(
    tmp_path_factory, source, tools, target, task_bytes, seed, order, is_backward
):
    """The bytes depend on neither the order of fragments and results nor on how much a task takes."""

    def run(tasks, builder):
        return iter([result for task in tasks[:: -1 if is_backward else 1] for result in builder.build(task)])

    spec = tools.spec(shuffle="global", windows_per_shard=target, seed=seed, splits=SPLITS)
    plain = tools.export(source, tmp_path_factory.mktemp("plain"), spec)
    turned = replace(source, fragments=tuple(source.fragments[n] for n in order), shuffle_bytes=task_bytes)
    again = tools.export(turned, tmp_path_factory.mktemp("again"), spec, run)
    assert again.files == plain.files
    unshuffled = tools.export(source, tmp_path_factory.mktemp("none"), tools.spec(splits=SPLITS))
    assert sorted(keys_of(plain.rows), key=repr) == sorted(keys_of(unshuffled.rows), key=repr)
    split_of = {row["clip_id"]: "b" for row in plain.rows}
    for shard, rows in zip(plain.manifest["shards"]["parquet"], plain.shards, strict=True):
        assert len(rows) == shard["windows"] > 0
        for row in rows:
            assert split_of.get(row["clip_id"], shard["split"]) in ("b", shard["split"])
            split_of[row["clip_id"]] = shard["split"]


def test_shuffle_makes_even_shards_of_mixed_clips(tmp_path, source, tools):
    shuffled = tools.export(source, tmp_path / "o", tools.spec(shuffle="global", windows_per_shard=40))
    sizes = [len(rows) for rows in shuffled.shards]
    assert max(sizes) - min(sizes) <= 1
    assert abs(np.mean(sizes) - 40) < 4
    for rows in shuffled.shards:
        clips = [row["clip_id"] for row in rows]
        assert sum(a == b for a, b in itertools.pairwise(clips)) < len(clips) / 4
        assert len(set(clips)) > 10
    other = tools.export(source, tmp_path / "p", tools.spec(shuffle="global", windows_per_shard=40, seed=1))
    assert keys_of(other.rows) != keys_of(shuffled.rows)
    assert shuffled.manifest["export"]["global_order"] == GLOBAL_ORDER
    assert "global_order" not in tools.spec().described()


def test_shuffle_leaves_nothing_aside_and_clears_what_a_killed_run_left(tmp_path, source, tools):
    output = Folder(str(tmp_path / "o"))
    output.publish(f"{DEALT_PATH}/000000.bin", b"of a run that was killed")
    output.publish(f"{DEALT_PATH}/000999.bin", b"of a run that was killed")

    def stop_before_the_end(tasks, builder):
        for number, task in enumerate(tasks):
            if number == 3 and hasattr(builder, "paths"):
                raise KeyboardInterrupt
            yield from builder.build(task)

    spec = tools.spec(shuffle="global", windows_per_shard=5)
    with pytest.raises(KeyboardInterrupt):
        tools.export(replace(source, shuffle_bytes=500), tmp_path / "o", spec, stop_before_the_end)
    assert output.list_files(DEALT_PATH) == []
    assert tools.export(source, tmp_path / "o", spec).files == tools.export(source, tmp_path / "p", spec).files


@pytest.mark.parametrize("harm", ["gone", "cut short", "another's"])
def test_shuffle_finds_dealt_rows_that_are_not_its_own(tmp_path, source, tools, harm):
    output = Folder(str(tmp_path / "o"))

    def run(tasks, builder):
        if hasattr(builder, "paths"):
            path, other = builder.paths[:2]
            if harm == "gone":
                output.delete(path)
            else:
                output.publish(path, output.read(path)[:12] if harm == "cut short" else output.read(other))
        return build_here(tasks, builder)

    with pytest.raises(IncompleteError, match="run the same command again"):
        tools.export(replace(source, shuffle_bytes=500), tmp_path / "o", tools.spec(shuffle="global"), run)
    assert not output.exists("dataset.json")


def test_the_window_index_of_a_shuffle_has_a_row_group_a_shard(tmp_path, source, tools):
    import io

    import pyarrow.parquet as pq

    shuffled = tools.export(source, tmp_path / "o", tools.spec(shuffle="global", windows_per_shard=30))
    index = pq.ParquetFile(io.BytesIO(shuffled.files["index/windows.parquet"]))
    assert index.num_row_groups == len(shuffled.shards)
    for shard, rows in enumerate(shuffled.shards):
        group = index.read_row_group(shard).to_pylist()
        assert [(row["clip_id"], row["start_frame"]) for row in group] == [key[:2] for key in keys_of(rows)]
        assert [(row["shard"], row["row"]) for row in group] == [(shard, n) for n in range(len(rows))]
