"""The program that made the demonstration codec, at toy size: its corpus, its files, a run from end to end."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwise_vae import load_checkpoint, record_from_bytes, sample_digest, weights_digest
from jobs import train_demo
from jobs.procedural_motion import speech_motion
from jobs.train_demo import at_fps, make_corpus

TOY = replace(train_demo.SMALL, hidden_dim=12, depth=1)


@pytest.fixture(autouse=True)
def _toy_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_demo, "NUM_HELD_OUT", 2)
    monkeypatch.setattr(train_demo, "BASELINE_BLOCKS", {1: 500, 100: 20})
    monkeypatch.setattr(train_demo, "CALIBRATION_STEPS", (1, 1))
    monkeypatch.setattr(train_demo, "SMALL", TOY)
    monkeypatch.setattr(train_demo, "FULL", TOY)


@pytest.fixture
def take(tmp_path: Path) -> Path:
    path = tmp_path / "take.npz"
    np.savez(path, motion=speech_motion(1200, 5, 30.0), fps=30.0)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    words = ["train_demo", "--hours", "0.03", "--workers", "1", "--device", "cpu", "--batch-size", "2", *options]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    train_demo.main()


def test_train_demo_writes_codec_figures_and_curve(
    monkeypatch: pytest.MonkeyPatch, take: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, "--out", out, "--real", take, "--steps", 3)
    data = (out / "demo_flame106.safetensors").read_bytes()
    model, record = load_checkpoint(data), record_from_bytes(data, "codec")
    report = json.loads((out / "demo.json").read_text())
    assert model.config == TOY
    assert record is not None
    assert record.sample_digest == sample_digest(model)
    assert record.fraction_of_mean == report["codec"]["procedural"]["fraction_of_mean"]
    assert report["weights_digest"] == weights_digest(model)
    assert report["num_bytes"] == len(data)
    assert report["settings"]["steps"] == 3
    assert all(torch.equal(weight, weight.half().float()) for weight in model.parameters())
    rates = {name: found["bits_per_second"] for name, found in report["baselines"].items()}
    assert set(rates) == {"PCA of frames", "PCA of frames and time (100 frames)"}
    assert max(rates.values()) <= 1448
    assert set(report["codec"]) == {"procedural", "real"}
    steps = [json.loads(line)["step"] for line in (out / "train.jsonl").read_text().splitlines()]
    assert steps == [3]
    assert "bits/s" in capsys.readouterr().out


def test_train_demo_full_size_keeps_float32_and_chooses_steps_by_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codec = tmp_path / "codecs" / "full.safetensors"
    run(monkeypatch, "--out", tmp_path / "out", "--codec", codec, "--full-size", "--minutes", 0.0001)
    report = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert report["settings"]["steps"] == 10
    assert set(report["codec"]) == {"procedural"}
    parameters = load_checkpoint(codec).parameters()
    assert not all(torch.equal(weight, weight.half().float()) for weight in parameters)


def test_make_corpus_keeps_the_end_of_the_take_and_its_speakers_apart(take: Path) -> None:
    corpus = make_corpus(0.03, 1, take)
    recorded = at_fps(speech_motion(1200, 5, 30.0), 30.0, 25.0)
    split = int(0.8 * len(recorded))
    np.testing.assert_allclose(corpus.test["real"].frames, recorded[split + 25 :], atol=1e-6)
    names = [set(clips.clip_ids) for clips in (corpus.training, corpus.validation, *corpus.test.values())]
    assert sum(map(len, names)) == len(set().union(*names))
    assert "recorded-0" in names[0]
    np.testing.assert_array_equal(corpus.training.clip(0), speech_motion(1500, 1_000_000))


def test_at_fps_is_linear_in_time() -> None:
    ramp = np.arange(61, dtype=np.float32)[:, None] / 30
    np.testing.assert_allclose(at_fps(ramp, 30.0, 25.0)[:, 0], np.arange(51) / 25, atol=1e-6)
