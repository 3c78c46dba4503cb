"""The command inspect: every kind of file and folder is recognised and told about; helpful refusals."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bitwise_vae import checkpoint_bytes, load_checkpoint, weights_digest
from bitwise_vae.checkpoints.digest import sample_digest
from bitwise_vae.checkpoints.quality_record import QualityRecord
from jobs.commands.dataset.inspect_command import InspectRequest, run_inspect
from pipeline.settings.job_config import load_config

QUICK = ("--local", "--gate", "off", "--set", "run.report=false")


@pytest.fixture(scope="module")
def tokens(command, tiny_corpus, tiny_codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokens") / "o"
    outcome = command("tokenize", tiny_corpus, output, "-c", tiny_codec, *QUICK)
    assert outcome.code == 0, outcome.text
    return output


def test_inspect_dataset_tells_what_it_holds(command, tokens):
    outcome = command("inspect", tokens)
    assert outcome.code == 0, outcome.text
    manifest = json.loads((tokens / "dataset.json").read_text())
    for word in ("token dataset", manifest["status"], manifest["spec_id"], "1, 2, 5", "tail shift", "1 non_finite"):
        assert word in outcome.text
    for split, counts in manifest["splits"].items():
        assert f"{split} {counts['windows']:,} window" in outcome.text
    assert "window 0 of 0 to" in outcome.text
    assert command("inspect", tokens / "dataset.json").text == outcome.text


def test_inspect_draws_the_chosen_window(command, tokens):
    rows = [row for path in sorted(tokens.glob("parquet/*/*.parquet")) for row in pq.read_table(path).to_pylist()]
    mine = sorted((row for row in rows if row["clip_id"] == "clip07"), key=lambda row: row["start_frame"])
    outcome = command("inspect", tokens, "--clip", "clip07", "--window", 2)
    assert outcome.code == 0, outcome.text
    assert f"frames {mine[2]['start_frame']} to {mine[2]['start_frame'] + 4}" in outcome.text
    drawn = sum({"▄": 1, "▀": 1, "█": 2}.get(char, 0) for char in outcome.text)
    assert drawn == int(np.unpackbits(np.frombuffer(mine[2]["this_bits"], np.uint8)).sum())


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "_store"])
def test_inspect_token_shards(command, tokens, kind):
    suffix = "tar" if kind == "webdataset" else "parquet"
    pattern = "*/fragments/*/*.parquet" if kind == "_store" else f"train/*.{suffix}"
    shard = sorted((tokens / kind).glob(pattern), key=lambda path: path.stat().st_size)[-1]
    outcome = command("inspect", shard)
    assert outcome.code == 0, outcome.text
    assert "token shard" in outcome.text
    assert "tail shift" in outcome.text  # the contract, of a tar from the dataset around it
    assert "window 0 of 0 to" in outcome.text
    assert ("fragment" in outcome.text) == (kind == "_store")
    wrong = command("inspect", shard, "--clip", "none")
    assert (wrong.code, "no windows of clip 'none'" in wrong.text) == (2, True)


def test_inspect_a_lonely_tar_has_no_schedule(command, tokens, tmp_path):
    shard = next(tokens.glob("webdataset/train/*.tar"))
    (tmp_path / "x.tar").write_bytes(shard.read_bytes())
    outcome = command("inspect", tmp_path / "x.tar")
    assert outcome.code == 0, outcome.text
    assert "scales unknown" in outcome.text
    assert "8 tokens a half" in outcome.text


def test_inspect_a_begun_dataset_says_how_to_go_on(command, tokens, tools, tmp_path):
    fragment = next(tokens.glob("_store/*/fragments/*/*.parquet"))
    target = tmp_path / "o" / fragment.relative_to(tokens)
    target.parent.mkdir(parents=True)
    target.write_bytes(fragment.read_bytes())
    outcome = command("inspect", tmp_path / "o")
    assert outcome.code == 0, outcome.text
    assert "1 units are tokenized" in outcome.text


def test_inspect_checkpoint(command, tiny_codec):
    outcome = command("inspect", tiny_codec)
    assert outcome.code == 0, outcome.text
    for word in (
        "checkpoint",
        "4 dims at 25 fps",
        "1, 2, 5",
        "depth 1",
        weights_digest(load_checkpoint(tiny_codec))[:32],
    ):
        assert word in outcome.text
    assert "no record" in outcome.text


def test_inspect_checkpoint_shows_its_record_and_other_metadata(command, tiny_codec, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    model = load_checkpoint(tiny_codec)
    record = QualityRecord(0.125, 0.1, 0.8, 7, 700, model.patch_nums, sample_digest(model))
    (tmp_path / "a.safetensors").write_bytes(checkpoint_bytes(model, record))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = {**file.metadata(), "note": "by [me]", "training": '{"steps": 12, "rate": 0.5}'}
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "c.safetensors", metadata)
    outcome = command("inspect", tmp_path / "c.safetensors")
    assert outcome.code == 0, outcome.text
    for word in ("quality fraction_of_mean 0.125", "num_clips 7", "note by [me]", "training steps 12", "rate 0.5"):
        assert word in outcome.text


def test_inspect_names_the_shipped_codec_unless_something_stands_there(command, tmp_path, monkeypatch):
    outcome = command("inspect", "demo")
    assert (outcome.code, "demo_flame106.safetensors" in outcome.text.replace("\n", "")) == (0, True), outcome.text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "clip.npy").write_bytes(b"")
    assert "folder of motion" in command("inspect", "demo").text


def test_inspect_motion_files(command, tiny_corpus, procedural_motion):
    parquet = command("inspect", tiny_corpus / "a.parquet")
    assert parquet.code == 0, parquet.text
    for word in ("motion file", "10 of 4 dims", "7 to 34 frames", "25 (10)", "clip00", "rows 10"):
        assert word in parquet.text
    tar = command("inspect", tiny_corpus / "b" / "shard.tar")
    assert (tar.code, "motion.npy" in tar.text, "10 of 4 dims" in tar.text) == (0, True, True)
    broken = command("inspect", tiny_corpus / "broken.npz")
    assert (broken.code, "truncated" in broken.text) == (0, True)
    nan = command("inspect", tiny_corpus / "nan.npz")
    assert (nan.code, "1 NaN" in nan.text) == (0, True)
    flame = command("inspect", next((procedural_motion / "flame106").glob("*.npz")))
    assert flame.code == 0, flame.text
    for word in ("1,906 frames", "expression", "jaw_pose", "head_pose", "1 of 106 dims"):
        assert word in flame.text


def test_inspect_motion_of_another_field_names_it(command, procedural_motion):
    outcome = command("inspect", procedural_motion / "arkit_iphone")
    assert outcome.code == 0, outcome.text
    assert "3 npz" in outcome.text
    assert "--set input.motion_field=values" in outcome.text
    mended = command("inspect", procedural_motion / "arkit_iphone", "--set", "input.motion_field=values")
    assert "1 of 61 dims" in mended.text


def test_inspect_statistics(command, tiny_corpus, tmp_path):
    assert command("stats", tiny_corpus, tmp_path / "s.json", "--local").code == 0
    outcome = command("inspect", tmp_path / "s.json")
    assert outcome.code == 0, outcome.text
    assert "motion statistics" in outcome.text
    assert "1 NaN" in outcome.text


def test_inspect_reads_s3(command, tokens, tiny_corpus, tiny_codec, s3):
    from s3fs import S3FileSystem

    files = S3FileSystem(use_listings_cache=False, **s3.options)
    base = s3.url("inspect/all")
    files.put(str(tokens), f"{base}/tokens", recursive=True)
    files.put(str(tiny_codec), f"{base}/codec.safetensors")
    files.put(str(tiny_corpus / "b" / "clip25.npz"), f"{base}/clip25.npz")
    shard = next(tokens.glob("webdataset/train/*.tar")).relative_to(tokens)
    words = {
        "tokens": "token dataset",
        f"tokens/{shard}": "tail shift",
        "codec.safetensors": "depth 1",
        "clip25.npz": "1 of 4",
    }
    for path, word in words.items():
        outcome = command("inspect", f"{base}/{path}")
        assert outcome.code == 0, outcome.text
        assert word in outcome.text


def test_inspect_does_without_unicode_and_width(tokens):
    class Ascii:
        encoding = "ascii"

        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text.encode("ascii").decode()

        def flush(self):
            pass

    file = Ascii()
    run_inspect(InspectRequest(str(tokens), None, None), load_config(None), Console(file=file, width=40))
    assert ": both" in file.text.replace(f"{os.linesep}", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "check the path"),
        (["notes.txt"], "not a kind"),
        (["other.json"], "dataset.json"),
        (["no.json"], "not JSON"),
        (["empty"], "check the path"),
        (["others"], "neither dataset.json nor motion"),
        (["bad.safetensors"], "bad.safetensors"),
        (["m.npz", "--window", "0"], "motion file"),
        (["TOKENS", "--clip", "clip7"], "'clip07'"),
        (["TOKENS", "--clip", "clip07", "--window", "99"], "--window 0 to"),
    ],
)
def test_inspect_refuses_bad_requests(command, tokens, tools, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "x.txt").write_text("x")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "m.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(0, 9)))
    outcome = command("inspect", *(tokens if word == "TOKENS" else word for word in arguments))
    assert outcome.code == 2, outcome.text
    assert words in outcome.text


def test_inspect_a_damaged_shard_is_wrong_data(command, tokens, tmp_path):
    shard = next(tokens.glob("webdataset/train/*.tar"))
    (tmp_path / "x.tar").write_bytes(shard.read_bytes()[:5000])
    assert command("inspect", tmp_path / "x.tar").code == 65
    table = pa.table({"motion": [1, 2]})
    pq.write_table(table, tmp_path / "y.parquet")
    outcome = command("inspect", tmp_path / "y.parquet")
    assert (outcome.code, "wrong_dtype" in outcome.text) == (0, True)
