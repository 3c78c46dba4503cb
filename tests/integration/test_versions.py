"""Versions of one output: old ones stay readable, a kill between two leaves the old one whole, shards are reused."""

from __future__ import annotations

import hashlib
import json
import os
from threading import Lock

import pytest

from pipeline.export.build import ShardBuilder
from pipeline.storage.files import LocalFiles


@pytest.fixture
def motion(tools, tmp_path):
    (tmp_path / "motion").mkdir()
    for n in range(8):
        write_clip(tools, tmp_path / "motion", n, seed=n)
    return tmp_path / "motion"


@pytest.fixture
def tokenize(command, motion, tiny_codec, tmp_path):
    """Run the job on `motion`, one unit a file and about two shards' worth of windows, into `tokens`."""

    def run(*extra, output="tokens"):
        sets = ("--set", "units.files=1", "--set", "export.windows_per_shard=8", "--local")
        return command("tokenize", motion, tmp_path / output, "-c", tiny_codec, *sets, *extra)

    return run


@pytest.fixture
def built(monkeypatch):
    """The number of shards that are built, as it grows."""
    sizes = []
    publish = ShardBuilder.publish_shard

    def counted(self, index, split, tokens, **kind):
        sizes.append(tokens.num_rows)
        return publish(self, index, split, tokens, **kind)

    monkeypatch.setattr(ShardBuilder, "publish_shard", counted)
    return sizes


def write_clip(tools, folder, number, seed, num_frames=30):
    data = tools.npz_bytes(motion=tools.tiny_motion(seed, num_frames), fps=25)
    (folder / f"clip{number}.npz").write_bytes(data)


def version_of(output):
    return json.loads(max(output.glob("runs/*/run.json")).read_text())["version"]


def current(output):
    return json.loads((output / "dataset.json").read_text())


def promised(tools, output):
    """Every promised byte but those of other versions."""
    return {name: data for name, data in tools.tree_of(output).items() if not name.startswith("versions/")}


def test_an_old_version_stays_readable(command, tokenize, motion, tools, tmp_path):
    assert tokenize().code == 0
    old = tmp_path / "tokens" / "versions" / f"{version_of(tmp_path / 'tokens')}.json"
    (motion / "clip3.npz").unlink()
    write_clip(tools, motion, 5, seed=55, num_frames=44)
    assert tokenize().code == 0
    assert command("verify", old).code == 0
    outcome = command("diff", old, tmp_path / "tokens")
    assert outcome.code == 1
    assert "clip3" in outcome.text
    assert command("diff", old, old).code == 0
    assert command("verify", old.with_name("0123456789abcdef.json")).code == 1


@pytest.mark.parametrize("moment", range(0, 26, 2))
def test_a_kill_at_any_write_of_a_publication_leaves_the_old_version_whole(
    command, tokenize, motion, tools, tmp_path, monkeypatch, moment
):
    output = tmp_path / "tokens"
    assert tokenize().code == 0
    write_clip(tools, motion, 5, seed=55, num_frames=44)
    assert tokenize(output="fresh").code == 0
    before = current(output)
    writes, one_at_a_time = [], Lock()
    commit = LocalFiles.commit

    def commit_or_die(self, path, staged):
        with one_at_a_time:
            if not (path.startswith("runs/") or "contract.json" in path or "plans/" in path):
                if len(writes) >= moment:
                    raise RuntimeError("killed")
                writes.append(path)
            commit(self, path, staged)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "commit", commit_or_die)
        assert tokenize().code == (70 if len(writes) >= moment else 0)
    verified = command("verify", output)
    assert verified.code == 0, verified.text
    assert current(output) == before or "dataset.json" in writes
    assert tokenize().code == 0
    assert promised(tools, output) == promised(tools, tmp_path / "fresh") | old_shards(before, output)


def old_shards(manifest, output):
    return {
        shard["path"]: (output / shard["path"]).read_bytes()
        for shards in manifest["shards"].values()
        for shard in shards
    }


def test_verify_tells_a_note_from_damage(command, tokenize, motion, tools, tmp_path, monkeypatch):
    output = tmp_path / "tokens"
    assert tokenize().code == 0
    write_clip(tools, motion, 5, seed=55, num_frames=44)
    before, commit = current(output), LocalFiles.commit

    def die_before_the_manifest(self, path, staged):
        if path == "dataset.json":
            raise RuntimeError("killed")
        commit(self, path, staged)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "commit", die_before_the_manifest)
        assert tokenize().code == 70
    assert current(output) == before
    outcome = command("verify", output)
    assert (outcome.code, "whose publication was interrupted" in outcome.text) == (0, True), outcome.text
    (output / "README.md").write_text("mine")
    outcome = command("verify", output)
    assert (outcome.code, "README.md: altered" in outcome.text) == (1, True)


def test_only_shards_of_changed_units_are_built(command, tokenize, motion, tools, tmp_path, built):
    output = tmp_path / "tokens"
    assert tokenize().code == 0
    num_shards = len(current(output)["shards"]["parquet"])
    assert len(built) == num_shards >= 4
    built.clear()
    write_clip(tools, motion, 5, seed=55, num_frames=30)
    assert tokenize().code == 0
    assert len(built) == 1
    assert command("verify", output).code == 0
    assert tokenize(output="fresh").code == 0
    assert current(output)["shards"] == current(tmp_path / "fresh")["shards"]


def test_a_shard_that_is_gone_is_built_again(command, tokenize, tmp_path, built):
    output = tmp_path / "tokens"
    assert tokenize().code == 0
    shard = output / current(output)["shards"]["webdataset"][0]["path"]
    data = shard.read_bytes()
    shard.unlink()
    built.clear()
    assert tokenize().code == 0
    assert len(built) == 1
    assert shard.read_bytes() == data


def test_other_export_settings_build_anew(command, tokenize, tmp_path, built):
    assert tokenize().code == 0
    built.clear()
    assert tokenize("--set", "export.shuffle=shard").code == 0
    assert len(built) == len(current(tmp_path / "tokens")["shards"]["parquet"])
    assert command("verify", tmp_path / "tokens").code == 0


def test_content_that_changed_under_the_same_stamp_is_seen(command, tokenize, motion, tools, tmp_path, built):
    """A replay gives fragments free: what it reads then may differ although no file looks changed."""
    output = tmp_path / "tokens"
    assert tokenize().code == 0
    path = motion / "clip5.npz"
    status = path.stat()
    write_clip(tools, motion, 5, seed=77, num_frames=30)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "already complete" in tokenize().text
    for fragment in output.glob("_store/*/fragments/*/*"):
        fragment.unlink()
    built.clear()
    assert tokenize().code == 0
    assert len(built) == 1
    assert command("verify", output).code == 0


def test_a_run_killed_between_dataset_and_record_is_told_by_the_next(command, tokenize, tmp_path):
    output = tmp_path / "tokens"
    sets = ("--set", "run.report=true")
    assert tokenize(*sets).code == 0
    version = version_of(output)
    for path in [*output.glob("runs/*/run.json"), *output.glob("report/*")]:
        path.unlink()
    (output / "report" / "metrics.json").write_text('{"version": "of the dataset before"}')
    outcome = tokenize(*sets)
    assert (outcome.code, "already complete" in outcome.text) == (0, True)
    records = [json.loads(path.read_text()) for path in output.glob("runs/*/run.json")]
    assert [record["version"] for record in records] == [version]
    assert json.loads((output / "report" / "metrics.json").read_text())["version"] == version
    assert "<html" in (output / "report" / "report.html").read_text()
    assert tokenize(*sets).code == 0
    assert len(list(output.glob("runs/*/run.json"))) == 1
    assert "1 of" not in command("clean", output).text


def test_a_shard_is_named_by_eighty_bits_of_its_content(tokenize, tmp_path):
    assert tokenize("--set", "export.formats=[parquet,webdataset]").code == 0
    shards = [shard for files in current(tmp_path / "tokens")["shards"].values() for shard in files]
    assert len(shards) >= 4
    for shard in shards:
        digits = shard["path"].rpartition("-")[2].partition(".")[0]
        assert len(digits) == 80 // 4
        data = (tmp_path / "tokens" / shard["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert shard["sha256"].startswith(digits)
