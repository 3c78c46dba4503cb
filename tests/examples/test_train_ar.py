"""The training example on tokens of a tiny codec: what it counts, what it learns, and what it refuses."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.hashing import hash64
from pipeline.loader import TokenFeatures

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FRAMES, DIMS, RATE_HZ = 5, 4, 1000
FRAME_SAMPLES = RATE_HZ // 25
FEATURES = TokenFeatures((1, 2, 5), 8)


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The modules of the example."""
    names = ("ar_bits", "ar_data", "ar_model", "train_ar")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            patch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tiny_codec: Path) -> Path:
    """Slow waves with sound, and with latents; clip ends are padded, and almost all clips are for training."""
    folder = tmp_path_factory.mktemp("ar")
    (folder / "motion").mkdir()
    for n in range(60):
        rng = np.random.default_rng(n)
        num_frames = int(rng.integers(12, 50))
        wave = np.sin(np.arange(num_frames)[:, None] / rng.uniform(6, 12, DIMS) + rng.uniform(0, 6, DIMS)) * 2
        sound = rng.integers(-9000, 9000, num_frames * FRAME_SAMPLES).astype(np.int16)
        np.savez(folder / "motion" / f"clip{n:02}.npz", motion=wave.astype(np.float32), fps=25.0, audio=sound)
    settings = (
        "gate=off",
        "run.report=false",
        "window.stride=2",
        "window.tail=pad",
        "emit=latent",
        "input.audio.field=audio",
        f"input.audio.rate_hz={RATE_HZ}",
        "export.splits.ratios={train: 0.97, val: 0.03}",
    )
    words = ["tokenize", str(folder / "motion"), str(folder / "tokens"), "-c", str(tiny_codec), "--local"]
    result = CliRunner().invoke(app, [*words, *(word for setting in settings for word in ("--set", setting))])
    assert result.exit_code == 0, result.output
    return folder / "tokens"


@pytest.fixture(scope="module")
def run(example: SimpleNamespace, tokens: Path) -> Callable[..., tuple[int, dict]]:
    """Return a function that runs the program: exit code, and its JSON where it wrote one."""

    def call(folder: Path, *words: str, dataset: Path = tokens) -> tuple[int, dict]:
        file = folder / "ar.json"
        code = example.train_ar.main([str(dataset), "--device", "cpu", "--json", str(file), *words])
        return code, json.loads(file.read_text()) if file.is_file() else {}

    return call


def unpacked(rows: pa.Table, name: str) -> np.ndarray:
    packed = np.stack([np.frombuffer(value, np.uint8) for value in rows[name].to_pylist()])
    return np.unpackbits(packed, axis=1).reshape(len(rows), 8, 8)


def is_hashed_out(clip_id: str) -> bool:
    return hash64(f"held out\0{clip_id}") < 0.1 * 2**64


def test_independent_entropy_is_that_of_the_shares_of_ones_by_scale_and_bit(run, tokens, tmp_path):
    """Counted here from the shards, without the loader; tokens that cover padding alone do not count."""
    code, found = run(tmp_path, "--steps", "1")
    assert code == 0
    manifest = json.loads((tokens / "dataset.json").read_text())
    parts: dict[str, list[pa.Table]] = {"train": [], "held": []}
    for shard in manifest["shards"]["parquet"]:
        rows = pq.read_table(tokens / shard["path"])
        is_held = [shard["split"] != "train" or is_hashed_out(clip_id) for clip_id in rows["clip_id"].to_pylist()]
        parts["held"].append(rows.filter(pa.array(is_held)))
        parts["train"].append(rows.filter(pa.array([not held for held in is_held])))
    train, held = (pa.concat_tables(parts[name], promote_options="permissive") for name in ("train", "held"))
    assert (found["train_windows"], found["held_out_windows"]) == (len(train), len(held))
    assert not set(train["clip_id"].to_pylist()) & set(held["clip_id"].to_pylist())
    first_frames = np.array([0, 0, 2, 0, 1, 2, 3, 4])
    bits, valid = {}, {}
    for name, rows in (("train", train), ("held", held)):
        bits[name] = unpacked(rows, "this_bits")
        valid[name] = first_frames < rows["this_valid_frames"].to_numpy()[:, None]
    assert not valid["held"].all()
    spent, counted = [], []
    for tokens_of_scale in (slice(0, 1), slice(1, 3), slice(3, 8)):
        ones = bits["train"][:, tokens_of_scale][valid["train"][:, tokens_of_scale]].mean(axis=0)
        ones = ones.clip(1e-4, 1 - 1e-4)
        mine = bits["held"][:, tokens_of_scale][valid["held"][:, tokens_of_scale]]
        spent.append(-np.log2(np.where(mine == 1, ones, 1 - ones)))
    for scale, values in zip(found["scales"], spent, strict=True):
        assert scale["independent_entropy"] == pytest.approx(values.mean(), abs=1e-4)
        counted.append(values.ravel())
    assert found["independent_entropy"] == pytest.approx(np.concatenate(counted).mean(), abs=1e-4)
    assert found["ratio"] == pytest.approx(found["bits_per_bit"] / found["independent_entropy"], abs=2e-4)


def test_train_learns_what_prev_and_coarser_scales_tell(run, tmp_path):
    code, found = run(tmp_path, "--steps", "150", "--batch-size", "32", "--drop-prev", "0")
    assert code == 0
    assert found["ratio"] < 0.85
    assert found["bits_per_bit"] < found["token_entropy"] < 1.01
    assert (found["steps"], found["processes"], found["has_audio"]) == (150, 1, True)


def test_train_gives_equal_figures_again(run, tmp_path):
    figures = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        figures.append(run(tmp_path / name, "--steps", "6")[1])
    for key in ("bits_per_bit", "last_training_bits_per_bit", "scales"):
        assert figures[0][key] == figures[1][key]
    (tmp_path / "three").mkdir()
    assert run(tmp_path / "three", "--steps", "6", "--seed", "1")[1]["bits_per_bit"] != figures[0]["bits_per_bit"]


def test_train_draws_flips_from_stored_latents(run, tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "flips").mkdir()
    plain = run(tmp_path / "plain", "--steps", "3")[1]
    code, flips = run(tmp_path / "flips", "--steps", "3", "--flips", "0.5")
    assert code == 0
    assert flips["last_training_bits_per_bit"] != plain["last_training_bits_per_bit"]
    assert flips["independent_entropy"] == plain["independent_entropy"]


def test_sample_is_motion_that_continues_a_held_out_prev(run, tokens, tiny_codec, tmp_path):
    motions = []
    for name in ("a.npz", "b.npz"):
        file = tmp_path / name
        assert run(tmp_path, "--steps", "2", "--sample", str(file), "--checkpoint", str(tiny_codec))[0] == 0
        with np.load(file) as arrays:
            motions.append(arrays["motion"])
            assert arrays["fps"] == 25
    assert motions[0].shape == (2 * FRAMES, DIMS)
    assert np.isfinite(motions[0]).all()
    np.testing.assert_array_equal(*motions)


def test_train_runs_on_two_processes(tokens, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLES / "train_ar.py")]
    options = [str(tokens), "--steps", "5", "--device", "cpu", "--json", str(tmp_path / "ar.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, *options], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "ar.json").read_text())
    assert found["processes"] == 2
    assert found["bits_per_bit"] < 1.05


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_model_sees_no_bit_of_its_own_or_a_later_scale(example, scale):
    """Other bits at a scale change logits of later scales, and only those; another prev changes all."""
    torch.manual_seed(0)
    model = example.ar_model.NextScaleModel(FEATURES, example.ar_model.SIZES["small"], torch.zeros(8, 8), False).eval()
    torch.nn.init.normal_(model.head.weight)
    bits = torch.randint(0, 2, (3, 8, 8), generator=torch.Generator().manual_seed(1))
    prev = FEATURES.code_feature(bits.flip(0))
    changed = bits.clone()
    is_scale = FEATURES.levels() == scale
    changed[:, is_scale] = 1 - changed[:, is_scale]
    with torch.inference_mode():
        one, other, behind = (
            model(context, FEATURES.next_scale_features(seen))
            for context, seen in ((prev, bits), (prev, changed), (-prev, bits))
        )
    differs = ((one - other).abs() > 1e-5).any(dim=-1)
    assert differs.tolist() == [(FEATURES.levels() > scale).tolist()] * 3
    assert ((one - behind).abs() > 1e-5).any(dim=-1).all()


def test_sample_draws_bits_of_the_models_chances(example):
    """A model that is sure of every bit draws those bits."""
    log_odds = torch.where(torch.rand(8, 8, generator=torch.Generator().manual_seed(2)) < 0.5, 40.0, -40.0)
    model = example.ar_model.NextScaleModel(FEATURES, example.ar_model.SIZES["small"], log_odds).eval()
    drawn = model.sample(torch.zeros(2, FRAMES, 8), torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(drawn, (log_odds > 0).int().expand(2, -1, -1))


def test_sample_is_guided_from_the_null_code_to_beyond_prev(example):
    torch.manual_seed(0)
    model = example.ar_model.NextScaleModel(FEATURES, example.ar_model.SIZES["small"], torch.zeros(8, 8)).eval()
    torch.nn.init.normal_(model.head.weight)
    prev, null = torch.randn(2, 4, FRAMES, 8)
    null = null[:1]

    def drawn(behind: torch.Tensor, strength: float | None = None) -> list:
        guide = None if strength is None else (null, strength)
        return model.sample(behind, torch.Generator().manual_seed(5), guide=guide).tolist()

    plain = drawn(prev)
    assert drawn(prev, 1.0) == plain
    assert drawn(prev, 0.0) == drawn(null.expand(4, -1, -1)) != plain
    assert drawn(prev, 4.0) != plain


def test_model_hears_both_halves(example):
    torch.manual_seed(0)
    model = example.ar_model.NextScaleModel(FEATURES, example.ar_model.SIZES["small"], torch.zeros(8, 8), True).eval()
    torch.nn.init.normal_(model.head.weight)
    prev, inputs = torch.zeros(1, FRAMES, 8), torch.zeros(1, 7, 8)
    silence, noise = torch.zeros(1, FRAMES, 32), torch.rand(1, FRAMES, 32)
    with torch.inference_mode():
        heard = [model(prev, inputs, audio) for audio in ((silence, silence), (noise, silence), (silence, noise))]
    for other in heard[1:]:
        assert ((heard[0] - other).abs() > 1e-5).any(dim=-1).all()


def test_audio_bands_are_loud_where_the_tone_is(example):
    hop, bands = 640, example.ar_model.AUDIO_BANDS
    time = torch.arange(10 * hop) / 16_000
    tone = (torch.sin(2 * math.pi * 2_875 * time) * 20_000).to(torch.int16)
    tone[: 5 * hop] = 0
    found = example.ar_model.audio_bands(tone[None], 10)
    assert found.shape == (1, 10, bands)
    assert (found[0, :5] == 0).all()
    assert (found[0, 5:].argmax(dim=1) == int(2_875 / 8_000 * bands)).all()


def test_mean_bits_counts_valid_tokens_alone(example):
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), -math.log(3)]]])
    targets = torch.tensor([[[1, 0], [1, 1]]])
    sure, wrong = math.log2(4 / 3), 2.0
    both = torch.tensor([[True, True]])
    assert example.ar_bits.mean_bits(logits, targets, both).item() == pytest.approx((2 + sure + wrong) / 4)
    assert example.ar_bits.mean_bits(logits, targets, ~both).item() == 0
    assert example.ar_bits.mean_bits(logits, targets, torch.tensor([[False, True]])).item() == pytest.approx(
        (sure + wrong) / 2
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps 0 and batch size 8 must be 1 or more"),
        (["--drop-prev", "2"], "drop prev must be within 0 and 1"),
        (["--steps", "1", "--sample", "x.npz", "--checkpoint", "demo"], "another codec than this checkpoint"),
    ],
)
def test_train_refuses(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, *words)[0] == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_train_refuses_places_without_tokens(run, tmp_path, capsys):
    assert run(tmp_path, dataset=tmp_path)[0] == 2
    assert "holds no dataset.json" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="hardware: has a CUDA device")
def test_train_refuses_a_gpu_that_is_not_there(example, tokens, capsys):
    assert example.train_ar.main([str(tokens), "--device", "cuda"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
