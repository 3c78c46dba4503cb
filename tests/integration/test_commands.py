"""The commands on datasets that stand: clean, diff, deep verification, replay, and the limit of drops."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint
from pipeline.dataset.fragment import fragment_to_bytes
from pipeline.dataset.open_dataset import OpenDataset, open_dataset
from pipeline.dataset.token_store import TokenStore
from pipeline.export.build import ShardBuilder
from pipeline.run.ownership import heartbeat_here
from pipeline.storage import Folder
from pipeline.verify.compare import compare_datasets

HOUR_S = 3600


def write_clip(tools, folder, name, seed, num_frames=30):
    folder.mkdir(exist_ok=True)
    data = tools.npz_bytes(motion=tools.tiny_motion(seed, num_frames), fps=25)
    (folder / f"{name}.npz").write_bytes(data)


@pytest.fixture
def motion(tools, tmp_path):
    for n in range(6):
        write_clip(tools, tmp_path / "motion", f"clip{n}", n, 20 + 5 * n)
    return tmp_path / "motion"


@pytest.fixture
def tokenize(command, motion, tiny_codec, tmp_path):
    """Run the job on `motion`, one unit a file, into `tokens`; extra arguments are passed on."""

    def run(*extra, output="tokens", checkpoint=tiny_codec):
        sets = ("--set", "units.files=1", "--set", "export.splits.ratios={train: 1}")
        return command("tokenize", motion, tmp_path / output, "-c", checkpoint, *sets, *extra, "--local")

    return run


@pytest.fixture
def five_versions(tokenize, motion, tools, tmp_path):
    """An output of five versions, each a minute after the one before; returns them, oldest first."""
    output, versions = tmp_path / "tokens", []
    for n in range(5):
        write_clip(tools, motion, "clip0", 50 + n, 40 + n)
        assert tokenize().code == 0
        path = max(output.glob("runs/*/run.json"), key=os.path.getmtime)
        record = json.loads(path.read_text())
        versions.append(record["version"])
        path.write_text(json.dumps({**record, "finished": f"2026-01-01T00:0{n}:00+00:00"}))
    return versions


def files_of(output):
    return {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}


def names_of(folder):
    return {path.stem for path in folder.glob("*.json")}


def shards_of(output, version):
    tree = json.loads((output / "versions" / f"{version}.json").read_text())
    return {shard["path"] for shards in tree["shards"].values() for shard in shards}


def test_clean_is_dry_at_first_and_then_keeps_three_versions(command, tokenize, five_versions, tmp_path):
    output = tmp_path / "tokens"
    before = files_of(output)
    outcome = command("clean", output)
    assert outcome.code == 0, outcome.text
    assert "nothing was deleted; add --yes" in outcome.text
    assert "versions 2 files" in outcome.text
    assert files_of(output) == before

    outcome = command("clean", output, "--yes")
    assert outcome.code == 0, outcome.text
    gone = before - files_of(output)
    kinds = Counter("fragments" if "/fragments/" in path else path.split("/")[0] for path in gone)
    assert kinds == {"versions": 2 + 2 * 6, "parquet": 2, "webdataset": 2, "fragments": 2, "_store": 4}
    assert names_of(output / "versions") == set(five_versions[2:])
    for version in five_versions[2:]:
        assert shards_of(output, version) <= files_of(output)
    assert command("verify", output).code == 0
    assert "already complete" in tokenize().text
    assert "nothing to delete" in command("clean", output, "--yes").text


def test_clean_keep_one_leaves_what_a_fresh_run_writes(command, tokenize, five_versions, tools, tmp_path):
    assert command("clean", tmp_path / "tokens", "--keep", "1", "--yes").code == 0
    assert tokenize(output="fresh").code == 0
    assert tools.tree_of(tmp_path / "tokens") == tools.tree_of(tmp_path / "fresh")
    assert command("verify", tmp_path / "tokens").code == 0
    assert command("clean", tmp_path / "tokens", "--keep", "0").code == 2


def test_clean_keeps_versions_that_no_run_record_dates(command, five_versions, tmp_path):
    shutil.rmtree(tmp_path / "tokens" / "runs")
    outcome = command("clean", tmp_path / "tokens", "--keep", "1", "--yes")
    assert (outcome.code, "4 of them of unknown age" in outcome.text) == (0, True)
    assert names_of(tmp_path / "tokens" / "versions") == set(five_versions)


def test_clean_dates_versions_of_exports_too(command, tokenize, tmp_path):
    output = tmp_path / "tokens"
    assert tokenize().code == 0
    for size in (5, 6, 7):
        sets = ("--set", f"export.windows_per_shard={size}", "--local")
        assert command("export", output, output, *sets).code == 0
    assert command("clean", output, "--keep", "2", "--yes").code == 0
    assert len(list(output.glob("versions/*.json"))) == 2
    assert command("verify", output).code == 0


def test_clean_of_an_export_without_a_store(command, tokenize, tmp_path):
    assert tokenize().code == 0
    for size in (4, 5):
        sets = ("--set", f"export.windows_per_shard={size}", "--local")
        assert command("export", tmp_path / "tokens", tmp_path / "o", *sets).code == 0
    assert command("clean", tmp_path / "o", "--keep", "1", "--yes").code == 0
    current = json.loads((tmp_path / "o" / "dataset.json").read_text())["shards"]
    named = {shard["path"] for shards in current.values() for shard in shards}
    standing = {path for path in files_of(tmp_path / "o") if path.endswith((".tar", ".parquet")) and "/train" in path}
    assert standing == named
    assert command("verify", tmp_path / "o").code == 0


def test_clean_removes_orphans_and_spares_what_it_does_not_know(command, tokenize, tmp_path):
    output = tmp_path / "tokens"
    assert tokenize().code == 0
    store = next(output.glob("_store/*"))
    orphans = {
        "parquet/train/train-0123456789abcdef0123.parquet",
        "webdataset/val/val-0123456789abcdef0123.tar",
        "webdataset/val/shards.txt",
        "index/windows.parquet",
        f"_store/{store.name}/fragments/ab/abcdef0123456789abcd-0123456789ab.parquet",
        "parquet/train/.train-0123456789abcdef0123.parquet.0123456789abcdef.tmp",
        f"_store/{store.name}/fragments/ab/.abc-012.parquet.0123456789abcdef.tmp",
    }
    spared = {
        "notes.txt",
        "parquet/train/mine.parquet",
        "parquet/train/val-0123456789abcdef0123.parquet",
        "report/picture.png",
        "webdataset/train/.train-young.tar.0123456789abcdef.tmp",
        f"_store/{store.name}/fragments/ab/notes.parquet",
    }
    for path in orphans | spared:
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(b"x")
        if path.endswith(".tmp") and "young" not in path:
            os.utime(output / path, (time.time() - 2 * HOUR_S,) * 2)
    before = files_of(output)
    assert command("clean", output, "--yes").code == 0
    assert before - files_of(output) == orphans
    assert command("verify", output).code == 0


def test_clean_spares_the_work_of_a_run_that_was_stopped(command, tokenize, motion, tools, tmp_path, monkeypatch):
    def stop(*args, **options):
        raise RuntimeError("killed")

    output = tmp_path / "tokens"
    assert tokenize().code == 0
    write_clip(tools, motion, "clip0", 77)
    with monkeypatch.context() as patch:
        patch.setattr(ShardBuilder, "publish_shard", stop)
        assert tokenize().code == 70
    before = files_of(output)
    assert command("clean", output, "--keep", "1", "--yes").code == 0
    assert files_of(output) == before

    write_clip(tools, motion, "clip0", 78)
    assert tokenize().code == 0
    assert command("clean", output, "--keep", "1", "--yes").code == 0
    assert len(list(output.glob("_store/*/fragments/*/*"))) == 6
    assert command("verify", output).code == 0


def test_clean_empties_the_store_that_a_restart_left(command, tokenize, tmp_path):
    output = tmp_path / "tokens"
    assert tokenize().code == 0
    old = next(output.glob("_store/*"))
    assert tokenize("--stride", "3", "--restart").code == 0
    assert command("clean", output, "--yes").code == 0
    assert list(old.glob("fragments/*/*"))
    assert command("clean", output, "--keep", "1", "--yes").code == 0
    assert not list(old.glob("fragments/*/*"))
    assert command("verify", output).code == 0
    assert "already complete" in tokenize("--stride", "3", "--restart").text


def test_clean_can_be_killed_at_any_point(command, five_versions, tmp_path, monkeypatch):
    output = tmp_path / "tokens"
    shutil.copytree(output, tmp_path / "undisturbed")
    assert command("clean", tmp_path / "undisturbed", "--keep", "1", "--yes").code == 0
    delete = Folder.delete

    def delete_or_die(self, path):
        if not path.startswith("runs/"):
            if not countdown:
                raise RuntimeError("killed")
            countdown.pop()
        delete(self, path)

    for survived in (1, 3, 6, 9):
        countdown = [None] * survived
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "delete", delete_or_die)
            command("clean", output, "--keep", "1", "--yes")
        assert command("verify", output).code == 0
        for version in names_of(output / "versions"):
            assert shards_of(output, version) <= files_of(output)
    assert command("clean", output, "--keep", "1", "--yes").code == 0
    assert files_of(output) == files_of(tmp_path / "undisturbed")


def test_clean_refuses_while_a_run_is_active(command, five_versions, tmp_path):
    output = tmp_path / "tokens"
    heartbeat = heartbeat_here("20260101-000000-abcdef")
    (output / "runs" / "active.json").write_bytes(heartbeat.to_bytes())
    before = files_of(output)
    for arguments in ((), ("--yes",)):
        outcome = command("clean", output, *arguments)
        assert (outcome.code, "20260101-000000-abcdef" in outcome.text) == (75, True)
    assert files_of(output) == before
    (output / "runs" / "active.json").write_bytes(replace(heartbeat, process_start="before").to_bytes())
    assert command("clean", output, "--yes").code == 0
    assert files_of(output) < before


def test_clean_refuses_what_is_no_dataset(command, five_versions, tmp_path):
    assert command("clean", tmp_path).code == 2
    path = tmp_path / "tokens" / "versions" / f"{five_versions[3]}.json"
    path.write_text("{")
    outcome = command("clean", tmp_path / "tokens", "--yes")
    assert (outcome.code, path.name in outcome.text.replace(" ", "")) == (65, True)


def test_clean_works_on_object_storage(command, motion, tiny_codec, tools, s3):
    url = s3.url("clean/tokens")
    sets = ("--set", "units.files=1", "--local")
    for seed in (61, 62, 63):
        write_clip(tools, motion, "clip0", seed, seed)
        assert command("tokenize", motion, url, "-c", tiny_codec, *sets).code == 0
    outcome = command("clean", url, "--keep", "1", "--yes")
    assert outcome.code == 0, outcome.text
    assert len({file.path.split("/")[1].removesuffix(".json") for file in Folder(url).list_files("versions")}) == 1
    assert command("verify", url).code == 0


def tiny_checkpoint(folder, seed=0, name="other.safetensors", **changes):
    config = BitwiseVAEConfig(
        **{"motion_dim": 4, "code_dim": 8, "patch_nums": (1, 2, 5), "hidden_dim": 16, "depth": 1, "num_heads": 2}
        | {"fps": 25}
        | changes
    )
    write_checkpoint(random_checkpoint(config, np.zeros(4), np.ones(4), seed), folder / name)
    return folder / name


@pytest.fixture(scope="module")
def plain(command, tiny_corpus, tiny_codec, tmp_path_factory):
    """A dataset of both formats, several shards."""
    output = tmp_path_factory.mktemp("plain") / "tokens"
    sets = ("--set", "units.files=3", "--set", "export.windows_per_shard=40", "--local")
    assert command("tokenize", tiny_corpus, output, "-c", tiny_codec, *sets).code == 0
    return output


@pytest.mark.parametrize("formats", ["parquet", "webdataset", "parquet,webdataset"])
@pytest.mark.parametrize("shuffle", ["none", "shard", "global"])
def test_diff_finds_equal_content_however_it_is_exported(command, plain, tmp_path, formats, shuffle):
    sets = ("--set", f"export.shuffle={shuffle}", "--set", "export.windows_per_shard=70", "--local")
    assert command("export", plain, tmp_path / "o", "--format", formats, *sets).code == 0
    for pair in ((plain, tmp_path / "o"), (tmp_path / "o", plain)):
        outcome = command("diff", *pair, "--json", tmp_path / "d.json")
        assert outcome.code == 0, outcome.text
        assert "equal in content" in outcome.text
        assert "export.windows_per_shard" in outcome.text
        tree = json.loads((tmp_path / "d.json").read_text())
        total = json.loads((plain / "dataset.json").read_text())["counts"]["windows"]
        assert (tree["equal"], tree["bits"]["windows"], tree["counts"]["windows_in_both"]) == (True, total, total)


def test_diff_reads_one_format_against_the_other(command, plain, tmp_path):
    for name in ("parquet", "webdataset"):
        assert command("export", plain, tmp_path / name, "--format", name, "--local").code == 0
    outcome = command("diff", tmp_path / "parquet", tmp_path / "webdataset")
    assert (outcome.code, "export.formats" in outcome.text) == (0, True), outcome.text


def test_diff_of_a_dataset_with_itself_reads_no_shard(command, plain, monkeypatch):
    monkeypatch.setattr(OpenDataset, "read_shard", lambda *args: pytest.fail("a shard that both hold was read"))
    assert command("diff", plain, plain).code == 0


def test_diff_compares_little_at_a_time(command, plain, tmp_path):
    sets = ("--set", "export.shuffle=global", "--set", "export.windows_per_shard=30", "--local")
    assert command("export", plain, tmp_path / "o", *sets).code == 0
    for pair in ((plain, tmp_path / "o"), (tmp_path / "o", plain)):
        assert command("diff", *pair).code == 0
        ours, theirs = (open_dataset(Folder(str(path))) for path in pair)
        together, apart = [], []
        assert compare_datasets(ours, theirs, together.append).is_equal
        assert compare_datasets(ours, theirs, apart.append, group_bytes=1).is_equal
        assert set(apart) == set(together)
        assert len(apart) > len(together) == len(set(together))


def test_diff_names_clips_that_differ(command, tokenize, motion, tools, tmp_path):
    assert tokenize().code == 0
    (motion / "clip1.npz").unlink()
    write_clip(tools, motion, "new", 9)
    write_clip(tools, motion, "clip2", 2, 33)
    write_clip(tools, motion, "clip3", 3, 4)
    assert tokenize(output="b").code == 0
    outcome = command("diff", tmp_path / "tokens", tmp_path / "b", "--json", tmp_path / "d.json")
    assert outcome.code == 1, outcome.text
    tree = json.loads((tmp_path / "d.json").read_text())
    assert tree["settings"] == []
    assert tree["examples"]["clips_only_in_a"] == ["clip1"]
    assert tree["examples"]["clips_only_in_b"] == ["new"]
    assert tree["counts"]["clips_of_other_num_frames"] == 2
    assert tree["counts"]["clips_of_other_drop_reason"] == 1
    assert any(
        line.startswith("clip3") and "drop_reason none and too_short" in line
        for line in tree["examples"]["clips_changed"]
    )
    assert tree["counts"]["windows_only_in_b"] == 1  # clip2: 30 frames, then 33: one more window, ending with the clip
    assert tree["examples"]["windows"] == ["clip2: start_frame only in B 28"]
    assert tree["bits"]["differing_windows"] == 0  # the longer clip2 begins with the shorter one's frames
    assert "clip1" in outcome.text
    assert "different" in outcome.text


def test_diff_counts_flipped_bits_by_scale(command, plain, tmp_path):
    """Bits are flipped in a copy's shard, so that what differs is known."""
    shutil.copytree(plain, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "dataset.json").read_text())
    shard = manifest["shards"]["parquet"][0]
    table = pq.read_table(tmp_path / "b" / shard["path"])
    rows = table["this_bits"].to_pylist()
    rows[3] = bytes([rows[3][0] ^ 0b1000_0001, rows[3][1], rows[3][2] ^ 1, *rows[3][3:]])  # scales 0 and 1
    rows[5] = bytes([*rows[5][:-1], rows[5][-1] ^ 0b10])  # scale 2
    column = table.schema.get_field_index("this_bits")
    table = table.set_column(column, table.schema.field(column), pa.array(rows, table["this_bits"].type))
    pq.write_table(table, tmp_path / "b" / shard["path"])
    shard["sha256"] = "0" * 64
    (tmp_path / "b" / "dataset.json").write_text(json.dumps(manifest))
    outcome = command("diff", plain, tmp_path / "b", "--json", tmp_path / "d.json")
    assert outcome.code == 1
    bits = json.loads((tmp_path / "d.json").read_text())["bits"]
    assert (bits["differing_windows"], bits["windows"]) == (2, manifest["counts"]["windows"])
    assert [scale["differing_this"] for scale in bits["scales"]] == [2, 1, 1]
    assert [scale["differing_prev"] for scale in bits["scales"]] == [0, 0, 0]
    assert [scale["bits"] for scale in bits["scales"]] == [bits["windows"] * 8 * tokens for tokens in (1, 2, 5)]
    examples = json.loads((tmp_path / "d.json").read_text())["examples"]["bits"]
    assert [line.rpartition(": ")[2] for line in examples] == ["3 bits", "1 bits"]


def test_diff_names_the_contract_first(command, tokenize, tmp_path):
    assert tokenize().code == 0
    assert tokenize("--stride", "4", output="strided").code == 0
    outcome = command("diff", tmp_path / "tokens", tmp_path / "strided")
    assert (outcome.code, "corpus.window.stride: 5 in A, 4 in B" in outcome.text) == (1, True)
    assert "only in B" in outcome.text
    assert tokenize(output="other", checkpoint=tiny_checkpoint(tmp_path, 1)).code == 0
    outcome = command("diff", tmp_path / "tokens", tmp_path / "other")
    assert (outcome.code, "codec.weights" in outcome.text, "bits differ in" in outcome.text) == (1, True, True)
    wide = tiny_checkpoint(tmp_path, name="wide.safetensors", code_dim=16)
    assert tokenize(output="wide", checkpoint=wide).code == 0
    outcome = command("diff", tmp_path / "tokens", tmp_path / "wide")
    assert (outcome.code, "cannot be compared" in outcome.text) == (1, True)
    assert command("diff", tmp_path / "tokens", tmp_path / "nothing").code == 2


def test_verify_deep_finds_all_bits_equal(command, plain, tiny_corpus, tiny_codec):
    total = json.loads((plain / "dataset.json").read_text())["counts"]["windows"]
    outcome = command("verify", plain, tiny_corpus, "--deep", 10_000, "-c", tiny_codec)
    assert outcome.code == 0, outcome.text
    assert f"equal: {total} windows encoded again, bit for bit" in outcome.text
    outcome = command("verify", plain, tiny_corpus, "--deep", 7, "-c", tiny_codec, "--set", "run.threads=1")
    assert (outcome.code, "equal: 7 windows" in outcome.text) == (0, True)


@pytest.mark.parametrize("sets", [("export.shuffle=global",), ("export.formats=webdataset", "export.shuffle=shard")])
def test_verify_deep_reads_every_export(command, plain, tiny_corpus, tiny_codec, tmp_path, sets):
    arguments = [part for setting in sets for part in ("--set", setting)]
    assert command("export", plain, tmp_path / "o", *arguments, "--local").code == 0
    outcome = command("verify", tmp_path / "o", tiny_corpus, "--deep", 50, "-c", tiny_codec)
    assert outcome.code == 0, outcome.text


def test_verify_deep_finds_clips_that_were_renamed(command, tiny_codec, tools, tmp_path):
    for name in "ab":
        write_clip(tools, tmp_path / name, "same", ord(name))
    suffix = ("--set", "input.duplicate_ids=suffix", "--set", "window.preset=training", "--local")
    inputs = (f"x={tmp_path}/a", f"x2={tmp_path}/b")
    for path in (tmp_path / "a", tmp_path / "b"):
        data = tools.npz_bytes(motion=tools.tiny_motion(ord(path.name), 30), fps=25, clip_id=["same"])
        (path / "same.npz").write_bytes(data)
    both = tmp_path / "both"
    both.mkdir()
    for name in "ab":
        shutil.copy(tmp_path / name / "same.npz", both / f"{name}.npz")
    assert command("tokenize", both, tmp_path / "o", "-c", tiny_codec, *suffix).code == 0
    outcome = command("verify", tmp_path / "o", both, "--deep", 100, "-c", tiny_codec)
    assert outcome.code == 0, outcome.text
    assert command("tokenize", *inputs, tmp_path / "p", "-c", tiny_codec, "--local").code == 0
    assert command("verify", tmp_path / "p", *inputs, "--deep", 100, "-c", tiny_codec).code == 0
    outcome = command("verify", tmp_path / "p", *reversed(inputs), "--deep", 100, "-c", tiny_codec)
    assert outcome.code == 0, "named inputs have no order"
    outcome = command("verify", tmp_path / "p", tmp_path / "a", "--deep", 100, "-c", tiny_codec)
    assert (outcome.code, "same inputs" in outcome.text) == (2, True)


def test_verify_deep_refuses_another_codec_and_half_a_request(command, plain, tiny_corpus, tiny_codec, tmp_path):
    other = tiny_checkpoint(tmp_path, seed=5)
    outcome = command("verify", plain, tiny_corpus, "--deep", 5, "-c", other)
    assert (outcome.code, "codec.weights" in outcome.text) == (2, True)
    for arguments in (("--deep", 5), ("--deep", 5, "-c", tiny_codec), ("-c", tiny_codec), (tiny_corpus,)):
        assert command("verify", plain, *arguments).code == 2


def put_other_bits(output, mask):
    """Invert some bits of `this` in the first row of a fragment, as other numerics might, and take back the dataset."""
    path = min(output.glob("_store/*/fragments/*/*"))
    store = TokenStore(Folder(str(path.parents[2])))
    unit = path.stem.split("-")
    tokens, ledger = store.read_fragment(*unit), store.read_ledger(*unit)
    first, *others = tokens["this_bits"].to_pylist()
    bits = [bytes(byte ^ other for byte, other in zip(first, mask, strict=True)), *others]
    column = tokens.schema.get_field_index("this_bits")
    tokens = tokens.set_column(column, tokens.schema.field(column), pa.array(bits, tokens["this_bits"].type))
    path.write_bytes(fragment_to_bytes(tokens, ledger, store.read_contract()))
    (output / "dataset.json").unlink()


def test_verify_deep_allows_other_numerics_a_few_bits(command, tokenize, motion, tiny_codec, tmp_path):
    """The same corpus twice, the second time in a store whose contract names another torch."""
    assert tokenize().code == 0
    contract = next((tmp_path / "tokens").glob("_store/*/contract.json"))
    tree = json.loads(contract.read_text())
    tree["numerics"]["torch"] = "0.1"
    elsewhere = tmp_path / "elsewhere" / contract.relative_to(tmp_path / "tokens")
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text(json.dumps(tree))
    mixed = ("--set", "run.numerics=mixed")
    assert tokenize(*mixed, output="elsewhere").code == 0

    def verify(output):
        return command("verify", tmp_path / output, motion, "--deep", 100, "-c", tiny_codec)

    outcome = verify("elsewhere")
    assert (outcome.code, "numerics.torch" in outcome.text) == (0, True), outcome.text
    assert "bit for bit" in outcome.text
    for output in ("tokens", "elsewhere"):
        put_other_bits(tmp_path / output, bytes([1, *7 * [0]]))
        assert tokenize(*mixed, output=output).code == 0
    outcome = verify("elsewhere")
    assert (outcome.code, "but for rounding" in outcome.text) == (0, True), outcome.text
    outcome = verify("tokens")
    assert (outcome.code, "not equal" in outcome.text, "numerics" in outcome.text) == (1, True, False), outcome.text
    put_other_bits(tmp_path / "elsewhere", bytes(8 * [255]))
    assert tokenize(*mixed, output="elsewhere").code == 0
    outcome = verify("elsewhere")
    assert (outcome.code, "not equal" in outcome.text, "numerics.torch" in outcome.text) == (1, True, True)


def test_verify_deep_tells_changed_motion(command, tokenize, motion, tools, tiny_codec, tmp_path):
    assert tokenize().code == 0
    arguments = ("verify", tmp_path / "tokens", motion, "--deep", 100, "-c", tiny_codec)
    assert command(*arguments).code == 0
    write_clip(tools, motion, "clip2", 99, 30)
    outcome = command(*arguments)
    assert (outcome.code, "not equal" in outcome.text, "this share" in outcome.text) == (1, True, True)
    write_clip(tools, motion, "clip2", 2, 31)
    outcome = command(*arguments)
    assert (outcome.code, "another length" in outcome.text) == (1, True)


@pytest.fixture
def replayed(command, motion, tiny_codec, tmp_path):
    """Run replay on `motion` into `tokens` with the settings of `tokenize`."""

    def run():
        sets = ("--set", "units.files=1", "--set", "export.splits.ratios={train: 1}")
        return command("replay", tmp_path / "tokens", motion, "-c", tiny_codec, *sets, "--local")

    return run


def units_of_last_run(output):
    path = max(output.glob("runs/*/run.json"), key=os.path.getmtime)
    return json.loads(path.read_text())["counts"]["units"]


@pytest.mark.parametrize("is_stamp_kept", [True, False])
def test_replay_brings_mended_clips_back(
    command, tokenize, replayed, motion, tools, tmp_path, tiny_codec, is_stamp_kept
):
    whole = (motion / "clip3.npz").read_bytes()
    (motion / "clip3.npz").write_bytes(b"\0" * len(whole))
    stamp = (motion / "clip3.npz").stat()
    write_clip(tools, motion, "short", 1, 3)
    assert tokenize().code == 0
    output = tmp_path / "tokens"
    assert json.loads((output / "dataset.json").read_text())["counts"]["dropped_clips"] == 2
    (motion / "clip3.npz").write_bytes(whole)
    if is_stamp_kept:
        os.utime(motion / "clip3.npz", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert "already complete" in tokenize().text
    outcome = replayed()
    assert outcome.code == 0, outcome.text
    assert "came back 1 clips clip3 still quarantined 1 too_short" in outcome.text
    assert units_of_last_run(output) == 1
    assert command("verify", output, motion, "--deep", 100, "-c", tiny_codec).code == 0
    assert tokenize(output="fresh").code == 0
    assert (tmp_path / "fresh" / "dataset.json").read_bytes() == (output / "dataset.json").read_bytes()


def test_replay_of_what_is_still_broken_changes_nothing(tokenize, replayed, motion, tools, tmp_path):
    (motion / "clip3.npz").write_bytes(b"no zip")
    assert tokenize().code == 0
    before = tools.tree_of(tmp_path / "tokens")
    outcome = replayed()
    assert (outcome.code, "came back 0 clips" in outcome.text, "unreadable" in outcome.text) == (0, True, True)
    assert units_of_last_run(tmp_path / "tokens") == 1
    assert tools.tree_of(tmp_path / "tokens") == before


def test_replay_deletes_nothing_when_it_cannot_start(command, tokenize, motion, tiny_codec, tmp_path):
    (motion / "clip3.npz").write_bytes(b"no zip")
    assert command("replay", tmp_path / "tokens", motion, "-c", tiny_codec, "--local").code == 2
    assert tokenize().code == 0
    before = files_of(tmp_path / "tokens")
    assert command("replay", tmp_path / "tokens", motion, "-c", tiny_codec, "--local").code == 2
    assert files_of(tmp_path / "tokens") == before


def test_max_dropped_fails_the_run_and_leaves_what_stands(command, tokenize, motion, tools, tmp_path):
    output = tmp_path / "tokens"
    write_clip(tools, motion, "short", 1, 3)
    outcome = tokenize("--set", "run.max_dropped=0")
    assert (outcome.code, "1 too_short" in outcome.text) == (65, True)
    assert not (output / "dataset.json").exists()
    assert tokenize("--set", "window.tail=pad", "--set", "run.max_dropped=0").code == 0, "the output was left free"
    shutil.rmtree(output)
    assert tokenize("--set", "run.max_dropped=1").code == 0
    before = tools.tree_of(output)
    assert tokenize("--set", "run.max_dropped=10%").code == 65
    write_clip(tools, motion, "tiny", 1, 2)
    assert tokenize("--set", "run.max_dropped=1").code == 65
    assert tools.tree_of(output) == before
    assert command("verify", output).code == 0
    assert tokenize("--set", "run.max_dropped=2").code == 0
