"""`motion-tokens train` from files: what it writes and refuses, and that a killed training ends in the same curve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from bitwise_vae import load_checkpoint
from bitwise_vae.checkpoints.digest import sample_digest
from bitwise_vae.checkpoints.quality_record import record_from_bytes
from jobs.cli import app

DIMS = 12
MODEL = {"code_dim": 16, "patch_nums": [1, 2, 5, 10, 20], "num_heads": 2}
OPTIONS = ["--hidden-dim", "16", "--depth", "1", "--batch-size", "4", "--held-out", "0.2"]
FIGURES = ("train.jsonl", "train.json", "codec.safetensors")


def smooth_motion(num_frames, seed, dims=DIMS):
    rng = np.random.default_rng(seed)
    time_s = np.arange(num_frames)[:, None] / 25
    waves = np.sin(2 * np.pi * rng.uniform(0.2, 1.0, (1, 4)) * time_s + rng.uniform(0, 6.28, (1, 4)))
    return (waves @ np.random.default_rng(1).normal(size=(4, dims))).astype(np.float32)


@pytest.fixture
def motion(tmp_path):
    folder = tmp_path / "motion"
    folder.mkdir()
    for index in range(6):
        np.savez(folder / f"take-{index}.npz", motion=smooth_motion(90, index), fps=25.0)
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    return folder


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def command(motion, out, *more, steps=60):
    model = motion.parent / "model.json"
    return [
        "train",
        str(motion),
        str(out),
        "--model-config",
        str(model),
        "--steps",
        str(steps),
        *OPTIONS,
        *more,
    ]


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join(result.output.split())


def test_train_writes_codec_curve_and_summary(motion, tmp_path):
    out = tmp_path / "codec"
    code, output = run(*command(motion, out))
    assert code == 0, output
    assert "clips to train on" in output
    assert "held out" in output
    curve = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [50, 60]
    assert set(curve[0]["losses"]) == {"total", "l1", "velocity", "acceleration", "quantizer", "latent"}
    assert len(curve[0]["entropy"]) == 5
    model = load_checkpoint(out / "codec.safetensors")
    record = record_from_bytes((out / "codec.safetensors").read_bytes(), "codec.safetensors")
    assert record.sample_digest == sample_digest(model)
    summary = json.loads((out / "train.json").read_text())
    assert summary["held_out"]["fraction_of_mean"] == record.fraction_of_mean
    assert record.num_clips >= 1
    again, output = run(*command(motion, out))
    assert again == 0
    assert "already complete" in output


def test_train_killed_and_resumed_ends_in_the_same_bytes(motion, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = run(*command(motion, whole, steps=150))
    assert code == 0, output
    arguments = [sys.executable, "-m", "jobs.cli"]
    process = subprocess.Popen([*arguments, *command(motion, killed, steps=150)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (killed / "checkpoints" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "train.json").exists(), "it was killed too late to tell anything"
    code, output = run(*command(motion, killed, steps=150))
    assert (code, "continued" in output) == (0, True), output
    for name in FIGURES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_train_refuses_to_continue_with_other_settings_or_data(motion, tmp_path):
    out = tmp_path / "codec"
    assert run(*command(motion, out))[0] == 0
    code, output = run(*command(motion, out, "--learning-rate", "0.01"))
    assert (code, "settings.learning_rate 0.01 here, 0.0005 there" in output) == (2, True), output
    np.savez(motion / "take-9.npz", motion=smooth_motion(90, 9), fps=25.0)
    code, output = run(*command(motion, out))
    assert (code, "data" in output) == (2, True), output


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda motion, fps: (motion[:10], fps), "no clip is long enough: a window has 20 frames, the longest of 6"),
        (lambda motion, fps: (np.ones_like(motion), fps), "all 12 columns are constant"),
        (lambda motion, fps: (np.full_like(motion, np.nan), fps), "non_finite"),
        (lambda motion, fps: (motion, 30.0), "fps_mismatch"),
    ],
    ids=["short", "constant", "nan", "fps"],
)
def test_train_refuses_motion_that_no_codec_fits(motion, tmp_path, spoil, words):
    for index in range(6):
        changed, fps = spoil(smooth_motion(90, index), 25.0)
        np.savez(motion / f"take-{index}.npz", motion=changed, fps=fps)
    code, output = run(*command(motion, tmp_path / "codec"))
    assert (code, words in output) == (65, True), output
    assert not (tmp_path / "codec" / "codec.safetensors").exists()


def test_train_drops_bad_clips_by_name_and_goes_on(motion, tmp_path):
    broken = smooth_motion(90, 7)
    broken[3] = np.nan
    np.savez(motion / "lost.npz", motion=broken, fps=25.0)
    code, output = run(*command(motion, tmp_path / "codec"))
    assert (code, "1 non_finite (lost" in output) == (0, True), output


def test_train_takes_statistics_and_refuses_others(motion, tmp_path):
    stats = tmp_path / "stats.json"
    assert run("stats", str(motion), str(stats), "--local")[0] == 0
    code, output = run(*command(motion, tmp_path / "codec", "--stats", str(stats)))
    assert code == 0, output
    model = load_checkpoint(tmp_path / "codec" / "codec.safetensors")
    np.testing.assert_allclose(model.motion_std.numpy(), json.loads(stats.read_text())["std"], rtol=1e-6)
    other = tmp_path / "other"
    other.mkdir()
    np.savez(other / "take.npz", motion=smooth_motion(90, 0, dims=5), fps=25.0)
    assert run("stats", str(other), str(stats), "--local")[0] == 0
    code, output = run(*command(motion, tmp_path / "second", "--stats", str(stats)))
    assert (code, "stats.json has statistics of 5 dimensions, the motion has 12" in output) == (2, True), output


def test_train_refuses_impossible_requests(motion, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    code, output = run(*command(motion, tmp_path / "full"))
    assert (code, "holds no training (notes.txt)" in output) == (2, True), output
    code, output = run(*command(motion, tmp_path / "codec", "--num-workers", "3"))
    assert (code, "--batch-size 4 does not divide by --num-workers 3" in output) == (2, True), output
    code, output = run(*command(motion, tmp_path / "codec", "--precision", "float16"))
    assert (code, "precision must be one of float32, bfloat16" in output) == (2, True), output


@pytest.mark.slow
def test_train_in_two_workers_of_ray(motion, tmp_path):
    code, output = run(*command(motion, tmp_path / "two", "--num-workers", "2"))
    assert code == 0, output
    assert run(*command(motion, tmp_path / "one"))[0] == 0
    two, one = (json.loads((tmp_path / name / "train.json").read_text())["held_out"] for name in ("two", "one"))
    assert two["fraction_of_mean"] == pytest.approx(one["fraction_of_mean"], rel=0.05)
