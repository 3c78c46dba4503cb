"""The command decode: tokens back to motion, window by window as the model decodes them; helpful refusals."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bitwise_vae import BitwiseVAEConfig, load_checkpoint, random_checkpoint, unpack_bits, write_checkpoint

QUICK = ("--local", "--gate", "off", "--set", "run.report=false")
FRAMES = 5


@pytest.fixture(scope="module")
def tokens(command, tiny_corpus, tiny_codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokens") / "o"
    outcome = command("tokenize", tiny_corpus, output, "-c", tiny_codec, *QUICK)
    assert outcome.code == 0, outcome.text
    return output


def rows_of(output, clip_id):
    rows = [row for path in output.glob("parquet/*/*.parquet") for row in pq.read_table(path).to_pylist()]
    return sorted((row for row in rows if row["clip_id"] == clip_id), key=lambda row: row["start_frame"])


def expected(output, codec, clip_id):
    """The rule, written down again: each frame from the first window whose `this` covers it."""
    model, rows = load_checkpoint(codec), rows_of(output, clip_id)
    motion = np.full((rows[0]["num_frames"], model.config.motion_dim), np.nan, np.float32)
    for row in rows:
        bits = [
            torch.from_numpy(unpack_bits(np.frombuffer(row[name], np.uint8).reshape(1, -1, 1)).astype(np.int32))
            for name in ("prev_bits", "this_bits")
        ]
        with torch.no_grad():
            this = model.vqidx_to_motion(*bits)[1][0].numpy()
        for offset in range(row["this_valid_frames"]):
            frame = row["start_frame"] + offset
            if np.isnan(motion[frame, 0]):
                motion[frame] = this[offset]
    return motion


def decoded(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_decode_puts_windows_together(command, tokens, tiny_codec, tmp_path):
    outcome = command("decode", tokens, "--clip", "clip07", "-c", tiny_codec, tmp_path / "x.npz")
    assert outcome.code == 0, outcome.text
    found = decoded(tmp_path / "x.npz")
    assert set(found) == {"motion", "fps", "clip_id"}
    assert (found["fps"], str(found["clip_id"])) == (25.0, "clip07")
    assert found["motion"].dtype == np.float32
    wanted = expected(tokens, tiny_codec, "clip07")
    assert wanted.shape == (28, 4)  # the last window is moved back to the end, over frames that are there
    np.testing.assert_allclose(found["motion"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("settings", "num_nan"), [(["window.stride=2"], 0), (["window.tail=pad"], 0),
                                                   (["window.tail=drop"], 3), (["window.stride=9"], 8)])  # fmt: skip
def test_decode_follows_any_window_rule(command, tools, tiny_codec, tmp_path, settings, num_nan):
    (tmp_path / "m.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(1, 28), fps=25.0))
    flags = [word for setting in settings for word in ("--set", setting)]
    assert command("tokenize", tmp_path / "m.npz", tmp_path / "o", "-c", tiny_codec, *QUICK, *flags).code == 0
    outcome = command("decode", tmp_path / "o", "--clip", "m", "-c", tiny_codec, tmp_path / "x.npz")
    assert outcome.code == 0, outcome.text
    motion = decoded(tmp_path / "x.npz")["motion"]
    np.testing.assert_allclose(motion, expected(tmp_path / "o", tiny_codec, "m"), rtol=1e-5, atol=1e-6)
    assert np.isnan(motion[:, 0]).sum() == num_nan
    assert ("NaN" in outcome.text) == bool(num_nan)


def test_decode_writes_many_clips_that_can_be_tokenized_again(command, tokens, tiny_codec, tmp_path):
    (tmp_path / "ids.txt").write_text("clip05\n\nclip03\n")
    arguments = ("--clip", "b/clip21", "--clips", tmp_path / "ids.txt", "-c", tiny_codec, tmp_path / "out")
    outcome = command("decode", tokens, *arguments)
    assert outcome.code == 0, outcome.text
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[1:] == ["clip03.npz", "clip05.npz"]
    assert names[0].startswith("b_clip21-")
    again = command("tokenize", tmp_path / "out", tmp_path / "again", "-c", tiny_codec, *QUICK)
    assert again.code == 0, again.text
    assert {row["num_frames"] for row in rows_of(tmp_path / "again", "clip03")} == {16}


def test_decode_gives_the_same_from_webdataset_shuffled_and_s3(command, tokens, tiny_codec, s3, tmp_path):
    from s3fs import S3FileSystem

    files = S3FileSystem(use_listings_cache=False, **s3.options)
    plain = tmp_path / "plain.npz"
    assert command("decode", tokens, "--clip", "b/clip29", "-c", tiny_codec, plain).code == 0
    shuffled, out = s3.url("decode/shuffled"), s3.url("decode/out")
    settings = ("--format", "webdataset", "--set", "export.shuffle=global", "--set", "export.windows_per_shard=40")
    exported = command("export", tokens, shuffled, *settings, "--local")
    assert exported.code == 0, exported.text
    codec = s3.url("decode/codec.safetensors")
    files.put(str(tiny_codec), codec)
    outcome = command("decode", shuffled, "--clip", "b/clip29", out)  # the codec stands beside it
    assert outcome.code == 0, outcome.text
    (path,) = files.ls(out)
    assert files.cat_file(path) == plain.read_bytes()


def test_decode_names_files_of_odd_clip_ids(command, tools, tiny_codec, tmp_path, monkeypatch):
    motion = tools.tiny_motion(1, 12)
    (tmp_path / "m").mkdir()
    for n, name in enumerate(("a/b", "../c", "ü")):
        (tmp_path / "m" / f"{n}.npz").write_bytes(tools.npz_bytes(motion=motion + n, fps=25.0, clip_id=name))
    assert command("tokenize", tmp_path / "m", tmp_path / "o", "-c", tiny_codec, *QUICK).code == 0
    arguments = [word for name in ("a/b", "../c", "ü") for word in ("--clip", name)]
    outcome = command("decode", tmp_path / "o", *arguments, "-c", tiny_codec, tmp_path / "out")
    assert outcome.code == 0, outcome.text
    paths = sorted((tmp_path / "out").iterdir())
    assert len(paths) == 3
    assert {str(decoded(path)["clip_id"]) for path in paths} == {"a/b", "../c", "ü"}


def test_decode_finds_the_codec_beside_the_dataset(command, tools, tiny_codec, tmp_path):
    (tmp_path / "m.npz").write_bytes(tools.npz_bytes(motion=tools.tiny_motion(1, 28), fps=25.0))
    assert command("tokenize", tmp_path / "m.npz", tmp_path / "o", "-c", tiny_codec, *QUICK).code == 0
    other = BitwiseVAEConfig(motion_dim=4, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2)
    write_checkpoint(random_checkpoint(other, np.zeros(4), np.ones(4), 1), tmp_path / "another.safetensors")
    missing = command("decode", tmp_path / "o", "--clip", "m", tmp_path / "x.npz")
    assert missing.code == 2
    assert "another.safetensors" in missing.text
    assert "--checkpoint" in missing.text
    (tmp_path / "mine.safetensors").write_bytes(tiny_codec.read_bytes())
    assert command("decode", tmp_path / "o", "--clip", "m", tmp_path / "x.npz").code == 0


def test_decode_knows_the_shipped_codec(command, procedural_motion, tmp_path):
    sets = ("--set", "input.resample=linear", "--set", "gate=off", "--local")
    assert command("tokenize", procedural_motion / "flame106", tmp_path / "o", "-c", "demo", *sets).code == 0
    clip_id = "speaker_0"
    outcome = command("decode", tmp_path / "o", "--clip", clip_id, tmp_path / "clip.npz")
    assert outcome.code == 0, outcome.text
    with np.load(tmp_path / "clip.npz") as decoded:
        assert decoded["motion"].shape == (1588, 106)


@pytest.mark.parametrize(
    ("seed", "mean", "patch_nums", "field"),
    [(1, 0.0, (1, 2, 5), "codec.weights"), (0, 0.5, (1, 2, 5), "codec.statistics"), (0, 0.0, (1, 3, 5), "patch_nums")],
)
def test_decode_refuses_another_codec(command, tokens, tmp_path, seed, mean, patch_nums, field):
    config = BitwiseVAEConfig(motion_dim=4, code_dim=8, patch_nums=patch_nums, hidden_dim=16, depth=1, num_heads=2)
    write_checkpoint(random_checkpoint(config, np.full(4, mean), np.ones(4), seed), tmp_path / "c.safetensors")
    outcome = command("decode", tokens, "--clip", "clip07", "-c", tmp_path / "c.safetensors", tmp_path / "x.npz")
    assert outcome.code == 2
    assert field in outcome.text
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["TOKENS"], "--clip ID"),
        (["TOKENS", "--clip", "clip08", "--clip", "clip7"], "'clip07'"),
        (["TOKENS", "--clip", "nan"], "non_finite"),
        (["TOKENS", "--clip", "clip07", "--clip", "clip08", "x.npz"], "name a folder"),
        (["TOKENS", "--clips", "nowhere.txt"], "check the path"),
        (["nowhere", "--clip", "clip07"], "dataset.json"),
    ],
)
def test_decode_refuses_bad_requests(command, tokens, tiny_codec, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    outcome = command("decode", *(tokens if word == "TOKENS" else word for word in arguments), "-c", tiny_codec)
    assert outcome.code == 2, outcome.text
    assert words in outcome.text
    assert list(tmp_path.iterdir()) == []


def test_decode_says_where_a_dataset_is_damaged(command, tokens, tools, tiny_codec, tmp_path):
    for path, data in tools.tree_of(tokens).items():
        (tmp_path / "o" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "o" / path).write_bytes(data)
    shard = next((tmp_path / "o").glob("parquet/train/*.parquet"))
    sink = io.BytesIO()
    table = pq.read_table(shard)
    pq.write_table(table.slice(1), sink)
    shard.write_bytes(sink.getvalue())
    first = table["clip_id"][0].as_py()
    outcome = command("decode", tmp_path / "o", "--clip", first, "-c", tiny_codec, tmp_path / "x.npz")
    assert outcome.code == 65
    assert "motion-tokens verify" in outcome.text


def test_decode_of_face_motion_has_its_shape(command, procedural_motion, tmp_path):
    path = next((procedural_motion / "flame106").glob("*.npz"))
    motion = np.load(path)["motion"]
    config = BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=2)
    checkpoint = tmp_path / "c.safetensors"
    write_checkpoint(random_checkpoint(config, motion.mean(axis=0), motion.std(axis=0), 0), checkpoint)
    resampling = ("--set", "input.resample=linear")
    assert command("tokenize", path.parent, tmp_path / "o", "-c", checkpoint, *QUICK, *resampling).code == 0
    outcome = command("decode", tmp_path / "o", "--clip", path.stem, tmp_path / "x.npz")
    assert outcome.code == 0, outcome.text
    found = decoded(tmp_path / "x.npz")
    assert found["motion"].shape == ((len(motion) - 1) * 25 // 30 + 1, 106)
    assert np.isfinite(found["motion"]).all()
