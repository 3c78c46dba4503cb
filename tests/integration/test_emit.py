"""What is emitted beside bits, through whole jobs: equal bytes, proofs, readers, and the estimate before a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import ClassVar

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from datasets import load_dataset

from bitwise_vae import WindowEncoder, flip_pairs, load_checkpoint, pack_bits
from pipeline.estimate.window_count import SAMPLE_UNITS

EMIT = ("--set", "emit=[latent, flips, decoded_prev]", "--set", "flips.pairs=2")
T, CODE = 5, 8
COLUMNS = ["this_latent", "flip_targets", "flip_bits", "decoded_prev_bits"]


@pytest.fixture(scope="module")
def plain(command, tiny_corpus, tiny_codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("plain") / "tokens"
    assert command("tokenize", tiny_corpus, output, "-c", tiny_codec, "--local").code == 0
    return output


@pytest.fixture(scope="module")
def rich(command, tiny_corpus, tiny_codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("rich") / "tokens"
    outcome = command("tokenize", tiny_corpus, output, "-c", tiny_codec, "--local", *EMIT)
    assert outcome.code == 0, outcome.text
    return output


def rows_of(output: Path):
    manifest = json.loads((output / "dataset.json").read_text())
    shards = [pq.read_table(output / shard["path"]) for shard in manifest["shards"]["parquet"]]
    rows = {}
    for shard in shards:
        for row in shard.to_pylist():
            rows[row["clip_id"], row["start_frame"]] = row
    return rows


def test_bits_stay_as_they_are_without_emission(plain, rich):
    before, after = rows_of(plain), rows_of(rich)
    assert before.keys() == after.keys()
    assert all(row.items() <= after[key].items() for key, row in before.items())
    assert list(next(iter(after.values())))[8:] == COLUMNS


def test_emitted_columns_are_those_of_the_clips_own_motion(rich, tiny_codec, tools):
    model = load_checkpoint(tiny_codec)
    encoder = WindowEncoder(model, batch_size=32)
    rows = rows_of(rich)
    motion = torch.from_numpy(tools.tiny_motion(4, 7 + 3 * 4))
    for start in (0, 5, 10, 14):
        row = rows["clip04", start]
        window = torch.zeros(1, 2 * T, 4)
        first = max(0, start - T)
        window[0, T - start + first :] = motion[first : start + T]
        latent = encoder.latents(window)[0, T:].numpy().astype("<f2")
        assert row["this_latent"] == latent.tobytes()
        for pair in range(2):
            text = f"0\0clip04\0{start}\0{pair}".encode()
            seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
            drawn = flip_pairs(torch.from_numpy(latent)[None], model.patch_nums, 0.3, [seed])
            for name, bits in zip(("flip_targets", "flip_bits"), drawn, strict=True):
                assert row[name][8 * pair : 8 * pair + 8] == pack_bits(bits[0].numpy()).tobytes()
        assert (row["decoded_prev_bits"] == row["this_bits"]) or start > 0


@pytest.mark.parametrize(
    "settings",
    [
        ("--set", "units.files=1", "--set", "run.threads=2"),
        ("--set", "units.files=3"),
    ],
    ids=["one file a unit", "three files a unit"],
)
def test_emitted_columns_do_not_depend_on_units_or_threads(command, tiny_corpus, tiny_codec, rich, tmp_path, settings):
    outcome = command("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, *EMIT, *settings, "--local")
    assert outcome.code == 0, outcome.text
    assert rows_of(tmp_path / "o") == rows_of(rich)


def test_ray_and_the_plain_loop_give_the_same_bytes(command, tiny_corpus, tiny_codec, rich, tmp_path, tools, ray_local):
    outcome = command("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, *EMIT, "--workers", 2)
    assert outcome.code == 0, outcome.text
    assert tools.tree_of(tmp_path / "o") == tools.tree_of(rich)


def test_verify_proves_emitted_columns(command, tiny_corpus, tiny_codec, rich):
    assert command("verify", rich).code == 0
    outcome = command("verify", rich, tiny_corpus, "--deep", 10_000, "-c", tiny_codec)
    assert outcome.code == 0, outcome.text
    for name in COLUMNS:
        assert f"{name} equal" in outcome.text
    assert "bit for bit" in outcome.text


@pytest.mark.parametrize("name", COLUMNS)
def test_verify_finds_an_altered_value(command, tiny_corpus, tiny_codec, rich, tmp_path, republish, name):
    """One byte of one column in both formats, all checksums set right: only encoding again can tell."""
    outcome = republish(rich, tmp_path / "o", name)
    assert command("verify", tmp_path / "o").code == 0
    outcome = command("verify", tmp_path / "o", tiny_corpus, "--deep", 10_000, "-c", tiny_codec)
    assert outcome.code == 1, outcome.text
    assert f"{name} 1 of" in outcome.text
    if name.startswith("flip"):
        assert f"{name} are not those of its latent" in outcome.text
    outcome = command("diff", rich, tmp_path / "o")
    assert (outcome.code, f"{name} differs in 1 windows" in outcome.text) == (1, True), outcome.text


@pytest.fixture
def republish(command):
    """Return a function that exports a dataset from a store in which one value of a column is altered."""
    import shutil

    from pipeline.contract.schema import CONTRACT_KEY
    from pipeline.contract.specs import Contract
    from pipeline.dataset.fragment import fragment_to_bytes
    from pipeline.dataset.ledger import table_from_ipc

    def alter(source: Path, target: Path, name: str) -> None:
        import base64

        import pyarrow as pa

        shutil.copytree(source, target)
        fragment = max(target.glob("_store/*/fragments/*/*.parquet"), key=lambda path: path.stat().st_size)
        metadata = pq.read_metadata(fragment).metadata
        table = pq.read_table(fragment)
        values = table[name].to_pylist()
        values[1] = bytes([values[1][0] ^ 0x40]) + values[1][1:]
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(name), pa.array(values, table.schema.field(name).type))
        ledger = table_from_ipc(base64.b64decode(metadata[b"motion_tokens.ledger"]))
        contract = Contract.model_validate_json(metadata[CONTRACT_KEY])
        fragment.write_bytes(fragment_to_bytes(table, ledger, contract))
        for published in target.glob("_store/*/published/*.txt"):
            published.write_text(published.read_text().splitlines()[0])  # no shard is reused
        outcome = command("export", target, target, "--local", "--set", "export.windows_per_shard=20000")
        assert outcome.code == 0, outcome.text

    return alter


def test_certify_says_how_far_flips_depend_on_the_rounding_of_latents(
    command, tiny_corpus, tiny_codec, rich, plain, tmp_path
):
    name = "flips, float16 / float32"
    for dataset in (rich, plain):
        request = ("certify", dataset, tiny_corpus, "-c", tiny_codec, "--json", tmp_path / "c.json")
        assert command(*request).code == 0
        found = {item["name"]: item for item in json.loads((tmp_path / "c.json").read_text())["comparisons"]}
        assert (name in found) == (dataset == rich)
        if dataset == rich:
            assert 0 <= found[name]["share"] < 0.01
            assert not found[name]["counts_in_budget"]


def test_inspect_names_what_stands_beside_the_bits(command, plain, rich):
    assert all(name in command("inspect", rich).text for name in COLUMNS)
    assert "beside bits" not in command("inspect", plain).text


def test_the_card_names_what_stands_beside_the_bits(plain, rich):
    card = " ".join((rich / "README.md").read_text().split())
    assert "`this_latent` (5 x 8, float16), `flip_targets` (2 x 8 x 1, uint8)" in card
    assert "all members in blocks of 512" in card
    before = (plain / "README.md").read_text()
    assert "Beside the bits" not in before
    assert "three members in blocks of 512" in before


def test_datasets_that_emit_differently_are_compared_by_what_both_have(command, plain, rich):
    outcome = command("diff", plain, rich)
    assert (outcome.code, "equal in content" in outcome.text, "corpus.emit" in outcome.text) == (0, True, True)


def test_an_output_continues_under_its_own_emission_only(command, tiny_corpus, tiny_codec, plain):
    outcome = command("tokenize", tiny_corpus, plain, "-c", tiny_codec, "--local", "--set", "emit=latent")
    assert (outcome.code, "corpus.emit" in outcome.text) == (2, True), outcome.text


def test_other_readers_see_emitted_columns(rich):
    wanted = rows_of(rich)
    folder = rich / "parquet" / "train"
    key = next(key for key in wanted if key[1] == 5)
    some = {name: wanted[key][name] for name in COLUMNS}

    frame = pd.read_parquet(folder)
    found = frame[(frame.clip_id == key[0]) & (frame.start_frame == 5)].iloc[0]
    assert {name: bytes(found[name]) for name in COLUMNS} == some
    lazy = pl.scan_parquet(f"{folder}/*.parquet").filter(pl.col("clip_id") == key[0], pl.col("start_frame") == 5)
    assert {name: bytes(lazy.collect()[name][0]) for name in COLUMNS} == some
    names = ", ".join(COLUMNS)
    query = f"SELECT {names} FROM '{folder}/*.parquet' WHERE clip_id = '{key[0]}' AND start_frame = 5"
    assert dict(zip(COLUMNS, map(bytes, duckdb.sql(query).fetchall()[0]), strict=True)) == some
    stream = load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True)
    row = next(row for row in stream if (row["clip_id"], row["start_frame"]) == key)
    assert {name: row[name] for name in COLUMNS} == some
    tars = rich / "webdataset" / "train"
    shards = [str(tars / name) for name in (tars / "shards.txt").read_text().split()]
    samples = wds.WebDataset(shards, shardshuffle=False).decode()
    sample = next(sample for sample in samples if (sample["json"]["clip_id"], sample["json"]["start_frame"]) == key)
    assert sample["latent.npy"].tobytes() == some["this_latent"]
    assert sample["flip_targets.npy"].shape == (2, 8, 1)
    assert sample["flip_bits.npy"].tobytes() == some["flip_bits"]
    assert sample["decoded_prev.npy"].tobytes() == some["decoded_prev_bits"]


class TestDryRun:
    TOLERANCE: ClassVar = {"parquet": 0.5, "webdataset": 0.02}  # small files are mostly footer

    def test_it_states_what_the_run_then_writes(self, command, tiny_corpus, tiny_codec, tmp_path, rich):
        arguments = ("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, "--local", *EMIT, "--dry-run")
        outcome = command(*arguments, "--json", tmp_path / "estimate.json")
        assert outcome.code == 0, outcome.text
        assert "nothing: this was a dry run" in outcome.text
        assert not (tmp_path / "o").exists()
        estimate = json.loads((tmp_path / "estimate.json").read_text())
        manifest = json.loads((rich / "dataset.json").read_text())
        assert estimate["windows"]["num_windows"] == manifest["counts"]["windows"]
        assert (estimate["windows"]["margin"], estimate["windows"]["num_clips_dropped"]) == (0, 3)
        for name, size in estimate["costs"]["shard_bytes"].items():
            written = sum(shard["bytes"] for shard in manifest["shards"][name])
            assert size * manifest["counts"]["windows"] == pytest.approx(written, rel=self.TOLERANCE[name])
        hours = estimate["windows"]["num_windows"] / estimate["costs"]["windows_per_s"] / 3600
        assert estimate["device_hours"] == pytest.approx(hours)

    def test_it_states_what_a_latent_costs(self, command, tiny_corpus, tiny_codec, tmp_path):
        sizes = []
        for emit in ((), ("--set", "emit=latent")):
            arguments = ("plan", tiny_corpus, "-c", tiny_codec, "--local", *emit)
            assert command(*arguments, "--json", tmp_path / "plan.json").code == 0
            sizes.append(json.loads((tmp_path / "plan.json").read_text())["costs"]["shard_bytes"]["parquet"])
        assert sizes[1] - sizes[0] == pytest.approx(2 * T * CODE, abs=2)

    def test_it_says_what_is_done_and_leaves_the_dataset_alone(self, command, tiny_corpus, tiny_codec, rich):
        before = {path: path.stat().st_mtime_ns for path in rich.rglob("*")}
        outcome = command("tokenize", tiny_corpus, rich, "-c", tiny_codec, "--local", *EMIT, "--dry-run")
        assert (outcome.code, "tokenized before" in outcome.text) == (0, True), outcome.text
        assert {path: path.stat().st_mtime_ns for path in rich.rglob("*")} == before

    def test_it_counts_a_large_input_by_a_sample(self, command, tiny_codec, write_clips, tmp_path):
        write_clips(tmp_path / "motion", {f"c{n:03}": 40 + n % 30 for n in range(120)})
        arguments = ("tokenize", tmp_path / "motion", tmp_path / "o", "-c", tiny_codec, "--local")
        outcome = command(*arguments, "--set", "units.files=2", "--dry-run", "--json", tmp_path / "e.json")
        assert outcome.code == 0, outcome.text
        windows = json.loads((tmp_path / "e.json").read_text())["windows"]
        assert windows["num_units_read"] == SAMPLE_UNITS < windows["num_units"]
        wanted = sum(-(-(40 + n % 30) // 5) for n in range(120))
        assert windows["margin"] > 0
        assert abs(windows["num_windows"] - wanted) <= max(2 * windows["margin"], 0.1 * wanted)

    def test_it_refuses_what_a_run_would_refuse(self, command, tiny_corpus, tiny_codec, plain, tmp_path, write_clips):
        outcome = command("tokenize", tiny_corpus, plain, "-c", tiny_codec, "--local", *EMIT, "--dry-run")
        assert (outcome.code, "corpus.emit" in outcome.text) == (2, True)
        short = write_clips(tmp_path / "motion", {"a": 3, "b": 4})
        outcome = command("tokenize", short, tmp_path / "o", "-c", tiny_codec, "--local", "--dry-run")
        assert (outcome.code, "none of 2 clips" in outcome.text) == (65, True), outcome.text
        outcome = command("tokenize", short, tmp_path / "o", "-c", tiny_codec, "--local", "--json", tmp_path / "e")
        assert (outcome.code, "--dry-run" in outcome.text) == (2, True)


def test_emit_is_refused_with_what_there_is(command, tiny_corpus, tiny_codec, tmp_path):
    outcome = command("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, "--local", "--set", "emit=latents")
    assert (outcome.code, "decoded_prev" in outcome.text) == (2, True), outcome.text
