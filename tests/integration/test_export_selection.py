"""Exports of a selection, through the command line: filters, lists, splits by speaker, merging, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SPEAKERS = ["anna", "bob", "carl", "dora", "emil"]
CARRY = ("--set", "input.carry=speaker,take")


@pytest.fixture(scope="module")
def motion(tools, tmp_path_factory):
    """Forty clips of five speakers in four Parquet files."""
    folder = tmp_path_factory.mktemp("motion")
    for file in range(4):
        clips = [tools.tiny_motion(10 * file + n, 9 + 4 * n) for n in range(10)]
        rows = {
            "clip_id": [f"clip{10 * file + n:02}" for n in range(10)],
            "motion": pa.array([clip.tolist() for clip in clips], pa.list_(pa.list_(pa.float32(), 4))),
            "fps": [25.0] * 10,
            "speaker": [SPEAKERS[(file + n) % 5] if n else None for n in range(10)],
            "take": pa.array(range(10), pa.int64()),
        }
        pq.write_table(pa.table(rows), folder / f"part{file}.parquet")
    return folder


@pytest.fixture(scope="module")
def dataset(command, motion, tiny_codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("selection") / "tokens"
    sets = (*CARRY, "--set", "units.files=1", "--set", "export.windows_per_shard=40", "--stride", "3")
    outcome = command("tokenize", motion, output, "-c", tiny_codec, *sets, "--local")
    assert outcome.code == 0, outcome.text
    return output


def manifest_of(output):
    return json.loads((output / "dataset.json").read_text())


def rows_of(output):
    shards = manifest_of(output)["shards"]["parquet"]
    return [
        row | {"split": shard["split"]} for shard in shards for row in pq.read_table(output / shard["path"]).to_pylist()
    ]


def key(row):
    return row["clip_id"], row["start_frame"], row["prev_bits"], row["this_bits"], row["speaker"]


def test_export_where_keeps_what_passes_and_verifies(command, dataset, motion, tiny_codec, tmp_path):
    where = "speaker in ['anna', 'bob'] and take > 2 and start_frame >= 6"
    outcome = command("export", dataset, tmp_path / "o", "--where", where, "--local")
    assert outcome.code == 0, outcome.text
    wanted = [
        key(row)
        for row in rows_of(dataset)
        if row["speaker"] in ("anna", "bob") and row["take"] > 2 and row["start_frame"] >= 6
    ]
    assert sorted(map(key, rows_of(tmp_path / "o"))) == sorted(wanted)
    verified = command("verify", tmp_path / "o")
    assert verified.code == 0, verified.text
    deep = command("verify", tmp_path / "o", motion, "--deep", 1000, "-c", tiny_codec)
    assert deep.code == 0, deep.text
    manifest = manifest_of(tmp_path / "o")
    assert manifest["counts"]["filtered_clips"] == 40 - manifest["counts"]["clips"]
    assert manifest["drops"] == {}
    assert where in (tmp_path / "o" / "README.md").read_text()
    same = command("export", dataset, tmp_path / "p", "--where", f"  ({where}) ".replace("'", '"'), "--local")
    assert same.code == 0, same.text
    assert (tmp_path / "p" / "dataset.json").read_bytes() == (tmp_path / "o" / "dataset.json").read_bytes()
    assert command("diff", tmp_path / "o", tmp_path / "p").code == 0
    assert command("diff", tmp_path / "o", dataset).code == 1


def test_verify_finds_a_window_that_the_filter_leaves_out(command, dataset, tmp_path):
    """The same shards under the manifest of another filter: their windows are not what it promises."""
    for name, where in {"a": "start_frame >= 6", "b": "start_frame >= 3 and start_frame != 6"}.items():
        assert command("export", dataset, tmp_path / name, "--where", where, "--local").code == 0
    manifest = manifest_of(tmp_path / "a")
    manifest["export"]["where"] = "start_frame >= 3 and start_frame != 6"
    (tmp_path / "a" / "dataset.json").write_text(json.dumps(manifest))
    outcome = command("verify", tmp_path / "a")
    assert (outcome.code, "not the right ones" in outcome.text) == (1, True), outcome.text


def test_export_in_place_under_a_filter_takes_over_shards_and_verifies(command, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    before = {path: path.stat().st_mtime_ns for path in copy.glob("parquet/*/*")}
    assert command("export", copy, copy, "--where", "clip_id != 'clip25'", "--local").code == 0
    verified = command("verify", copy)
    assert verified.code == 0, verified.text
    assert "token store" not in verified.text
    shards = {copy / shard["path"] for shard in manifest_of(copy)["shards"]["parquet"]}
    assert shards & set(before)
    assert all(path.stat().st_mtime_ns == before[path] for path in shards & set(before))
    filtered = (copy / "dataset.json").read_bytes()
    assert command("export", copy, copy, "--set", "export.shuffle=global", "--local").code == 0  # the filter stays
    assert "clip25" not in {row["clip_id"] for row in rows_of(copy)}
    assert command("verify", copy).code == 0
    assert command("export", copy, copy, "--set", "export.shuffle=none", "--local").code == 0
    assert (copy / "dataset.json").read_bytes() == filtered
    assert command("export", copy, copy, "--where", "", "--local").code == 0
    assert len(rows_of(copy)) == len(rows_of(dataset))


def test_export_takes_and_leaves_out_listed_clips(command, dataset, tmp_path):
    (tmp_path / "ids.txt").write_text("".join(f"clip{n:02}\n" for n in range(12)))
    (tmp_path / "bad.txt").write_text("clip03\nclip04\n")
    lists = ("--clips", tmp_path / "ids.txt", "--exclude", tmp_path / "bad.txt")
    outcome = command("export", dataset, tmp_path / "o", *lists, "--local")
    assert outcome.code == 0, outcome.text
    found = {row["clip_id"] for row in rows_of(tmp_path / "o")}
    assert found == {f"clip{n:02}" for n in range(12)} - {"clip03", "clip04"}
    assert command("verify", tmp_path / "o").code == 0
    assert str(tmp_path) not in (tmp_path / "o" / "dataset.json").read_text()
    outcome = command("export", dataset, tmp_path / "p", "--clips", tmp_path / "none.txt", "--local")
    assert (outcome.code, "none.txt" in outcome.text) == (2, True)


def notes_of(output):
    (record,) = (output / "runs").glob("*/run.json")
    return json.loads(record.read_text())


def test_ids_that_no_clip_has_are_told(command, dataset, motion, tiny_codec, tmp_path):
    (tmp_path / "ids.txt").write_text("clip00\nclip01\n" + "".join(f"x{n}\n" for n in range(7)))
    (tmp_path / "bad.txt").write_text("clip01\n[y]\n")
    lists = ("--clips", tmp_path / "ids.txt", "--exclude", tmp_path / "bad.txt", "--local")
    outcome = command("export", dataset, tmp_path / "o", *lists)
    assert outcome.code == 0, outcome.text
    assert "export.clips names 8 ids that no clip has: [y], x0, x1, x2, x3, ..;" in outcome.text
    first = ["[y]", "x0", "x1", "x2", "x3"]
    assert notes_of(tmp_path / "o")["unknown_ids"] == {"export.clips": {"count": 8, "first": first}}
    outcome = command("tokenize", motion, tmp_path / "t", "-c", tiny_codec, *lists)
    assert outcome.code == 0, outcome.text
    first = [f"x{n}" for n in range(5)]
    assert notes_of(tmp_path / "t")["unknown_ids"] == {"input.clips": {"count": 7, "first": first}}
    (tmp_path / "ids.txt").write_text("x\n")
    outcome = command("export", dataset, tmp_path / "p", *lists)
    assert (outcome.code, "no clip is left" in outcome.text) == (65, True), outcome.text


def test_export_of_lists_in_place_wants_them_again(command, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (tmp_path / "ids.txt").write_text("clip00\nclip11\n")
    assert command("export", copy, copy, "--clips", tmp_path / "ids.txt", "--local").code == 0
    outcome = command("export", copy, tmp_path / "o", "--local")
    assert (outcome.code, "name them again" in outcome.text) == (2, True), outcome.text
    outcome = command("export", copy, tmp_path / "o", "--set", "export.clips={}", "--local")
    assert outcome.code == 0, outcome.text
    assert len(rows_of(tmp_path / "o")) == len(rows_of(dataset))


def test_splits_by_speaker_hold_each_speaker_together(command, dataset, tmp_path):
    sets = ("--set", "export.splits.by=speaker", "--set", "export.splits.ratios={train: 0.5, val: 0.5}")
    outcome = command("export", dataset, tmp_path / "o", *sets, "--set", "export.splits.salt=b", "--local")
    assert outcome.code == 0, outcome.text
    assert command("verify", tmp_path / "o").code == 0
    split_of = {}
    for row in rows_of(tmp_path / "o"):
        assert split_of.setdefault(row["speaker"], row["split"]) == row["split"]
    assert set(split_of) == {None, *SPEAKERS}
    assert set(split_of.values()) == {"train", "val"}


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--where", "speeker == 'anna'"), 2, "did you mean 'speaker'"),
        (("--where", "speaker = 'anna'"), 2, "as in Python"),
        (("--where", "take == 'anna'"), 2, "take is int64"),
        (("--where", "take > 3 or start_frame > 3"), 2, "mixes columns"),
        (("--where", "speaker == 'zoe'"), 65, "none of 40 passes"),
        (("--where", "start_frame > 10000"), 65, "none of 40 passes"),
        (("--set", "export.splits.by=speeker"), 2, "did you mean 'speaker'"),
    ],
)
def test_export_refuses_a_filter_that_cannot_be(command, dataset, tmp_path, arguments, code, expected):
    outcome = command("export", dataset, tmp_path / "o", *arguments, "--local")
    assert (outcome.code, expected in outcome.text) == (code, True), outcome.text
    assert not (tmp_path / "o" / "dataset.json").exists()
    assert command("export", dataset, tmp_path / "o", "--local").code == 0


def test_tokenize_takes_the_filter_of_its_export(command, motion, dataset, tiny_codec, tmp_path):
    sets = (*CARRY, "--set", "units.files=1", "--set", "export.windows_per_shard=40", "--stride", "3")
    job = ("tokenize", motion, tmp_path / "o", "-c", tiny_codec, *sets, "--local")
    outcome = command(*job, "--set", "export.where=speeker is None")
    assert (outcome.code, "did you mean 'speaker'" in outcome.text) == (2, True), outcome.text
    assert not (tmp_path / "o").exists()
    outcome = command(*job, "--set", "export.where=speaker is None")
    assert outcome.code == 0, outcome.text
    assert {row["speaker"] for row in rows_of(tmp_path / "o")} == {None}
    assert command("verify", tmp_path / "o").code == 0
    assert "already complete" in command(*job, "--set", "export.where=(speaker is None)").text
    assert command(*job).code == 0
    assert (tmp_path / "o" / "dataset.json").read_bytes() == (dataset / "dataset.json").read_bytes()


@pytest.mark.parametrize("shuffle", ["none", "global"])
def test_ray_and_a_plain_loop_export_the_same_bytes_of_several_datasets(
    command, dataset, tools, motion, tiny_codec, tmp_path, ray_local, shuffle
):
    (tmp_path / "more").mkdir()
    table = pq.read_table(motion / "part0.parquet")
    names = pa.array([f"more{n}" for n in range(10)])
    pq.write_table(table.set_column(0, "clip_id", names), tmp_path / "more" / "other.parquet")
    sets = (*CARRY, "--set", "units.files=1", "--stride", "3")
    assert command("tokenize", tmp_path / "more", tmp_path / "m", "-c", tiny_codec, *sets, "--local").code == 0
    where = ("--where", "speaker != 'anna' and start_frame < 30", "--set", f"export.shuffle={shuffle}")
    arguments = ("export", dataset, tmp_path / "m")
    for output, local in (("here", ["--local"]), ("ray", [])):
        outcome = command(*arguments, tmp_path / output, *where, *local)
        assert outcome.code == 0, outcome.text
        assert command("verify", tmp_path / output).code == 0
    assert tools.tree_of(tmp_path / "here") == tools.tree_of(tmp_path / "ray")
    wanted = [
        key(row)
        for source in (dataset, tmp_path / "m")
        for row in rows_of(source)
        if row["speaker"] not in ("anna", None) and row["start_frame"] < 30
    ]
    assert sorted(map(key, rows_of(tmp_path / "here"))) == sorted(wanted)


def test_export_shuffles_on_s3_to_the_same_bytes(command, dataset, s3, tmp_path):
    from pipeline.storage import Folder

    url = s3.url("selection/shuffled")
    sets = ("--set", "export.shuffle=global", "--where", "take > 1", "--local")
    assert command("export", dataset, tmp_path / "o", *sets).code == 0
    outcome = command("export", dataset, url, *sets)
    assert outcome.code == 0, outcome.text
    remote = Folder(url)
    assert remote.read("dataset.json") == (tmp_path / "o" / "dataset.json").read_bytes()
    assert remote.list_files("_store/shuffle") == []
    assert command("verify", url).code == 0


def test_export_merges_only_what_was_made_alike(command, dataset, motion, tiny_codec, tmp_path):
    """Another codec, or other columns beside the bits, are refused, and the field is named."""
    from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint

    config = BitwiseVAEConfig(
        motion_dim=4, code_dim=8, patch_nums=(1, 3, 5), hidden_dim=16, depth=1, num_heads=2, fps=25
    )
    write_checkpoint(random_checkpoint(config, [0.0] * 4, [1.0] * 4, 0), tmp_path / "other.safetensors")
    common = ("--set", "units.files=1", "--stride", "3", "--local")
    jobs = {
        "codec.patch_nums": ("-c", tmp_path / "other.safetensors", *CARRY),
        "corpus.carry": ("-c", tiny_codec, "--set", "input.carry=speaker"),
        "corpus.emit": ("-c", tiny_codec, *CARRY, "--set", "emit=latent"),
    }
    for name, arguments in jobs.items():
        output = tmp_path / name
        outcome = command("tokenize", motion, output, *arguments, *common)
        assert outcome.code == 0, outcome.text
        outcome = command("export", dataset, output, tmp_path / "o", "--local")
        assert (outcome.code, name in outcome.text) == (2, True), outcome.text
        assert not (tmp_path / "o").exists()


def test_export_refuses_a_staged_dataset(command, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    manifest = manifest_of(copy) | {"status": "staged"}
    (copy / "dataset.json").write_text(json.dumps(manifest))
    for datasets in ([copy], [dataset, copy]):
        outcome = command("export", *datasets, tmp_path / "o", "--local")
        assert (outcome.code, "staged" in outcome.text, str(copy) in outcome.text.replace(" ", "")) == (2, True, True)


def test_clean_removes_what_a_killed_shuffle_left(command, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    left = copy / "_store" / "shuffle" / "000003.bin"
    left.parent.mkdir()
    left.write_bytes(b"rows")
    assert "temporary" in command("clean", copy).text
    assert command("clean", copy, "--yes").code == 0
    assert not left.exists()
    assert command("verify", copy).code == 0


KILLED_WHILE_GATHERING = """
import os, signal, sys
from pipeline.export.shuffle import Gatherer
from jobs.cli import app

build = Gatherer.build

def killed_at_the_end_of_a_slot(self, task):
    yield next(iter(build(self, task)))
    os.kill(os.getpid(), signal.SIGKILL)

Gatherer.build = killed_at_the_end_of_a_slot
app(sys.argv[1:])
"""


def test_a_global_shuffle_that_was_killed_continues_to_the_same_bytes(command, dataset, tools, tmp_path):
    arguments = ["--set", "export.shuffle=global", "--set", "export.windows_per_shard=50", "--local"]
    words = ["export", str(dataset), str(tmp_path / "o"), *arguments]
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_GATHERING, *words], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / "o" / "_store" / "shuffle").iterdir())
    assert list((tmp_path / "o").glob("parquet/*/*"))
    assert not (tmp_path / "o" / "dataset.json").exists()
    assert command(*words).code == 0
    assert not list((tmp_path / "o" / "_store" / "shuffle").iterdir())
    assert command("export", dataset, tmp_path / "p", *arguments).code == 0
    assert tools.tree_of(tmp_path / "o") == tools.tree_of(tmp_path / "p")


def test_the_order_of_merged_datasets_means_nothing(command, tiny_codec, tools, tmp_path):
    """Files of one name in both: equal unit keys; one clip is the same in both, one has other motion."""
    for name, seeds in {"one": (1, 2), "two": (1, 3)}.items():
        (tmp_path / name).mkdir()
        for n, seed in enumerate(seeds):
            data = tools.npz_bytes(motion=tools.tiny_motion(seed, 40), fps=25)
            (tmp_path / name / f"clip{n}.npz").write_bytes(data)
        assert command("tokenize", tmp_path / name, tmp_path / f"{name}-t", "-c", tiny_codec, "--local").code == 0
    sets = ("--set", "input.duplicate_ids=suffix", "--local")
    one, two = tmp_path / "one-t", tmp_path / "two-t"
    for shuffle in ("none", "global"):
        for output, datasets in {"a": (one, two), "b": (two, one)}.items():
            place = tmp_path / f"{output}-{shuffle}"
            outcome = command("export", *datasets, place, *sets, "--set", f"export.shuffle={shuffle}")
            assert outcome.code == 0, outcome.text
        assert tools.tree_of(tmp_path / f"a-{shuffle}") == tools.tree_of(tmp_path / f"b-{shuffle}")
    assert manifest_of(tmp_path / "a-none")["counts"]["clips"] == 3
    assert manifest_of(tmp_path / "a-none")["drops"] == {"duplicate_id": 1}


def test_null_puts_the_default_in_the_place_of_a_number(command, dataset, tmp_path):
    few = ("--set", "export.windows_per_shard=60")
    assert command("export", dataset, tmp_path / "few", *few, "--local").code == 0
    for name, words in {"kept": (), "default": ("--set", "export.windows_per_shard=null")}.items():
        assert command("export", dataset, tmp_path / name, *words, "--local").code == 0
    assert manifest_of(tmp_path / "few")["export"]["windows_per_shard"] == 60
    assert manifest_of(tmp_path / "default")["export"]["windows_per_shard"] == 16_384
