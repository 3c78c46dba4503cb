"""Storage lists files in any order: plan, layout and every byte of an export stay the same."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pipeline.contract.specs import Contract, ExportSpec, Numerics
from pipeline.dataset.token_store import TokenStore
from pipeline.executors.plain_loop import build_here
from pipeline.export.build import Fragment
from pipeline.export.export_dataset import ExportSource, export_dataset
from pipeline.export.publish import publish_dataset
from pipeline.plan.plan import make_plan, plan_to_bytes
from pipeline.plan.units import Unit
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Ownership
from pipeline.settings.job_config import SplitConfig
from pipeline.sources.clip import Part
from pipeline.stages.blocks import RUN_LEDGER_SCHEMA, TokenBlock
from pipeline.stages.write import FragmentWriter
from pipeline.storage import Folder, InputRoot, StoredFile, open_inputs
from pipeline.storage.files import LocalFiles

bounded = settings(max_examples=50, deadline=None, derandomize=True)
few = settings(
    max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

stored_files = st.builds(
    StoredFile,
    st.text(st.sampled_from("abc/é.-1"), min_size=1, max_size=6).map(lambda name: f"{name}.npz"),
    st.integers(1, 200),
    st.sampled_from(["1", "2"]),
)
input_names = st.lists(st.sampled_from(["", "a", "b", "0"]), min_size=1, max_size=3, unique=True)
NUM_UNITS = 14


@bounded
@given(data=st.data(), num_files=st.sampled_from([1, 3, 64]))
def test_make_plan_is_the_same_for_every_order_of_files_and_inputs(make_corpus, data, num_files):
    """Small files and, above the cap of 150 bytes, large ones."""
    corpus = make_corpus(unit_files=num_files, unit_bytes=150)
    listed = st.lists(stored_files, max_size=25, unique_by=lambda file: file.path)
    roots = [InputRoot(name, Folder("nowhere"), tuple(data.draw(listed)), 0) for name in data.draw(input_names)]
    turned = [
        InputRoot(root.name, root.folder, tuple(data.draw(st.permutations(root.files))), root.skipped)
        for root in data.draw(st.permutations(roots))
    ]
    assert plan_to_bytes(make_plan(turned, corpus)) == plan_to_bytes(make_plan(roots, corpus))


@few
@given(seed=st.integers(0, 1000))
def test_plan_of_a_folder_is_the_same_however_the_disk_lists_it(mixed_folder, make_corpus, seed):
    walk, corpus = LocalFiles.walk, make_corpus(unit_files=3, unit_bytes=2000)

    def in_another_order(files, prefix):
        found = walk(files, prefix)
        random.Random(seed).shuffle(found)
        return found

    wanted = plan_to_bytes(make_plan(open_inputs([str(mixed_folder)], [".npz", ".parquet"]), corpus))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFiles, "walk", in_another_order)
        plan = make_plan(open_inputs([str(mixed_folder)], [".npz", ".parquet"]), corpus)
    assert plan_to_bytes(plan) == wanted
    assert any(part.stop for unit in plan.units for part in unit.parts)


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory, write_clips):
    """npz clips in folders, and a Parquet file that is cut inside."""
    folder = write_clips(tmp_path_factory.mktemp("mixed"), {f"{n % 3}/clip{n}": 5 + n for n in range(20)})
    rows = pa.array([np.zeros((50, 4), np.float32).tolist()] * 20, pa.list_(pa.list_(pa.float32(), 4)))
    table = pa.table({"clip_id": [f"c{n}" for n in range(20)], "motion": rows})
    pq.write_table(table, folder / "big.parquet", row_group_size=2, compression="none", use_dictionary=False)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_codec, make_corpus):
    """Fragments of small units, two clips each, one clip id held twice; and one unit again with other content."""
    contract = Contract(
        codec=make_codec(), corpus=make_corpus(), numerics=Numerics(device="cpu", torch="2", pyarrow="3")
    )
    store = TokenStore.of(Folder(str(tmp_path_factory.mktemp("store"))), "spec")
    store.folder.publish("constants.npz", b"constants")
    keys = [f"{random.Random(n).getrandbits(80):020x}" for n in range(NUM_UNITS)]
    for key, stamp in [*((key, "s1") for key in keys), (keys[5], "s2")]:
        FragmentWriter(store, contract).write(block_of(key, stamp, is_twin=key in keys[:2]))
    return ExportSource((store,), tuple(Fragment(0, key, "s1") for key in keys), contract)


def block_of(key, stamp, is_twin):
    windows = [1 + int(key[0], 16) % 5, 3]
    rows = [
        {
            "clip_id": "twin" if is_twin and clip else f"{key}/{clip}",
            "source": f"{key}.npz",
            "where": "",
            "num_frames": 5 * num_windows,
            "num_windows": num_windows,
            "motion_digest": f"{key}{stamp}" * 2,
            "drop_reason": "",
            "drop_detail": "",
            "unit": 0,
        }
        for clip, num_windows in enumerate(windows)
    ]
    starts = np.concatenate([np.arange(0, 5 * num_windows, 5) for num_windows in windows])
    bits = np.random.default_rng(int(key[:8], 16) + int(stamp[1:])).integers(0, 256, (len(starts), 2, 8), np.uint8)
    unit = Unit(key, stamp, 100, (Part("", f"{key}.npz", "npz"),))
    return TokenBlock((unit,), bits, pa.Table.from_pylist(rows, schema=RUN_LEDGER_SCHEMA), starts)


def spec_of(shuffle, duplicate_ids="reject"):
    return ExportSpec(
        formats=("parquet", "webdataset"),
        windows_per_shard=12,
        shuffle=shuffle,
        seed=0,
        splits=SplitConfig(ratios={"train": 0.7, "val": 0.3}),
        split_file="",
        duplicate_ids=duplicate_ids,
    )


def exported(source, spec, folder, build=build_here):
    """Every file of an export, dataset.json too, by path."""
    output = Folder(str(folder))
    with Ownership(output, "test").held() as owner:
        publish_dataset(owner, export_dataset(source, owner, spec, {}, build, JobObserver()))
    return {file.path: output.read(file.path) for file in output.list_files()}


def with_fragments(source, fragments):
    return ExportSource(source.stores, tuple(fragments), source.contract)


@pytest.mark.parametrize("shuffle", ["none", "shard", "global"])
@pytest.mark.parametrize("duplicate_ids", ["reject", "suffix"])
@few
@given(order=st.permutations(range(NUM_UNITS)), is_backward=st.booleans())
def test_export_is_the_same_for_every_order_of_fragments_and_of_tasks(
    tmp_path_factory, source, shuffle, duplicate_ids, order, is_backward
):
    def build(tasks, builder):
        return iter([result for task in tasks[:: -1 if is_backward else 1] for result in builder.build(task)])

    spec = spec_of(shuffle, duplicate_ids)
    wanted = exported(source, spec, tmp_path_factory.mktemp("plain"))
    turned = with_fragments(source, [source.fragments[index] for index in order])
    assert exported(turned, spec, tmp_path_factory.mktemp("turned"), build) == wanted
    assert len([path for path in wanted if path.startswith("parquet/train/")]) > 1


@pytest.mark.parametrize("shuffle", ["none", "shard"])
def test_export_of_a_changed_unit_writes_the_shards_anew_that_hold_it(tmp_path, source, shuffle):
    changed = source.fragments[5]
    anew = with_fragments(
        source, [Fragment(0, old.unit_key, "s2") if old == changed else old for old in source.fragments]
    )
    before = exported(source, spec_of(shuffle), tmp_path / "before")
    after = exported(anew, spec_of(shuffle), tmp_path / "after")
    shards = {path for path in before if path.endswith((".parquet", ".tar")) and not path.startswith(("index", "q"))}
    gone = {path for path in shards if path not in after and not path.startswith("versions/")}
    holders = {path for path in shards if path.startswith("parquet/") and holds(before[path], changed.unit_key)}
    assert {path for path in gone if path.startswith("parquet/")} == holders
    for folder in {path.rsplit("/", 1)[0] for path in gone}:
        assert sum(path.startswith(f"{folder}/") for path in gone) <= 2
    assert gone
    assert all(after[path] == before[path] for path in shards - gone if not path.startswith("versions/"))


def holds(data, unit_key):
    sources = pq.read_table(io.BytesIO(data), columns=["source"])["source"].to_pylist()
    return f"{unit_key}.npz" in sources
