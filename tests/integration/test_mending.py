"""Damage, changes and odd places between runs: the same command mends, or says what to do."""

from __future__ import annotations

import json
import os

import pyarrow.parquet as pq
import pytest

from pipeline.stages.read import UnitReader


@pytest.fixture
def motion(tools, tmp_path):
    (tmp_path / "motion").mkdir()
    for n in range(6):
        data = tools.npz_bytes(motion=tools.tiny_motion(n, 20 + 5 * n), fps=25)
        (tmp_path / "motion" / f"clip{n}.npz").write_bytes(data)
    return tmp_path / "motion"


@pytest.fixture
def tokenize(command, motion, tiny_codec, tmp_path):
    """Run the job on `motion`, one unit a file, into `tokens`; extra arguments are passed on."""

    def run(*extra, output="tokens"):
        sets = ("--set", "units.files=1", "--set", "export.splits.ratios={train: 1}")
        return command("tokenize", motion, tmp_path / output, "-c", tiny_codec, *sets, *extra, "--local")

    return run


def test_a_removed_clip_leaves_the_next_version_and_verify_agrees(command, tokenize, motion, tmp_path):
    assert tokenize().code == 0
    (motion / "clip3.npz").unlink()
    assert tokenize().code == 0
    assert command("verify", tmp_path / "tokens").code == 0
    assert "already complete" in tokenize().text
    clips = pq.read_table(tmp_path / "tokens/index/clips.parquet")["clip_id"].to_pylist()
    assert sorted(clips) == ["clip0", "clip1", "clip2", "clip4", "clip5"]


def test_a_changed_clip_is_encoded_again_alone(command, tokenize, motion, tools, tmp_path):
    assert tokenize().code == 0
    (motion / "clip3.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(9, 60), fps=25))
    assert tokenize().code == 0
    assert command("verify", tmp_path / "tokens").code == 0
    record = json.loads(max((tmp_path / "tokens").glob("runs/*/run.json"), key=os.path.getmtime).read_text())
    assert record["counts"]["units"] == 1
    assert tokenize(output="fresh").code == 0
    assert tools.tree_of(tmp_path / "fresh")["dataset.json"] == (tmp_path / "tokens" / "dataset.json").read_bytes()


@pytest.mark.parametrize("pattern", ["parquet/*/*", "webdataset/*/*.tar", "index/clips.parquet", "README.md"])
def test_a_missing_file_is_written_again(command, tokenize, tools, tmp_path, pattern):
    assert tokenize().code == 0
    before = tools.tree_of(tmp_path / "tokens")
    next((tmp_path / "tokens").glob(pattern)).unlink()
    assert command("verify", tmp_path / "tokens").code == 1
    assert tokenize().code == 0
    assert tools.tree_of(tmp_path / "tokens") == before
    assert command("verify", tmp_path / "tokens").code == 0


def test_a_shard_altered_in_place_is_written_again_by_an_export(command, tokenize, tools, tmp_path):
    assert tokenize().code == 0
    before = tools.tree_of(tmp_path / "tokens")
    shard = next((tmp_path / "tokens").glob("parquet/*/*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert command("verify", tmp_path / "tokens").code == 1
    (tmp_path / "tokens" / "dataset.json").unlink()
    assert tokenize().code == 0
    assert tools.tree_of(tmp_path / "tokens") == before


def test_a_damaged_fragment_is_named_and_computed_again(command, tokenize, tmp_path):
    assert tokenize().code == 0
    fragment = next((tmp_path / "tokens").glob("_store/*/fragments/*/*"))
    whole = fragment.read_bytes()
    for harm in (
        whole[:100],
        whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
    ):
        fragment.write_bytes(harm)
        outcome = command("verify", tmp_path / "tokens")
        assert (outcome.code, fragment.name in outcome.text.replace(" ", "")) == (1, True)
        (tmp_path / "tokens" / "dataset.json").unlink()
        outcome = tokenize()
        assert outcome.code == 0
        assert fragment.name in outcome.text.replace(" ", "")
        assert "damaged and are computed again" in outcome.text
        assert fragment.read_bytes() == whole
        assert command("verify", tmp_path / "tokens").code == 0


def test_an_export_names_a_fragment_that_is_damaged_or_missing(command, tokenize, tmp_path):
    assert tokenize().code == 0
    fragment = next((tmp_path / "tokens").glob("_store/*/fragments/*/*"))
    fragment.write_bytes(fragment.read_bytes()[:-1] + b"?")
    outcome = command("export", tmp_path / "tokens", tmp_path / "other", "--local")
    assert (outcome.code, fragment.name in outcome.text.replace(" ", "")) == (65, True)
    assert "delete it" in outcome.text
    fragment.unlink()
    outcome = command("export", tmp_path / "tokens", tmp_path / "other", "--local")
    assert (outcome.code, fragment.name in outcome.text.replace(" ", "")) == (75, True)
    assert tokenize().code == 0
    assert command("export", tmp_path / "tokens", tmp_path / "other", "--local").code == 0


def test_input_that_changes_under_the_reader_is_not_published(command, tokenize, motion, tools, tmp_path, monkeypatch):
    raw_clips = UnitReader.raw_clips

    def read_and_touch(self, unit):
        yield from raw_clips(self, unit)
        if unit.parts[0].path == "clip2.npz":
            (motion / "clip2.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(8, 70), fps=25))

    monkeypatch.setattr(UnitReader, "raw_clips", read_and_touch)
    outcome = tokenize()
    assert outcome.code == 75
    assert "clip2.npz" in outcome.text
    assert not (tmp_path / "tokens" / "dataset.json").exists()
    monkeypatch.undo()
    assert tokenize().code == 0
    assert command("verify", tmp_path / "tokens").code == 0


def test_an_output_inside_the_input_is_never_read_as_motion(command, tiny_codec, motion):
    arguments = ("tokenize", motion, motion / "tokens", "-c", tiny_codec, "--local")
    assert command(*arguments).code == 0
    assert "already complete" in command(*arguments).text
    assert command("tokenize", motion, motion, "-c", tiny_codec, "--local").code == 2


def test_odd_outputs_are_refused(command, tokenize, motion, tiny_codec, tmp_path):
    (tmp_path / "file").write_text("x")
    for output in ("file", "file/below"):
        outcome = tokenize(output=output)
        assert (outcome.code, "file" in outcome.text, "Traceback" in outcome.text) == (2, True, False), outcome.text
    outcome = command("tokenize", motion, "foo://bar/x", "-c", tiny_codec, "--local")
    assert (outcome.code, "foo" in outcome.text) == (2, True)
    assert tokenize(output="odd [red]na[/b]me").code == 0
    assert "odd [red]na[/b]me" in tokenize("--stride", "3", output="odd [red]na[/b]me").text


def test_a_shuffled_export_leaves_no_stale_lists(command, tokenize, tmp_path):
    assert tokenize("--set", "export.shuffle=shard").code == 0
    assert (tmp_path / "tokens/index/windows.parquet").exists()
    assert (tmp_path / "tokens/webdataset/train/shards.txt").exists()
    assert tokenize("--format", "parquet").code == 0
    assert not (tmp_path / "tokens/index/windows.parquet").exists()
    assert not (tmp_path / "tokens/webdataset/train/shards.txt").exists()
    assert command("verify", tmp_path / "tokens").code == 0


def test_export_keeps_the_sources_way_of_exporting(command, tokenize, tmp_path):
    assert tokenize("--set", "export.splits.ratios={train: 0.5, val: 0.5}", "--set", "export.splits.salt=s").code == 0
    assert command("export", tmp_path / "tokens", tmp_path / "o", "--format", "webdataset", "--local").code == 0
    manifests = [json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("tokens", "o")]
    assert manifests[0]["splits"] == manifests[1]["splits"]
    listed = {"train": ["clip0", "clip1"], "val": ["clip2"]}
    (tmp_path / "splits.json").write_text(json.dumps(listed))
    by_file = ("--set", "export.splits.by=file", "--set", f"export.splits.file={tmp_path}/splits.json")
    assert command("export", tmp_path / "tokens", tmp_path / "tokens", *by_file, "--local").code == 0
    assert command("export", tmp_path / "tokens", tmp_path / "p", "--local").code == 0
    splits = json.loads((tmp_path / "p" / "dataset.json").read_text())["splits"]
    assert {name: split["clips"] for name, split in splits.items()} == {"train": 2, "val": 1, "unlisted": 3}


def test_a_stopped_export_continues(command, tokenize, tools, tmp_path):
    assert tokenize().code == 0
    arguments = ("export", tmp_path / "tokens", tmp_path / "o", "--local")
    assert command(*arguments).code == 0
    before = tools.tree_of(tmp_path / "o")
    (tmp_path / "o" / "dataset.json").unlink()
    assert command(*arguments).code == 0
    assert tools.tree_of(tmp_path / "o") == before
    assert tokenize(output="second").code == 0
    outcome = command("export", tmp_path / "second", tmp_path / "o", "--local")
    assert (outcome.code, "another dataset" in outcome.text) == (2, True)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", "ünï", "a-b", "unlisted"])
def test_split_names_from_a_file_are_checked(command, tokenize, tmp_path, name):
    (tmp_path / "splits.json").write_text(json.dumps({name: ["clip0"]}))
    sets = ("--set", "export.splits.by=file", "--set", f"export.splits.file={tmp_path}/splits.json")
    outcome = tokenize(*sets)
    assert outcome.code == 2, outcome.text
    assert "split" in outcome.text


def test_more_workers_than_gpus_are_refused():
    from pipeline.errors import ConfigError
    from pipeline.executors.executor import Executor
    from pipeline.job.request import prepare
    from pipeline.settings.job_config import TokenizeRequest, load_config

    nothing = lambda *args: None  # noqa: E731
    executor = Executor("ray", nothing, nothing, nothing, nothing, nothing, nothing, 8.0, 2.0)
    request = TokenizeRequest(("x",), "y", "z", None, None, load_config(None, ["run.workers=4"]))
    with pytest.raises(ConfigError, match="2 GPUs"):
        prepare(request, executor)


def edited(change):
    def damage(output):
        path = output / "dataset.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text)

    return damage


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(shards={}),
        lambda m: m["shards"].pop("webdataset"),
        lambda m: m["counts"].update(windows=123456),
        lambda m: m.update(drops={"non_finite": 3}),
        lambda m: m.update(spec_id="0" * 16),
        lambda m: m.update(export_id="0" * 16),
        lambda m: m.update(status="complete"),
        lambda m: m["splits"]["train"].update(clips=1),
        lambda m: m.update(files=[file for file in m["files"] if file["path"] != "constants.npz"]),
    ],
)
def test_verify_does_not_believe_an_edited_manifest(command, tokenize, tmp_path, change):
    assert tokenize().code == 0
    assert command("export", tmp_path / "tokens", tmp_path / "o", "--local").code == 0
    edited(change)(tmp_path / "o")
    outcome = command("verify", tmp_path / "o")
    assert outcome.code == 1, outcome.text
    assert "dataset.json" in outcome.text


def test_verify_of_a_torn_manifest_is_wrong_data(command, tokenize, tmp_path):
    assert tokenize().code == 0
    path = tmp_path / "tokens" / "dataset.json"
    path.write_text(path.read_text()[:500])
    assert command("verify", tmp_path / "tokens").code == 1


def test_one_missing_fragment_is_one_finding(command, tokenize, tmp_path):
    assert tokenize().code == 0
    next((tmp_path / "tokens").glob("_store/*/fragments/*/*")).unlink()
    assert "1 finding -" in command("verify", tmp_path / "tokens").text


def test_a_suffix_that_is_taken_grows(command, tools, tiny_codec, tmp_path):
    import numpy as np

    folder = tmp_path / "motion"
    folder.mkdir()

    def write(name, clip_id, seed):
        arrays = {"motion": tools.tiny_motion(seed, 30), "fps": 25, "clip_id": np.array(clip_id)}
        (folder / f"{name}.npz").write_bytes(tools.npz_bytes(**arrays))

    write("x", "a", 1)
    write("y", "a", 2)
    sets = ("--set", "input.duplicate_ids=suffix", "--local")
    assert command("tokenize", folder, tmp_path / "o", "-c", tiny_codec, *sets).code == 0
    taken = next(i for i in pq.read_table(tmp_path / "o/index/clips.parquet")["clip_id"].to_pylist() if "~" in i)
    write("z", taken, 3)
    assert command("tokenize", folder, tmp_path / "p", "-c", tiny_codec, *sets).code == 0
    assert command("verify", tmp_path / "p").code == 0


def test_credentials_stay_out_of_messages(command, motion, tmp_path):
    outcome = command(
        "tokenize", motion, tmp_path / "o", "-c", "x.pt", "--set", "run.storage_options=AKIASECRET", "--local"
    )
    assert (outcome.code, "AKIASECRET" in outcome.text) == (2, False)
