"""One file or unit changes: which units and shards may be others then, as formats.md says it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
from hypothesis import given, settings, strategies as st

from pipeline.contract.schema import LEDGER_SCHEMA
from pipeline.contract.specs import ExportSpec
from pipeline.export.clips import join_ledgers
from pipeline.export.layout import lay_out_shards
from pipeline.export.splits import assign_splits
from pipeline.plan.plan import make_plan
from pipeline.settings.job_config import SplitConfig
from pipeline.storage import Folder, InputRoot, StoredFile

bounded = settings(max_examples=100, deadline=None, derandomize=True)
HUGE = 1 << 40

names = st.text(st.sampled_from("abcxyz019_-/é"), min_size=1, max_size=8).map(lambda name: f"{name}.npz")
file_lists = st.dictionaries(names, st.integers(1, 100), min_size=1, max_size=40)
"""path -> bytes."""
unit_files = st.sampled_from([1, 2, 3, 8, 64])


def files_of(sizes):
    return [StoredFile(path, num_bytes, "1") for path, num_bytes in sizes.items()]


def units_of(files, corpus):
    """What each unit is, by everything that would make its fragment another."""
    plan = make_plan([InputRoot("", Folder("nowhere"), tuple(files), 0)], corpus)
    assert len({unit.key for unit in plan.units}) == len(plan.units)
    assert sorted(part.path for unit in plan.units for part in unit.parts) == sorted(file.path for file in files)
    return {(unit.key, unit.stamp): {part.path for part in unit.parts} for unit in plan.units}


def gone_and_new(before, after):
    return [before[key] for key in before.keys() - after], [after[key] for key in after.keys() - before]


def is_end_of_run(path, num_files):
    """Whether the hash of a path ends a run of files."""
    return int.from_bytes(hashlib.sha256(f"\0{path}".encode()).digest()[:8], "big") % num_files == 0


def run_of(path, paths, num_files):
    """The paths between the nearest ends by hash around a path, whatever the size cap cuts inside."""
    ordered = sorted({*paths, path})
    at = ordered.index(path)
    first = max((n + 1 for n in range(at) if is_end_of_run(ordered[n], num_files)), default=0)
    ends = [n for n in range(at, len(ordered)) if is_end_of_run(ordered[n], num_files)]
    if ends and ends[0] == at:  # without it, the run goes on to the next end
        ends = ends[1:]
    return set(ordered[first : ends[0] + 1 if ends else None])


@bounded
@given(sizes=file_lists, path=names, num_files=unit_files)
def test_an_added_or_removed_file_changes_one_or_two_units(make_corpus, sizes, path, num_files):
    corpus = make_corpus(unit_files=num_files, unit_bytes=HUGE)
    without = units_of(files_of({name: size for name, size in sizes.items() if name != path}), corpus)
    with_it = units_of(files_of({**sizes, path: 7}), corpus)
    gone, new = gone_and_new(without, with_it)
    assert len(gone) <= 1
    assert 1 <= len(new) <= 2
    assert path in set().union(*new)


@bounded
@given(sizes=file_lists, pick=st.integers(0, 1000), num_files=unit_files, cap=st.sampled_from([100, 150, HUGE]))
def test_a_file_of_other_content_changes_the_stamp_of_its_unit_alone(make_corpus, sizes, pick, num_files, cap):
    corpus, files = make_corpus(unit_files=num_files, unit_bytes=cap), files_of(sizes)
    changed = pick % len(files)
    before = units_of(files, corpus)
    files[changed] = replace(files[changed], version="2")
    gone, new = gone_and_new(before, units_of(files, corpus))
    assert gone == new
    assert len(new) == 1
    assert files[changed].path in new[0]


@bounded
@given(sizes=file_lists, path=names, num_bytes=st.integers(1, 100), num_files=unit_files, has_cap=st.booleans())
def test_a_file_added_removed_or_resized_changes_units_of_its_own_run_alone(
    make_corpus, sizes, path, num_bytes, num_files, has_cap
):
    corpus = make_corpus(unit_files=num_files, unit_bytes=150 if has_cap else HUGE)
    inside = run_of(path, sizes, num_files)
    without = units_of(files_of({name: size for name, size in sizes.items() if name != path}), corpus)
    with_it = units_of(files_of({**sizes, path: num_bytes}), corpus)
    gone, new = gone_and_new(without, with_it)
    assert set().union(*gone, *new) <= inside
    resized = units_of(files_of({**sizes, path: 101 - num_bytes}), corpus)
    gone, new = gone_and_new(with_it, resized)
    assert set().union(*gone, *new) <= inside


@bounded
@given(sizes=file_lists, path=names, num_files=unit_files)
def test_a_large_file_changes_no_unit_of_small_ones(make_corpus, sizes, path, num_files):
    corpus = make_corpus(unit_files=num_files, unit_bytes=150)
    small = {name: size for name, size in sizes.items() if name != path}
    gone, new = gone_and_new(units_of(files_of(small), corpus), units_of(files_of({**small, path: 151}), corpus))
    assert (gone, new) == ([], [{path}])


# Shards: a unit is (windows of each of its clips, version of its content), under a key.

contents = st.tuples(st.lists(st.integers(0, 9), max_size=4).map(tuple), st.integers(0, 1))
unit_lists = st.dictionaries(st.integers(0, 2**64 - 1).map("{:016x}".format), contents, min_size=1, max_size=60)
SPLITS = {"one": {"train": 1.0}, "three": {"train": 0.5, "val": 0.3, "test": 0.2}}


def shards_of(units, target, shuffle, splits):
    """Every shard by all that makes its bytes: split, seed, and its windows with clip and version."""
    spec = ExportSpec(
        formats=("parquet",),
        windows_per_shard=target,
        shuffle=shuffle,
        seed=0,
        splits=SplitConfig(ratios=SPLITS[splits]),
        split_file="",
        duplicate_ids="reject",
    )
    keys = sorted(units)
    clips = join_ledgers(ledger(key, *units[key]) for key in keys)
    shards = lay_out_shards(clips, assign_splits(clips, spec, {}), keys, spec)
    return [
        (
            shard.split,
            shard.shuffle_seed,
            tuple(
                (keys[piece.unit], rows_of(keys[piece.unit], *units[keys[piece.unit]])[row])
                for piece in shard.pieces
                for first, end in piece.intervals
                for row in range(first, end)
            ),
        )
        for shard in shards
    ]


@lru_cache(4096)
def rows_of(key, windows, version):
    """Every row of a unit's fragment: clip, version of its content, window."""
    return [(f"{key}/{clip}", version, row) for clip, num in enumerate(windows) for row in range(num)]


@lru_cache(4096)
def ledger(key, windows, version):
    rows = [
        {
            "clip_id": f"{key}/{clip}",
            "source": f"{key}.npz",
            "where": "",
            "num_frames": 5 * num_windows,
            "num_windows": num_windows,
            "motion_digest": f"{version}",
            "drop_reason": "" if num_windows else "too_short",
            "drop_detail": "",
        }
        for clip, num_windows in enumerate(windows)
    ]
    return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)


def changed_shards(before, after):
    return set(before) - set(after), set(after) - set(before)


shard_rules = given(
    units=unit_lists,
    pick=st.integers(0, 1000),
    other=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    target=st.integers(3, 60),
    shuffle=st.sampled_from(["none", "shard"]),
    splits=st.sampled_from(sorted(SPLITS)),
)


@bounded
@shard_rules
def test_a_unit_of_other_content_changes_the_shards_that_hold_it(units, pick, other, target, shuffle, splits):
    key = sorted(units)[pick % len(units)]
    windows, version = units[key]
    before = shards_of(units, target, shuffle, splits)
    after = shards_of({**units, key: (windows, version + 1)}, target, shuffle, splits)
    gone, new = changed_shards(before, after)
    assert gone == {shard for shard in before if any(row[0] == key for row in shard[2])}
    assert new == {shard for shard in after if any(row[0] == key for row in shard[2])}
    for split in SPLITS[splits]:
        num_windows = sum(1 for shard in new if shard[0] == split for row in shard[2] if row[0] == key)
        assert sum(shard[0] == split for shard in new) <= max(1, -(-num_windows // target))


@bounded
@shard_rules
def test_a_unit_added_removed_or_grown_changes_shards_between_the_ends_around_it(
    units, pick, other, target, shuffle, splits
):
    """Behind the next shard that a unit's own hash ends, whatever its neighbours, nothing changes."""
    key = sorted(units)[pick % len(units)]
    without = {name: unit for name, unit in units.items() if name != key}
    for changed in (without, {**without, key: (other, 0)}):
        before, after = (shards_of(all_units, target, shuffle, splits) for all_units in (units, changed))
        gone, new = changed_shards(before, after)
        for split in SPLITS[splits]:
            touched = [row[0] for shard in gone | new if shard[0] == split for row in shard[2]]
            if touched:
                assert set(touched) <= between_ends(key, units, split, target, splits)


def between_ends(key, units, split, target, splits):
    """Keys between the nearest units around a key whose hash ends a shard of the split."""
    counts = dict.fromkeys(units, 0)
    for _, _, rows in (shard for shard in shards_of(units, HUGE, "none", splits) if shard[0] == split):
        for name, _ in rows:
            counts[name] += 1
    ends = {
        name
        for name, count in counts.items()
        if name != key and int.from_bytes(hashlib.sha256(f"shard\0{name}".encode()).digest()[:8], "big") * target
        < count * 2**64
    }  # fmt: skip
    first = max((end for end in ends if end < key), default="")
    last = min((end for end in ends if end > key), default="g")
    return {name for name in units if first < name <= last}


def test_a_changed_unit_hardly_ever_touches_more_than_two_shards():
    """Three and more are possible where no hash ends a shard for twice its size: about one change of 150."""
    random = np.random.default_rng(0)
    num_touched = []
    for _ in range(60):
        units = {f"{random.integers(2**63):016x}": ((int(random.integers(1, 13)),), 0) for _ in range(80)}
        before = shards_of(units, 50, "none", "one")
        key = sorted(units)[int(random.integers(80))]
        added = {f"{random.integers(2**63):016x}": ((6,), 0)}
        removed = {name: unit for name, unit in units.items() if name != key}
        grown = {**units, key: ((units[key][0][0] + 3,), 0)}
        for changed in ({**units, **added}, removed, grown):
            num_touched.append(len(changed_shards(before, shards_of(changed, 50, "none", "one"))[1]))
    assert sum(num > 2 for num in num_touched) <= 0.02 * len(num_touched), num_touched
    assert max(num_touched) <= 5
