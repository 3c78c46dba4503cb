"""The publish gate: what decodes well is complete, what does not is staged, and the reason is said."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

from pipeline.dataset.manifest import read_manifest
from pipeline.storage import Folder

SETS = ("--set", "units.files=4", "--set", "export.windows_per_shard=40", "--gate", "enforce")


@pytest.fixture(scope="module")
def codecs(tmp_path_factory, quality_corpus):
    return quality_corpus.write_codecs(tmp_path_factory.mktemp("codecs"))


@pytest.fixture(scope="module")
def motion(tmp_path_factory, quality_corpus):
    return quality_corpus.write_corpus(tmp_path_factory.mktemp("gate") / "motion")


@pytest.fixture
def tokenize(command, motion, codecs, tmp_path):
    def run(codec="good", *extra, source=motion, output="tokens"):
        return command("tokenize", source, tmp_path / output, "-c", codecs[codec], *SETS, *extra, "--local")

    return run


def manifest_of(output):
    return json.loads((output / "dataset.json").read_text())


def test_a_codec_with_a_record_is_complete(tokenize, command, tmp_path):
    outcome = tokenize()
    assert outcome.code == 0, outcome.text
    found = manifest_of(tmp_path / "tokens")
    assert (found["status"], found["gate"]["outcome"], found["gate"]["failed"]) == ("complete", "passed", [])
    assert 0.2 < found["gate"]["reference"]["fraction_of_mean"] < 0.4
    record = json.loads(next((tmp_path / "tokens").glob("runs/*/run.json")).read_text())
    assert 0.2 < record["gate"]["fraction_of_own_mean"] < 0.4
    assert record["gate"]["windows"] == 64
    assert "already complete" in tokenize().text
    assert command("export", tmp_path / "tokens", tmp_path / "copy", "--format", "parquet", "--local").code == 0
    assert manifest_of(tmp_path / "copy")["status"] == "complete"
    assert manifest_of(tmp_path / "copy")["gate"] == found["gate"]


def test_gate_with_ray_gives_the_same_bytes(tokenize, command, motion, codecs, tools, tmp_path, ray_local):
    assert tokenize().code == 0
    outcome = command("tokenize", motion, tmp_path / "ray", "-c", codecs["good"], *SETS, "--workers", 2)
    assert outcome.code == 0, outcome.text
    assert tools.tree_of(tmp_path / "ray") == tools.tree_of(tmp_path / "tokens")


def test_a_codec_without_a_record_is_unrated(tokenize, tmp_path):
    assert tokenize("without_record").code == 0
    found = manifest_of(tmp_path / "tokens")
    assert (found["status"], found["gate"]["outcome"]) == ("unrated", "passed_without_reference")
    assert found["gate"]["reference"] is None


@pytest.mark.parametrize(
    ("codec", "failed", "reason"),
    [
        ("random", ["mean"], "untrained"),
        ("swapped", ["error", "mean"], "keeping the mean"),
        ("swapped_without_record", ["mean"], "keeping the mean"),
        ("other_weights", ["digest"], "built-in sample"),
        ("of_degrees", ["mean"], "head_pose"),
    ],
)
def test_a_wrong_codec_stays_staged(tokenize, command, tmp_path, codec, failed, reason):
    outcome = tokenize(codec)
    assert (outcome.code, "staged" in outcome.text, reason in outcome.text) == (65, True, True), outcome.text
    found = manifest_of(tmp_path / "tokens")
    assert (found["status"], found["gate"]["outcome"]) == ("staged", "failed")
    assert set(failed) <= set(found["gate"]["failed"])
    refused = command("export", tmp_path / "tokens", tmp_path / "copy", "--local")
    assert (refused.code, "staged" in refused.text) == (2, True)


def test_a_wrong_schedule_of_equal_length_is_seen_by_the_digest_alone(
    tokenize, command, motion, codecs, tmp_path, quality_corpus
):
    (tmp_path / "other.json").write_text(json.dumps({"patch_nums": quality_corpus.OTHER_SCHEDULE}))
    outcome = tokenize("good", "--model-config", tmp_path / "other.json")
    assert (outcome.code, "schedule" in outcome.text) == (65, True), outcome.text
    assert manifest_of(tmp_path / "tokens")["gate"]["failed"] == ["digest"]
    (tmp_path / "good.json").write_text(json.dumps({"patch_nums": quality_corpus.CONFIG.patch_nums}))
    outcome = tokenize("good", "--model-config", tmp_path / "good.json", output="right")
    assert outcome.code == 0, outcome.text


@pytest.mark.parametrize("columns", [(2, 4), (0, 4)])
def test_motion_in_degrees_is_caught(tokenize, tmp_path, quality_corpus, columns):
    scale = np.ones(4)
    scale[slice(*columns)] = 180 / np.pi
    source = quality_corpus.write_corpus(tmp_path / "degrees", scale=scale)
    for codec in ("good", "without_record"):
        outcome = tokenize(codec, source=source, output=codec)
        assert (outcome.code, "degrees" in outcome.text) == (65, True), outcome.text


@pytest.mark.parametrize("scale", [0.5, 1.6])
def test_calmer_and_livelier_motion_pass(tokenize, tmp_path, quality_corpus, scale):
    source = tmp_path / "other"
    quality_corpus.write_corpus(source)
    for path in source.iterdir():
        with np.load(path) as file:
            moved = (file["motion"] - quality_corpus.MEANS) * scale + quality_corpus.MEANS
        np.savez(path, motion=moved.astype(np.float32), fps=25.0)
    outcome = tokenize(source=source)
    assert outcome.code == 0, outcome.text


def test_a_column_that_never_moves_does_not_fail_the_gate(tokenize, tmp_path, quality_corpus):
    source = quality_corpus.write_corpus(tmp_path / "still", scale=(1, 1, 0, 0))
    for path in source.iterdir():
        with np.load(path) as file:
            motion = file["motion"] + np.float32([0, 0, quality_corpus.MEANS[2], quality_corpus.MEANS[3]])
        np.savez(path, motion=motion, fps=25.0)
    outcome = tokenize(source=source)
    assert outcome.code == 0, outcome.text


def test_gate_says_again_what_is_wrong_and_warn_and_off_publish(tokenize, tmp_path):
    assert tokenize("random").code == 65
    again = tokenize("random")
    assert (again.code, "already complete" in again.text) == (65, False)
    warned = tokenize("random", "--gate", "warn")
    assert (warned.code, "untrained" in warned.text) == (0, True), warned.text
    found = manifest_of(tmp_path / "tokens")
    assert (found["status"], found["gate"]["mode"], found["gate"]["outcome"]) == ("unrated", "warn", "failed")
    off = tokenize("random", "--gate", "off")
    assert (off.code, "untrained" in off.text) == (0, False)
    found = manifest_of(tmp_path / "tokens")
    assert (found["status"], found["gate"]["outcome"]) == ("unrated", "not_run")
    assert "already complete" in tokenize("random", "--gate", "off").text


def test_a_bad_increment_leaves_the_published_dataset_and_stands_staged(
    tokenize, command, motion, tools, tmp_path, quality_corpus
):
    source, output = tmp_path / "motion", tmp_path / "tokens"
    shutil.copytree(motion, source)
    assert tokenize(source=source).code == 0
    before = tools.tree_of(output)
    degrees = quality_corpus.write_corpus(tmp_path / "degrees", 20, (1, 1, 180 / np.pi, 180 / np.pi), first=20)
    for path in degrees.iterdir():
        shutil.copy(path, source)
    for _ in range(2):
        outcome = tokenize(source=source)
        assert (outcome.code, "degrees" in outcome.text) == (65, True), outcome.text
        standing = tools.tree_of(output)
        assert {path: standing[path] for path in before} == before
        staged = json.loads(standing["staged.json"])
        assert (staged["status"], staged["gate"]["outcome"]) == ("staged", "failed")
        assert staged["counts"]["clips"] == 40
        assert {shard["path"] for shards in staged["shards"].values() for shard in shards} <= set(standing)
        assert command("verify", output).code == 0
        assert command("clean", output, "--keep", "1", "--yes").code == 0
        version = hashlib.sha256(standing["staged.json"]).hexdigest()[:16]
        assert command("verify", output / "versions" / f"{version}.json").code == 0
    for path in degrees.iterdir():
        (source / path.name).unlink()
    quality_corpus.write_corpus(source, 20, first=20)
    assert tokenize(source=source).code == 0
    assert not (output / "staged.json").exists()
    assert (manifest_of(output)["status"], manifest_of(output)["counts"]["clips"]) == ("complete", 40)
    assert command("verify", output).code == 0


def test_max_flip_rate_makes_stability_a_part_of_the_gate(tokenize, tmp_path):
    assert tokenize("good", "--set", "max_flip_rate=1e-3").code == 0
    outcome = tokenize("good", "--precision", "bfloat16", "--set", "max_flip_rate=0", output="half")
    assert (outcome.code, "bfloat16 / float64" in outcome.text) == (65, True), outcome.text
    assert manifest_of(tmp_path / "half")["gate"]["failed"] == ["flips"]


def test_max_error_ratio_says_how_much_worse_is_allowed(tokenize, quality_corpus, tmp_path):
    source = quality_corpus.write_corpus(tmp_path / "noisy")
    rng = np.random.default_rng(0)
    for path in source.iterdir():
        with np.load(path) as file:
            noise = rng.normal(size=file["motion"].shape) * quality_corpus.SIZES
            np.savez(path, motion=(file["motion"] + noise).astype(np.float32), fps=25.0)
    strict = tokenize("good", "--set", "max_error_ratio=1.2", source=source, output="strict")
    assert (strict.code, "times as far off as the checkpoint recorded" in strict.text) == (65, True), strict.text
    assert tokenize("good", "--set", "max_error_ratio=3", source=source, output="wide").code == 0


def test_dataset_json_from_before_the_gate_is_read_as_it_is(tokenize, tmp_path):
    assert tokenize("good", "--gate", "off").code == 0
    path = tmp_path / "tokens" / "dataset.json"
    tree = manifest_of(tmp_path / "tokens")
    del tree["gate"]
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    manifest = read_manifest(Folder(str(tmp_path / "tokens")))
    assert manifest is not None
    assert manifest.gate is None
    assert manifest.to_bytes() == path.read_bytes()


def test_gate_refuses_other_words(command, motion, codecs, tmp_path):
    outcome = command("tokenize", motion, tmp_path / "o", "-c", codecs["good"], "--gate", "maybe", "--local")
    assert (outcome.code, "enforce" in outcome.text) == (2, True)


def test_the_shipped_arkit_codec_passes_its_own_gate(command, face_motion, tmp_path):
    sets = ("--set", "input.motion_field=values", "--set", "input.resample=linear", "--gate", "enforce")
    takes = face_motion / "arkit_iphone"
    outcome = command("tokenize", takes, tmp_path / "tokens", "-c", "demo-arkit", *sets, "--local")
    assert outcome.code == 0, outcome.text
    found = manifest_of(tmp_path / "tokens")
    assert (found["status"], found["gate"]["outcome"]) == ("complete", "passed")
    assert found["counts"]["clips"] == len(list(takes.glob("*.npz")))
    record = json.loads(next((tmp_path / "tokens").glob("runs/*/run.json")).read_text())
    assert record["gate"]["fraction_of_mean"] < 0.4


def test_the_shipped_flame_codec_passes_its_own_gate(command, face_motion, tmp_path):
    take = face_motion / "flame106"
    sets = ("--set", "input.resample=linear", "--gate", "enforce")
    outcome = command("tokenize", take, tmp_path / "tokens", "-c", "demo", *sets, "--local")
    assert outcome.code == 0, outcome.text
    found = manifest_of(tmp_path / "tokens")
    assert (found["status"], found["gate"]["outcome"], found["counts"]["windows"]) == ("complete", "passed", 16)
    assert found["gate"]["reference"]["fraction_of_mean"] == pytest.approx(0.1877, abs=1e-4)
    record = json.loads(next((tmp_path / "tokens").glob("runs/*/run.json")).read_text())
    assert record["gate"]["fraction_of_mean"] < 0.25
