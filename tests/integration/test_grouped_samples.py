"""Whole jobs whose WebDataset samples hold several windows: every command, and others' readers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.loader import TarSampleStream, TarStream, TokenDataset

SIZE = 3
GROUPED = ("--set", f"export.windows_per_sample={SIZE}")
SETS = ("--set", "units.files=3", "--set", "export.windows_per_shard=60", "--local")
SPLITS = ("--set", "export.splits.ratios={train: 0.8, val: 0.2}")


@pytest.fixture(scope="module")
def dataset(command, tiny_corpus, tiny_codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("grouped") / "tokens"
    done = command("tokenize", tiny_corpus, output, "-c", tiny_codec, "--set", "emit=latent", *GROUPED, *SPLITS, *SETS)
    assert done.code == 0, done.text
    return output


@pytest.fixture(scope="module")
def plain(command, dataset, tmp_path_factory):
    """The same windows, one a sample."""
    output = tmp_path_factory.mktemp("plain") / "tokens"
    assert command("export", dataset, output, "--set", "export.windows_per_sample=1", "--local").code == 0
    return output


def manifest_of(output):
    return json.loads((output / "dataset.json").read_text())


def parquet_windows(output):
    shards = manifest_of(output)["shards"]["parquet"]
    rows = [row for shard in shards for row in pq.read_table(output / shard["path"]).to_pylist()]
    return {
        (row["clip_id"], row["start_frame"]): (row["prev_bits"], row["this_bits"], row["this_latent"]) for row in rows
    }


def stored_windows(samples):
    """The windows of samples as a reader decodes them, and how many each sample holds."""
    found, sizes = {}, []
    for sample in samples:
        fields = sample["json"]
        sizes.append(len(fields["start_frame"]))
        arrays = [sample[f"{name}.npy"] for name in ("prev", "this", "latent")]
        assert [array.shape[1:] for array in arrays] == [(8, 1), (8, 1), (5, 8)]
        for n, start in enumerate(fields["start_frame"]):
            found[fields["clip_id"], start] = tuple(array[n].tobytes() for array in arrays)
    assert sum(sizes) == len(found)
    return found, sizes


def test_parquet_is_what_it_is_without_groups(dataset, plain):
    ours, theirs = manifest_of(dataset), manifest_of(plain)
    assert ours["shards"]["parquet"] == theirs["shards"]["parquet"]
    assert ours["counts"] == theirs["counts"]
    assert ours["export"] == theirs["export"] | {"windows_per_sample": SIZE}
    tars, ungrouped = ours["shards"]["webdataset"], theirs["shards"]["webdataset"]
    assert [shard["windows"] for shard in tars] == [shard["windows"] for shard in ungrouped]
    assert sum(shard["bytes"] for shard in tars) < 0.6 * sum(shard["bytes"] for shard in ungrouped)


def test_verify_proves_windows_of_grouped_samples(command, dataset, tiny_corpus, tiny_codec):
    total = manifest_of(dataset)["counts"]["windows"]
    verified = command("verify", dataset)
    assert (verified.code, f"sound: {total} windows, each exactly once" in verified.text) == (0, True), verified.text
    deep = command("verify", dataset, tiny_corpus, "--deep", 40, "-c", tiny_codec)
    assert deep.code == 0, deep.text


def test_webdataset_reads_grouped_samples(dataset):
    import webdataset as wds

    folder, found = dataset / "webdataset", {}
    for split in ("train", "val"):
        names = (folder / split / "shards.txt").read_text().split()
        urls = [str(folder / split / name) for name in names]
        windows, sizes = stored_windows(wds.WebDataset(urls, shardshuffle=False).decode())
        assert max(sizes) == SIZE
        found |= windows
    assert found == parquet_windows(dataset)


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_grouped_samples(dataset, tmp_path, streaming):
    import datasets

    files = {split: f"{dataset}/webdataset/{split}/*.tar" for split in ("train", "val")}
    loaded = datasets.load_dataset("webdataset", data_files=files, streaming=streaming, cache_dir=str(tmp_path))
    rows = [
        {name: np.asarray(value, {"latent.npy": np.float16}.get(name, np.uint8)) if name.endswith(".npy") else value
         for name, value in row.items()}
        for split in files for row in loaded[split]
    ]  # fmt: skip
    assert stored_windows(rows)[0] == parquet_windows(dataset)


def test_diff_and_decode_read_grouped_samples(command, dataset, tiny_codec, tmp_path):
    for name, size in (("a", SIZE), ("b", 1)):
        words = ("--format", "webdataset", "--set", f"export.windows_per_sample={size}", "--local")
        assert command("export", dataset, tmp_path / name, *words).code == 0
        clip = ("--clip", "clip09", "-o", tmp_path / f"{name}.npz")
        assert command("decode", tmp_path / name, "-c", tiny_codec, *clip).code == 0
    outcome = command("diff", tmp_path / "a", tmp_path / "b")
    assert (outcome.code, "export.windows_per_sample" in outcome.text) == (0, True), outcome.text
    with np.load(tmp_path / "a.npz") as ours, np.load(tmp_path / "b.npz") as theirs:
        assert np.array_equal(ours["motion"], theirs["motion"])


def test_inspect_reads_a_grouped_tar_with_and_without_its_dataset(command, dataset, tmp_path):
    tar = dataset / manifest_of(dataset)["shards"]["webdataset"][0]["path"]
    shutil.copy(tar, tmp_path / "alone.tar")
    for path in (tar, tmp_path / "alone.tar"):
        outcome = command("inspect", path)
        assert outcome.code == 0, outcome.text


def test_export_selects_splits_and_merges_grouped_samples(command, dataset, tiny_codec, tools, tmp_path):
    requests = {
        "where": ("--where", "start_frame >= 10 and start_frame != 25 and num_frames > 30"),
        "split": ("--set", "export.splits.by=source", "--set", "export.splits.ratios={a: 0.5, b: 0.5}"),
        "sizes": ("--set", "export.windows_per_shard=11", "--set", "export.windows_per_sample=4"),
    }
    for name, words in requests.items():
        assert command("export", dataset, tmp_path / name, *words, "--local").code == 0
        verified = command("verify", tmp_path / name)
        assert verified.code == 0, verified.text
        kept = manifest_of(tmp_path / name)["export"]["windows_per_sample"]
        assert kept == (4 if name == "sizes" else SIZE)
    for name, seeds in {"one": (1, 2, 3), "two": (3, 4)}.items():
        (tmp_path / name).mkdir()
        for seed in seeds:
            data = tools.npz_bytes(motion=tools.tiny_motion(seed, 43), fps=25)
            (tmp_path / name / f"clip{seed}.npz").write_bytes(data)
        done = command("tokenize", tmp_path / name, tmp_path / f"{name}-t", "-c", tiny_codec, *GROUPED, "--local")
        assert done.code == 0
    assert command("export", tmp_path / "one-t", tmp_path / "two-t", tmp_path / "both", "--local").code == 0
    assert command("verify", tmp_path / "both").code == 0
    assert manifest_of(tmp_path / "both")["counts"]["clips"] == 4


def test_another_number_of_windows_a_sample_builds_tars_anew_and_no_parquet(command, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    before = {path: path.stat().st_mtime_ns for path in copy.glob("parquet/*/*")}
    tars = {shard["path"] for shard in manifest_of(copy)["shards"]["webdataset"]}
    assert command("export", copy, copy, "--set", "export.windows_per_sample=2", "--local").code == 0
    assert {path: path.stat().st_mtime_ns for path in copy.glob("parquet/*/*")} == before
    assert not tars & {shard["path"] for shard in manifest_of(copy)["shards"]["webdataset"]}
    assert command("verify", copy).code == 0
    assert command("export", copy, copy, *GROUPED, "--local").code == 0
    assert manifest_of(copy)["shards"] == manifest_of(dataset)["shards"]
    assert command("verify", copy).code == 0


@pytest.mark.parametrize("shuffle", ["shard", "global"])
def test_a_shuffle_of_grouped_samples_is_refused_before_anything_is_written(
    command, dataset, tiny_corpus, tiny_codec, tmp_path, shuffle
):
    words = ("--set", f"export.shuffle={shuffle}", "--local")
    outcome = command("export", dataset, tmp_path / "o", *words)
    assert (outcome.code, f"export.windows_per_sample={SIZE} and export.shuffle={shuffle}" in outcome.text) == (2, True)
    tokenized = command("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, *GROUPED, *words)
    assert tokenized.code == 2, tokenized.text
    assert not (tmp_path / "o").exists()
    assert command("export", dataset, tmp_path / "o", *words, "--set", "export.windows_per_sample=1").code == 0
    assert command("export", dataset, tmp_path / "p", *words, "--format", "parquet").code == 0
    assert "windows_per_sample" not in manifest_of(tmp_path / "p")["export"]


def test_verify_finds_samples_of_other_windows_than_the_settings_say(command, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    manifest = manifest_of(copy)
    manifest["export"]["windows_per_sample"] = 4
    (copy / "dataset.json").write_text(json.dumps(manifest))
    outcome = command("verify", copy)
    assert (outcome.code, "samples do not hold 4 windows of a clip each" in outcome.text) == (1, True), outcome.text


@pytest.fixture(scope="module")
def sounding(tools, tmp_path_factory):
    """Four clips with sound at 44.1 kHz and a carried field."""
    folder = tmp_path_factory.mktemp("sounding")
    for n, num_frames in enumerate((8, 22, 31, 43)):
        sound = np.random.default_rng(n).integers(-9000, 9000, num_frames * 1764).astype(np.float32) / 32768
        fields = {"motion": tools.tiny_motion(n, num_frames), "fps": 25, "voice": sound, "mood": "ab"[n % 2]}
        (folder / f"clip{n}.npz").write_bytes(tools.npz_bytes(**fields))
    return folder


@pytest.mark.parametrize("encoding", ["int16", "flac"])
def test_sound_stands_in_grouped_samples_and_makes_shards_smaller(command, sounding, tiny_codec, tmp_path, encoding):
    audio = ("input.audio.field=voice", "input.audio.rate_hz=44100", f"input.audio.encoding={encoding}")
    words = [word for setting in (*audio, "input.carry=mood") for word in ("--set", setting)]
    everything = ("--set", "export.splits.ratios={train: 1}", *GROUPED, "--local")
    output, request = tmp_path / "o", ("tokenize", sounding, tmp_path / "o", "-c", tiny_codec, *words, *everything)
    assert command(*request, "--dry-run", "--json", tmp_path / "e.json").code == 0
    assert command(*request).code == 0
    verified = command("verify", output)
    assert verified.code == 0, verified.text
    # 16 bytes of bits and 2 x 5 frames of 1,764 samples fit 7,605 times into 256 MiB
    assert manifest_of(output)["export"]["windows_per_shard"] == 4096
    estimate = json.loads((tmp_path / "e.json").read_text())
    assert estimate["windows_per_shard"] == 4096
    (shard,) = manifest_of(output)["shards"]["webdataset"]
    configured = next(choice for choice in estimate["choices"] if choice["is_configured"])
    assert configured["tar_window_bytes"] == pytest.approx(shard["bytes"] / shard["windows"], rel=0.02)

    dataset = TokenDataset(str(output))
    windows = list(TarStream(str(output), batch_size=1))
    assert len(windows) == len(dataset) == manifest_of(output)["counts"]["windows"]
    for batch in windows:
        wanted = dataset.batch([dataset.find(batch["clip_id"][0], int(batch["start_frame"]))])
        assert set(batch) == set(wanted)
        for name in ("prev_audio", "this_audio", "this_bits", "audio_rate_hz"):
            assert torch.equal(batch[name], wanted[name]), name
        assert batch["mood"] == wanted["mood"]
    (batch,) = TarSampleStream(str(output), batch_size=50)
    assert batch["this_audio"].shape == (len(batch["clip_id"]), SIZE, 5 * 1764)
    assert batch["prev_bits"].shape[:2] == batch["start_frame"].shape == (len(batch["clip_id"]), SIZE)
    assert batch["audio_rate_hz"].tolist() == [44_100] * len(batch["clip_id"])


def test_null_puts_the_default_in_the_place_of_a_number(command, dataset, tmp_path):
    assert manifest_of(dataset)["export"]["windows_per_shard"] == 60
    for name, words in {"kept": (), "default": ("--set", "export.windows_per_shard=null")}.items():
        assert command("export", dataset, tmp_path / name, *words, "--local").code == 0
    assert manifest_of(tmp_path / "kept")["export"]["windows_per_shard"] == 60
    assert manifest_of(tmp_path / "default")["export"]["windows_per_shard"] == 16_384
