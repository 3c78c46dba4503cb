"""The program that made the demonstration codecs, at toy size: its files, a run from end to end in each space."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwise_vae import load_checkpoint, record_from_bytes, sample_digest, weights_digest
from bitwise_vae.config import ARKIT_GROUPS
from jobs.demo.procedural_motion import speech_motion
from jobs.demo_codecs.demo_corpus import SPACES, Space
from jobs.demo_codecs.train_demo import main
from pipeline.errors import InputFormatError


def toy(space: Space) -> Space:
    config = replace(space.small, hidden_dim=12, depth=1)
    return replace(space, small=config, full=config)


TOYS = {name: toy(space) for name, space in SPACES.items()}


@pytest.fixture
def take(tmp_path: Path) -> Path:
    path = tmp_path / "take.npz"
    np.savez(path, motion=speech_motion(1200, 5, 30.0), fps=30.0)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    words = ["train_demo", "--hours", "0.03", "--workers", "1", "--device", "cpu", "--batch-size", "2", *options]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    main(spaces=TOYS, num_held_out=2, calibration_steps=(1, 1), baseline_blocks={1: 500, 100: 20})


def test_train_demo_writes_codec_figures_and_curve(
    monkeypatch: pytest.MonkeyPatch, take: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, "--out", out, "--real", take, "--steps", 3)
    data = (out / "demo_flame106.safetensors").read_bytes()
    model, record = load_checkpoint(data), record_from_bytes(data, "codec")
    report = json.loads((out / "demo.json").read_text())
    assert model.config == TOYS["flame"].small
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
    assert (report["space"], report["real"]) == ("flame", ["take"])
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


def test_train_demo_measures_all_arkit_takes_of_a_folder_and_learns_from_none(
    monkeypatch: pytest.MonkeyPatch, procedural_motion: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "takes", tmp_path / "out"
    folder.mkdir()
    names = ["take_0", "take_2"]
    for name in names:
        shutil.copy(procedural_motion / "arkit_iphone" / f"{name}.npz", folder)
    run(monkeypatch, "--space", "arkit", "--out", out, "--real", folder, "--steps", 2)
    data = (out / "demo_arkit61.safetensors").read_bytes()
    model = load_checkpoint(data)
    report = json.loads((out / "demo.json").read_text())
    assert model.config == TOYS["arkit"].small
    assert (model.config.motion_dim, model.config.motion_groups, model.config.fps) == (61, ARKIT_GROUPS, 25)
    assert (report["space"], report["real"]) == ("arkit", names)
    parts = {"procedural", "real", *(f"real: {name}" for name in names)}
    assert set(report["codec"]) == parts
    assert all(parts <= set(found) for found in report["baselines"].values())
    frames = {part: found["num_frames"] for part, found in report["codec"].items()}
    assert frames["real"] == sum(frames[f"real: {name}"] for name in names) > 1200
    assert [group["name"] for group in report["codec"]["real"]["groups"]] == ["blend_shapes", "head_pose", "eyes"]

    run(monkeypatch, "--space", "arkit", "--out", tmp_path / "alone", "--steps", 2)
    alone = json.loads((tmp_path / "alone" / "demo.json").read_text())
    assert alone["weights_digest"] == report["weights_digest"]
    assert set(alone["codec"]) == {"procedural"}


def test_train_demo_refuses_takes_of_another_space(monkeypatch: pytest.MonkeyPatch, take: Path, tmp_path: Path) -> None:
    with pytest.raises(InputFormatError, match="--space"):
        run(monkeypatch, "--space", "arkit", "--out", tmp_path / "out", "--real", take, "--steps", 2)
    assert not (tmp_path / "out").exists()
