"""Makes a demonstration codec: a motion space's corpus, this project's own trainer, figures.

A program of its own (`python -m jobs.demo_codecs.train_demo --space flame`), so that it runs on a bare GPU host: it
needs torch, numpy and safetensors. It writes the codec, demo.json with every figure of the model card, and the curve.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitwise_vae.checkpoints.checkpoint import checkpoint_bytes, read_checkpoint, round_weights, weights_digest
from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.model import BitwiseVAE
from bitwise_vae.training.clips import MotionStatistics
from bitwise_vae.training.evaluation import Evaluation, evaluate_clips
from bitwise_vae.training.loop import CurvePoint, Trainer, TrainingDivergedError, TrainingEvents, train
from bitwise_vae.training.metrics import ErrorFigures, ReconstructionError
from bitwise_vae.training.task import TrainingSettings, TrainingTask
from bitwise_vae.training.window_bank import WindowBank
from jobs.demo.speaker_timeline import FPS
from jobs.demo_codecs.demo_corpus import NUM_HELD_OUT, SPACES, Corpus, Space, make_corpus, read_takes
from jobs.demo_codecs.transform_baseline import TransformBaseline, fit_baseline
from pipeline.storage import Folder

SMALL_SETTINGS = TrainingSettings(
    batch_size=256, learning_rate=1e-3, warmup_steps=1000, validate_every=1000, log_every=250, precision="bfloat16"
)
FULL_SETTINGS = replace(SMALL_SETTINGS, batch_size=128, learning_rate=5e-4)
CALIBRATION_STEPS = (20, 80)
"""Steps before and during the measurement of speed from which `--minutes` becomes a number of steps."""

BASELINE_BLOCKS = {1: 100_000, 100: 3000}
"""Frames of a block -> blocks that a baseline is fitted to."""


def main(
    *,
    spaces: Mapping[str, Space] = SPACES,
    num_held_out: int = NUM_HELD_OUT,
    calibration_steps: tuple[int, int] = CALIBRATION_STEPS,
    baseline_blocks: Mapping[int, int] = BASELINE_BLOCKS,
) -> None:
    """Parse the command line and run everything.

    Args:
        spaces: kinds of motion by name.
        num_held_out: procedural clips that choose the best, and as many that only the figures see.
        calibration_steps: before and during the measurement of speed.
        baseline_blocks: frames of a block -> blocks that a baseline is fitted to.
    """
    options = _options(spaces)
    begin = time.perf_counter()
    space = spaces[options.space]
    takes = read_takes(options.real, space)
    corpus = make_corpus(space, options.hours, options.workers, takes, num_held_out)  # before CUDA starts: it forks
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    statistics = corpus.training.statistics()
    _tell(f"{corpus.training.num_frames / FPS / 3600:.2f} h to train on, {time.perf_counter() - begin:.0f} s")

    config = space.full if options.full_size else space.small
    settings = _settings(options, device)
    if options.steps is None:
        task = TrainingTask(config, statistics, corpus.training, corpus.validation, settings)
        per_step = seconds_a_step(task, device, options.compile, calibration_steps)
        steps = max(settings.log_every, int(options.minutes * 60 / per_step) // 500 * 500)
        settings = replace(settings, steps=steps, warmup_steps=min(settings.warmup_steps, steps // 5))
        _tell(f"{1000 * per_step:.1f} ms a step: {steps} steps")
    task = TrainingTask(config, statistics, corpus.training, corpus.validation, settings)
    model, settings, seconds = fit(task, device, options)
    _tell(f"measuring, at {time.perf_counter() - begin:.0f} s")

    if not options.full_size:
        round_weights(model, torch.float16)
    figures = {name: evaluate_clips(model, clips, device) for name, clips in corpus.test.items()}
    record = figures["procedural"].record(model)
    data = checkpoint_bytes(model, record, torch.float32 if options.full_size else torch.float16)
    codec = options.codec or options.out / space.codec_name
    _publish(codec, data)
    read = read_checkpoint(data, codec.name)
    report = {
        "settings": asdict(settings),
        "config": config.to_dict(),
        "hours": options.hours,
        "space": options.space,
        "real": [take.name for take in takes],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "training_seconds": seconds,
        "num_bytes": len(data),
        "num_weights": sum(parameter.numel() for parameter in model.parameters()),
        "weights_digest": weights_digest(read),
        "codec": {name: _values(found) for name, found in figures.items()},
        "baselines": _baselines(config, corpus, statistics, device, baseline_blocks),
    }
    _publish(options.out / "demo.json", (json.dumps(report, indent=1) + "\n").encode())
    _tell(summary(report))


def seconds_a_step(task: TrainingTask, device: torch.device, is_compiled: bool, num_steps: tuple[int, int]) -> float:
    """Measure how long a step takes, after a few.

    Args:
        num_steps: before and during the measurement.
    """
    trainer = _trainer(task, device, is_compiled)
    warm, timed = num_steps
    for _ in range(warm):
        trainer.step()
    _finish(device)
    begin = time.perf_counter()
    for _ in range(timed):
        trainer.step()
    _finish(device)
    return (time.perf_counter() - begin) / timed


def fit(
    task: TrainingTask, device: torch.device, options: argparse.Namespace
) -> tuple[BitwiseVAE, TrainingSettings, float]:
    """Trains, again with half the learning rate where it diverges, and stops early where the time is up.

    Returns:
        The best average, the settings that it was trained with, and the seconds that all took.
    """
    begin = time.perf_counter()
    while True:
        try:
            model = _fitted(task, device, options, begin)
            return model, task.settings, time.perf_counter() - begin
        except TrainingDivergedError as error:
            _tell(str(error))
            task = replace(task, settings=replace(task.settings, learning_rate=task.settings.learning_rate / 2))


def coded_by_baseline(baseline: TransformBaseline, bank: WindowBank, error: ReconstructionError) -> ErrorFigures:
    """Codes the frames that an evaluation of the codec counts, and returns the error."""
    for index, start, fresh in zip(*bank.grid(), strict=True):
        motion = bank.clips.clip(index)[start : start + bank.window_frames]
        error.add(motion, baseline.coded(motion), np.arange(bank.window_frames) >= fresh)
    return error.figures()


def summary(report: dict[str, Any]) -> str:
    """Says in a few lines what came out."""
    lines = [f"{report['num_bytes']} bytes, {report['num_weights']} weights, {report['training_seconds']:.0f} s"]
    for name, found in report["codec"].items():
        lines.append(
            f"{name}: {found['fraction_of_mean']:.4f} of the mean (L1 {found['normalised_l1']:.4f}, mean "
            f"{found['mean_l1']:.4f}); entropy {[round(value, 3) for value in found['entropy']]}, dead bits "
            f"{found['dead_bits']}"
        )
        for baseline, values in report["baselines"].items():
            lines.append(
                f"  {baseline}: {values[name]['fraction_of_mean']:.4f} with {values['bits_per_second']:.0f} bits/s"
            )
    return "\n".join(lines)


def _options(spaces: Mapping[str, Space]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for codec, demo.json and train.jsonl")
    parser.add_argument("--codec", type=Path, help="another place for the codec")
    parser.add_argument("--space", choices=spaces, default="flame", help="kind of motion")
    parser.add_argument("--real", type=Path, nargs="+", default=[], help="npz of recorded takes, or folders of such")
    parser.add_argument("--hours", type=float, default=24.0, help="procedural motion to train on")
    parser.add_argument("--minutes", type=float, default=5.0, help="becomes a number of steps by measured speed")
    parser.add_argument("--steps", type=int, help="so many instead")
    parser.add_argument("--limit-minutes", type=float, default=7.0, help="training stops early after this time")
    parser.add_argument("--full-size", action="store_true", help="hidden 512, depth 6, stored as float32")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--quantizer-weight", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=16, help="processes that make motion")
    parser.add_argument("--device")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    return parser.parse_args()


def _settings(options: argparse.Namespace, device: torch.device) -> TrainingSettings:
    settings = replace(FULL_SETTINGS if options.full_size else SMALL_SETTINGS, seed=options.seed)
    if device.type == "cpu":
        settings = replace(settings, precision="float32", log_every=10, validate_every=50)
    if options.steps is not None:
        settings = replace(settings, steps=options.steps, warmup_steps=min(settings.warmup_steps, options.steps // 5))
    if options.batch_size is not None:
        settings = replace(settings, batch_size=options.batch_size)
    if options.learning_rate is not None:
        settings = replace(settings, learning_rate=options.learning_rate)
    if options.quantizer_weight is not None:
        settings = replace(settings, loss=replace(settings.loss, quantizer=options.quantizer_weight))
    return settings


def _fitted(task: TrainingTask, device: torch.device, options: argparse.Namespace, begin: float) -> BitwiseVAE:
    trainer = _trainer(task, device, options.compile)
    limit_s = options.limit_minutes * 60
    lines: list[str] = []

    def on_point(point: CurvePoint) -> None:
        lines.append(point.to_json() + "\n")
        seconds = time.perf_counter() - begin
        if point.held_out or seconds < 30 or device.type == "cpu":
            _publish(options.out / "train.jsonl", "".join(lines).encode())
            _tell(_line(point, seconds))
        if seconds > limit_s and trainer.completed < task.settings.steps:
            raise TimeoutError

    try:
        train(trainer, TrainingEvents(on_point=on_point))
    except TimeoutError:
        _tell(f"time is up at step {trainer.completed}")
        trainer.validate()
    return trainer.best


def _trainer(task: TrainingTask, device: torch.device, is_compiled: bool) -> Trainer:
    """Returns a trainer; one that compiles, where that works here, has taken its first step."""
    trainer = Trainer(task, device)
    if is_compiled and device.type == "cuda":
        trainer.compile()
        try:
            trainer.step()
        except Exception as error:  # noqa: BLE001 - whatever a compiler says, the plain program works
            _tell(f"not compiled: {type(error).__name__}: {str(error)[:300]}")
            trainer = Trainer(task, device)
    return trainer


def _baselines(
    config: BitwiseVAEConfig,
    corpus: Corpus,
    statistics: MotionStatistics,
    device: torch.device,
    blocks: Mapping[int, int],
) -> dict[str, Any]:
    """Fits and measures both baselines, each with at most the codec's bits a second."""
    bits_a_frame = config.num_tokens * config.code_dim / config.window_frames
    found: dict[str, Any] = {}
    for block_frames, max_blocks in blocks.items():
        num_bits = int(bits_a_frame * block_frames)
        baseline = fit_baseline(corpus.training, statistics, block_frames, num_bits, max_blocks)
        name = "PCA of frames" if block_frames == 1 else f"PCA of frames and time ({block_frames} frames)"
        found[name] = {"bits_per_second": baseline.bits_per_second(config.fps)}
        for part, clips in corpus.test.items():
            bank = WindowBank(clips, config.window_frames, device)
            error = ReconstructionError(statistics.mean, statistics.std, config.motion_groups, config.fps)
            found[name][part] = _error_values(coded_by_baseline(baseline, bank, error))
    return found


def _values(found: Evaluation) -> dict[str, Any]:
    codes = found.codes
    return {
        **_error_values(found.error),
        "num_clips": found.num_clips,
        "entropy": list(codes.mean_entropy),
        "lowest_entropy": [float(value) for value in codes.entropy.min(axis=1)],
        "dead_bits": list(codes.dead_bits),
        "distinct_tokens": list(codes.distinct_tokens),
        "num_tokens": list(codes.num_tokens),
        "mean_correlation": list(codes.mean_correlation),
    }


def _error_values(error: ErrorFigures) -> dict[str, Any]:
    return asdict(error)


def _line(point: CurvePoint, seconds: float) -> str:
    held_out = point.held_out or {}
    fraction = f", held out {held_out['fraction_of_mean']:.4f} of the mean" if held_out else ""
    dead = f", {held_out['dead_bits']} dead bits" if held_out else ""
    entropy = " ".join(f"{value:.2f}" for value in point.entropy)
    losses = "  ".join(f"{name} {value:.4f}" for name, value in point.losses.items())
    return (
        f"{seconds:5.0f} s  step {point.step}  {losses}  gradient {point.gradient:.2f}  entropy {entropy}"
        f"{fraction}{dead}"
    )


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _publish(path: Path, data: bytes) -> None:
    Folder(str(path.parent)).publish(path.name, data)


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
