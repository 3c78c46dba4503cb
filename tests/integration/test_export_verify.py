"""Export in every way without the model; verify finds every kind of damage."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.run.ownership import heartbeat_here


@pytest.fixture(scope="module")
def dataset(command, tiny_corpus, tiny_codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("export") / "tokens"
    sets = ("--set", "units.files=3", "--set", "export.windows_per_shard=60")
    assert command("tokenize", tiny_corpus, output, "-c", tiny_codec, *sets, "--local").code == 0
    return output


@pytest.fixture
def copy(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "copy")
    return tmp_path / "copy"


def rows_of(output):
    shards = json.loads((output / "dataset.json").read_text())["shards"]["parquet"]
    return [row for shard in shards for row in pq.read_table(output / shard["path"]).to_pylist()]


def key(row):
    return row["clip_id"], row["start_frame"], row["prev_bits"], row["this_bits"]


@pytest.mark.parametrize("how", [("--local",), ()], ids=["local", "ray"])
@pytest.mark.parametrize("shuffle", ["none", "shard", "global"])
def test_export_keeps_every_window(command, dataset, ray_local, tmp_path, shuffle, how):
    output = tmp_path / "o"
    sets = (f"export.shuffle={shuffle}", "export.windows_per_shard=50")
    arguments = [*(part for setting in sets for part in ("--set", setting)), *how]
    outcome = command("export", dataset, output, *arguments)
    assert outcome.code == 0, outcome.text
    verified = command("verify", output)
    assert verified.code == 0, verified.text
    assert "token store" in verified.text
    before, after = rows_of(dataset), rows_of(output)
    assert sorted(map(key, after)) == sorted(map(key, before))
    assert (list(map(key, after)) == list(map(key, before))) == (shuffle == "none")
    again = tmp_path / "again"
    assert command("export", dataset, again, *arguments).code == 0
    assert (again / "dataset.json").read_bytes() == (output / "dataset.json").read_bytes()
    if shuffle != "none":
        index = pq.read_table(output / "index" / "windows.parquet").to_pylist()
        shards = json.loads((output / "dataset.json").read_text())["shards"]["parquet"]
        tables = [pq.read_table(output / shard["path"]).to_pylist() for shard in shards]
        assert len(index) == len(before)
        for entry in index[:: len(index) // 20]:
            row = tables[entry["shard"]][entry["row"]]
            assert (row["clip_id"], row["start_frame"]) == (entry["clip_id"], entry["start_frame"])


def test_global_shuffle_mixes_clips(command, dataset, tmp_path):
    sets = ("--set", "export.shuffle=global", "--set", "export.splits.ratios={train: 1}", "--local")
    assert command("export", dataset, tmp_path / "o", *sets).code == 0
    shards = json.loads((tmp_path / "o" / "dataset.json").read_text())["shards"]["parquet"]
    for shard in shards:
        clips = pq.read_table(tmp_path / "o" / shard["path"])["clip_id"].to_pylist()
        assert sum(a == b for a, b in itertools.pairwise(clips)) < len(clips) / 3


def test_export_of_one_format_and_a_split_file(command, dataset, tmp_path):
    listed = {"train": [f"clip{n:02}" for n in range(10)], "val": [f"b/shard#clip{n}" for n in range(10, 20)]}
    (tmp_path / "splits.json").write_text(json.dumps(listed))
    sets = ("--set", "export.splits.by=file", "--set", f"export.splits.file={tmp_path}/splits.json")
    outcome = command("export", dataset, tmp_path / "o", "--format", "webdataset", *sets, "--local")
    assert outcome.code == 0, outcome.text
    assert command("verify", tmp_path / "o").code == 0
    manifest = json.loads((tmp_path / "o" / "dataset.json").read_text())
    assert set(manifest["shards"]) == {"webdataset"}
    assert {name: split["clips"] for name, split in manifest["splits"].items()} == {
        "train": 10,
        "val": 10,
        "unlisted": 10,
    }
    assert str(tmp_path) not in json.dumps(manifest)


def test_export_in_place_changes_the_shards_only(command, copy):
    fragments = {path: path.stat().st_mtime_ns for path in copy.glob("_store/*/fragments/*/*")}
    outcome = command("export", copy, copy, "--format", "parquet", "--local")
    assert outcome.code == 0, outcome.text
    assert command("verify", copy).code == 0
    assert {path: path.stat().st_mtime_ns for path in fragments} == fragments
    assert len(list(copy.glob("versions/*.json"))) == 2


def test_export_in_place_knows_the_place_by_any_spelling(command, copy):
    (copy.parent / "link").symlink_to(copy)
    for spelling in (copy.parent / "link", copy / ".." / copy.name):
        assert command("export", spelling, copy, "--format", "parquet", "--local").code == 0
        assert command("verify", copy).code == 0
        assert command("export", copy, copy, "--local").code == 0


def test_export_refuses_to_merge_into_a_source(command, copy, dataset):
    outcome = command("export", copy, dataset, copy, "--local")
    assert (outcome.code, "token store" in outcome.text) == (2, True)
    assert command("verify", copy).code == 0


def test_the_order_of_split_ratios_means_nothing(command, dataset, tmp_path):
    for name, ratios in {"a": "{train: 0.5, val: 0.5}", "b": "{val: 0.5, train: 0.5}"}.items():
        assert (
            command("export", dataset, tmp_path / name, "--set", f"export.splits.ratios={ratios}", "--local").code == 0
        )
    assert (tmp_path / "a" / "dataset.json").read_bytes() == (tmp_path / "b" / "dataset.json").read_bytes()


def test_export_merges_datasets_of_one_contract(command, tiny_codec, tools, tmp_path):
    for name, seeds in {"one": (1, 2, 3), "two": (3, 4)}.items():
        (tmp_path / name).mkdir()
        for seed in seeds:
            data = tools.npz_bytes(motion=tools.tiny_motion(seed, 30), fps=25)
            (tmp_path / name / f"clip{seed}.npz").write_bytes(data)
        assert command("tokenize", tmp_path / name, tmp_path / f"{name}-t", "-c", tiny_codec, "--local").code == 0
    arguments = ("export", tmp_path / "one-t", tmp_path / "two-t", tmp_path / "o", "--local")
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.text
    assert command("verify", tmp_path / "o").code == 0
    manifest = json.loads((tmp_path / "o" / "dataset.json").read_text())
    assert manifest["counts"]["clips"] == 4
    assert manifest["drops"] == {"duplicate_id": 1}


def test_export_refuses_what_is_no_source(command, dataset, tiny_codec, tiny_corpus, tmp_path):
    assert command("export", tmp_path, tmp_path / "o", "--local").code == 2
    assert command("export", dataset, tmp_path / "o", "--local").code == 0
    outcome = command("export", tmp_path / "o", tmp_path / "p", "--local")
    assert (outcome.code, "token store" in outcome.text) == (2, True)
    other = tmp_path / "other"
    assert command("tokenize", tiny_corpus, other, "-c", tiny_codec, "--stride", "3", "--local").code == 0
    outcome = command("export", dataset, other, tmp_path / "q", "--local")
    assert (outcome.code, "window.stride" in outcome.text) == (2, True)
    outcome = command("export", dataset, other, "--local")
    assert (outcome.code, "token store of its own" in outcome.text) == (2, True)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "x").write_text("x")
    assert command("export", dataset, tmp_path / "r", "--local").code == 2


def test_verify_needs_a_dataset(command, tmp_path):
    assert command("verify", tmp_path).code == 2


def test_verify_of_a_sound_dataset_proves_units(command, dataset):
    outcome = command("verify", dataset)
    assert outcome.code == 0
    assert "sound" in outcome.text
    assert "token store" not in outcome.text


def first(output, pattern):
    return sorted(output.glob(pattern))[0]


def drop_shard(output):
    path = first(output, "parquet/*/*.parquet")
    path.unlink()
    return path.name


def flip_a_bit(output):
    path = first(output, "webdataset/*/*.tar")
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    return path.name


def drop_fragment(output):
    path = first(output, "_store/*/fragments/*/*.parquet")
    path.unlink()
    return path.name.split("-")[0]


def drop_index(output):
    (output / "index" / "clips.parquet").unlink()
    return "clips.parquet"


def alter_card(output):
    (output / "README.md").write_text("hello")
    return "README.md"


def reforge(output, pattern, change):
    """Change a shard and make dataset.json agree with its bytes, so that only its content is wrong."""
    path = first(output, pattern)
    data = change(path)
    manifest = json.loads((output / "dataset.json").read_text())
    for shards in [*manifest["shards"].values(), manifest["files"]]:
        for shard in shards:
            if shard["path"].endswith(path.name):
                shard.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    path.write_bytes(data)
    old = hashlib.sha256((output / "dataset.json").read_bytes()).hexdigest()[:16]
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (output / "dataset.json").write_text(text)
    (output / "versions" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json").write_text(text)
    published = next(output.glob("_store/*/published"))
    new = hashlib.sha256(text.encode()).hexdigest()[:16]
    (published / f"{new}.txt").write_text((published / f"{old}.txt").read_text())
    for file in manifest["files"]:
        (output / "versions" / new / file["path"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(output / file["path"], output / "versions" / new / file["path"])
    return path.name


def rewritten(change):
    def rewrite(path):
        from pipeline.dataset.parquet_shard import tokens_to_parquet

        table = pq.read_table(path)
        metadata = pq.read_metadata(path).metadata
        return tokens_to_parquet(change(table), {b"motion_tokens.contract": metadata[b"motion_tokens.contract"]})

    return rewrite


def misplace_a_clip(output):
    """Let the clip index point elsewhere, and dataset.json agree with its bytes."""
    from pipeline.export.index import table_to_parquet

    path = output / "index" / "clips.parquet"
    table = pq.read_table(path)
    moved = pa.array([row + 1 if row >= 0 else row for row in table["first_row"].to_pylist()], pa.int32())
    return reforge(
        output, "index/clips.parquet", lambda _: table_to_parquet(table.set_column(7, table.schema.field(7), moved))
    )


def double_a_row(output):
    def change(table):
        return pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)])

    return reforge(output, "parquet/*/*.parquet", rewritten(change))


def swap_bits(output):
    def change(table):
        return table.set_column(6, table.schema.field(6), table["this_bits"])

    return reforge(output, "parquet/*/*.parquet", rewritten(change))


def lose_the_contract(output):
    def change(path):
        from pipeline.dataset.parquet_shard import tokens_to_parquet

        return tokens_to_parquet(pq.read_table(path), {})

    return reforge(output, "parquet/*/*.parquet", change)


def tear_members_apart(output):
    def change(path):
        data = path.read_bytes()
        return data[:1024] + data[2048:3072] + data[1024:2048] + data[3072:]

    return reforge(output, "webdataset/*/*.tar", change)


@pytest.mark.parametrize(
    "damage",
    [
        drop_shard,
        flip_a_bit,
        drop_fragment,
        drop_index,
        alter_card,
        misplace_a_clip,
        double_a_row,
        swap_bits,
        lose_the_contract,
        tear_members_apart,
    ],
)
def test_verify_finds_and_names_damage(command, copy, damage):
    name = damage(copy)
    outcome = command("verify", copy)
    assert outcome.code == 1, outcome.text
    assert name in outcome.text.replace(" ", ""), outcome.text


def test_export_leaves_an_output_to_the_run_that_is_active(command, dataset, tmp_path):
    arguments = ("export", dataset, tmp_path / "o", "--local", "--set", "run.when_active=leave")
    assert command(*arguments).code == 0
    (tmp_path / "o" / "runs" / "active.json").write_bytes(heartbeat_here("20260101-000000-abcdef").to_bytes())
    outcome = command(*arguments, "--set", "export.windows_per_shard=9")
    assert (outcome.code, "20260101-000000-abcdef" in outcome.text) == (75, True)
    (tmp_path / "o" / "runs" / "active.json").unlink()
    assert command(*arguments, "--set", "export.windows_per_shard=9").code == 0
    assert command("verify", tmp_path / "o").code == 0
