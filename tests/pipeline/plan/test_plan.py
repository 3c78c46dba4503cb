from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.plan.plan import gather_small, make_plan, plan_from_bytes, plan_to_bytes
from pipeline.plan.units import group_units, listed_of, stamp_of, unit_from_json, unit_to_json
from pipeline.storage import Folder, InputRoot, StoredFile, open_inputs


def files(names, num_bytes=1000, version="1"):
    return tuple(StoredFile(f"{name}.npz", num_bytes, version) for name in names)


def root_of(found, name=""):
    return InputRoot(name, Folder("nowhere"), tuple(found), 0)


def test_make_plan_does_not_depend_on_listing_order(make_corpus):
    found = list(files(f"d/clip{n:03}" for n in range(300)))
    plan = make_plan([root_of(found)], make_corpus(unit_files=16))
    random.Random(0).shuffle(found)
    assert make_plan([root_of(found)], make_corpus(unit_files=16)) == plan
    assert [unit.key for unit in plan.units] == sorted(unit.key for unit in plan.units)
    assert sorted(part.path for unit in plan.units for part in unit.parts) == sorted(file.path for file in found)


def test_make_plan_keeps_most_units_when_a_file_is_added_or_removed(make_corpus):
    names = [f"clip{n:04}" for n in range(0, 2000, 2)]
    before = {(unit.key, unit.stamp) for unit in make_plan([root_of(files(names))], make_corpus()).units}
    for other in (sorted([*names, "clip0777"]), [name for name in names if name != "clip0500"]):
        after = {(unit.key, unit.stamp) for unit in make_plan([root_of(files(other))], make_corpus()).units}
        assert len(after - before) <= 2


def test_make_plan_moves_only_the_stamp_when_content_changes(make_corpus):
    found = list(files(f"clip{n}" for n in range(100)))
    before = make_plan([root_of(found)], make_corpus())
    found[17] = StoredFile(found[17].path, found[17].num_bytes, "2")
    after = make_plan([root_of(found)], make_corpus())
    assert after.keys_digest == before.keys_digest
    assert after.digest != before.digest
    assert sum(a != b for a, b in zip(after.units, before.units, strict=True)) == 1


def test_stamp_of_is_what_it_was_without_checksums():
    """Fragments of datasets that stand are found by it: it must not move."""
    found = (StoredFile("a.npz", 1000, "1"), StoredFile("b.npz", 7, "etag"))
    assert stamp_of(found) == listed_of(found) == "f1c1791876a8"


def test_stamp_of_takes_checksums_before_versions():
    listed = files(["a", "b"])
    checked = tuple(replace(file, checksum=file.path) for file in listed)
    moved = tuple(replace(file, version="2") for file in checked)
    assert stamp_of(checked) == stamp_of(moved) != stamp_of(listed)
    assert listed_of(checked) == listed_of(listed) != listed_of(moved)
    for change in ({"checksum": "other"}, {"num_bytes": 1001}):
        assert stamp_of([replace(checked[0], **change), checked[1]]) != stamp_of(checked)


def test_unit_from_json_restores_what_was_listed(make_corpus):
    checked = [replace(file, checksum="c") for file in files(f"clip{n}" for n in range(10))]
    plan = make_plan([root_of(checked)], make_corpus())
    for unit, stored in zip(plan.units, plan_from_bytes(plan_to_bytes(plan)).units, strict=True):
        assert unit_from_json(unit_to_json(unit)).listed == unit.listed != unit.stamp
        assert stored == unit
        assert stored.listed == ""


def test_make_plan_tells_inputs_of_equal_files_apart(make_corpus):
    found = files(["a", "b"])
    plan = make_plan([root_of(found, "x"), root_of(found, "y")], make_corpus())
    assert len({unit.key for unit in plan.units}) == len(plan.units)
    assert {part.input_name for unit in plan.units for part in unit.parts} == {"x", "y"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5000), max_size=60))
def test_gather_small_keeps_every_file_once_under_the_cap(make_corpus, sizes):
    found = [StoredFile(f"{n:03}.npy", size, "1") for n, size in enumerate(sizes)]
    runs = list(gather_small("", found, make_corpus(unit_bytes=5000)))
    assert [file for run in runs for file in run] == found
    assert all(sum(file.num_bytes for file in run) <= 5000 for run in runs)


def test_make_plan_cuts_a_large_file_inside(tmp_path, make_corpus):
    motion = pa.array([np.zeros((50, 4), np.float32).tolist()] * 100, pa.list_(pa.list_(pa.float32(), 4)))
    table = pa.table({"clip_id": [f"c{n}" for n in range(100)], "motion": motion})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=10, compression="none", use_dictionary=False)
    roots = open_inputs([str(tmp_path)], [".parquet"])
    plan = make_plan(roots, make_corpus(unit_bytes=20_000))
    ranges = sorted((unit.parts[0].start, unit.parts[0].stop) for unit in plan.units)
    assert len(ranges) > 3
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 100
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))


def test_plan_from_bytes_restores_the_plan(make_corpus):
    plan = make_plan([root_of(files(f"clip{n}" for n in range(10)))], make_corpus())
    assert plan_from_bytes(plan_to_bytes(plan)) == plan
    assert plan_to_bytes(plan) == plan_to_bytes(plan)


@pytest.mark.parametrize("unit_files", [1, 1_000_000])
def test_gather_small_obeys_unit_files(make_corpus, unit_files):
    found = files(f"clip{n}" for n in range(20))
    runs = list(gather_small("", found, make_corpus(unit_files=unit_files)))
    assert len(runs) == (20 if unit_files == 1 else 1)


@pytest.mark.parametrize(("most_bytes", "num_runs"), [(128 << 20, 8), (5000, 20), (1000, 100), (1, 100), (10**12, 8)])
def test_group_units_ends_a_run_at_the_most_bytes(make_corpus, most_bytes, num_runs):
    units = make_plan([root_of(files(f"clip{n:03}" for n in range(100)))], make_corpus(unit_files=1)).units
    runs = group_units(units, 2, most_bytes)
    assert [unit for run in runs for unit in run] == list(units)
    assert abs(len(runs) - num_runs) <= 1
