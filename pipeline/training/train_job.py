"""A training as files: continued from its last checkpoint, its curve, the best codec so far, and its summary.

Knows no Ray, and nothing of how motion was read. Every file appears whole or not at all, the state last, so that a
training that is killed anywhere continues to the same curve.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bitwise_vae.checkpoints.checkpoint import checkpoint_bytes, weights_digest
from bitwise_vae.checkpoints.quality_record import QualityRecord
from bitwise_vae.training.clips import TrainingDataError
from bitwise_vae.training.evaluation import Evaluation
from bitwise_vae.training.loop import CurvePoint, Trainer, TrainingDivergedError, TrainingEvents, train
from bitwise_vae.training.losses import ExtraLoss
from bitwise_vae.training.state import TrainingStateError
from bitwise_vae.training.task import Peers, TrainingTask
from pipeline.errors import DataError, OutputMismatchError
from pipeline.storage import Folder

STATE, CODEC, CURVE, SUMMARY = "checkpoints/last.pt", "codec.safetensors", "train.jsonl", "train.json"
OWN_NAMES = {"checkpoints", CODEC, CURVE, SUMMARY, "tensorboard"}


class TrainObserver:
    """Watches silently; a display overrides what it wants to show."""

    def on_start(self, trainer: Trainer) -> None:
        """The training begins, or goes on at `trainer.completed`."""

    def on_point(self, point: CurvePoint) -> None:
        """A line of the curve."""

    def on_checkpoint(self, step: int, best: Evaluation | None) -> None:
        """The state stands; `best` where this is the best codec so far."""


@dataclass(frozen=True)
class TrainResult:
    """What a training came to."""

    record: QualityRecord
    weights: str
    was_complete: bool


def check_output(output: Folder) -> None:
    """Refuse a folder that holds something else than a training.

    Raises:
        OutputMismatchError: it does.
    """
    others = sorted(name for name in output.list_names("") if not name.startswith(".") and name not in OWN_NAMES)
    if others:
        raise OutputMismatchError(
            f"{output} is not empty and holds no training ({', '.join(others[:5])}): name another folder"
        )


def fit_codec(
    task: TrainingTask,
    output: Folder,
    device: torch.device,
    observer: TrainObserver,
    peers: Peers | None = None,
    extra_losses: Sequence[ExtraLoss] = (),
) -> TrainResult | None:
    """Train, or continue, until all steps are taken, and leave the best codec in the output.

    Args:
        observer: of this process.
        peers: other processes that train with it; only the first one writes.
        extra_losses: see `losses.ExtraLoss`.

    Returns:
        What came out; None in every process but the first.

    Raises:
        DataError: no codec can be fitted to the motion, or the loss diverged.
        OutputMismatchError: the output belongs to other data or settings; the message names them.
    """
    try:
        trainer = Trainer(task, device, peers, extra_losses)
    except TrainingDataError as error:
        raise DataError(str(error)) from error
    curve = _continued(trainer, output)
    was_complete = trainer.completed >= task.settings.steps
    observer.on_start(trainer)

    def on_point(point: CurvePoint) -> None:
        curve.append(point.to_json())
        observer.on_point(point)

    def on_checkpoint(trainer: Trainer, best: Evaluation | None) -> None:
        output.publish(CURVE, "".join(f"{line}\n" for line in curve).encode())
        if best is not None:
            output.publish(CODEC, checkpoint_bytes(trainer.best, best.record(trainer.best)))
        output.publish(STATE, trainer.state())
        observer.on_checkpoint(trainer.completed, best)

    try:
        train(trainer, TrainingEvents(on_point, on_checkpoint))
    except TrainingDivergedError as error:
        raise DataError(f"{error}: {output}") from error
    if trainer.peers.rank > 0:
        return None
    codec, evaluation = trainer.best_codec()
    record = evaluation.record(codec)
    output.publish(CODEC, checkpoint_bytes(codec, record))
    output.publish(SUMMARY, _summary(task, evaluation, weights_digest(codec)))
    return TrainResult(record, weights_digest(codec), was_complete)


def figures_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON values: errors by group, and use of bits by scale."""
    codes = evaluation.codes
    return {
        **asdict(evaluation.error),
        "num_clips": evaluation.num_clips,
        "entropy": list(codes.mean_entropy),
        "lowest_entropy": [float(value) for value in codes.entropy.min(axis=1)],
        "dead_bits": [list(place) for place in codes.dead_bits],
        "distinct_tokens": list(codes.distinct_tokens),
        "num_tokens": list(codes.num_tokens),
        "mean_correlation": list(codes.mean_correlation),
    }


def _continued(trainer: Trainer, output: Folder) -> list[str]:
    """Take up the last checkpoint, where there is one, and return the lines of the curve up to it."""
    if not output.exists(STATE):
        return []
    try:
        trainer.restore(output.read(STATE), output.url_of(STATE))
    except TrainingStateError as error:
        raise OutputMismatchError(str(error)) from error
    lines = output.read(CURVE).decode().splitlines()
    return [line for line in lines if json.loads(line)["step"] <= trainer.completed]


def _summary(task: TrainingTask, evaluation: Evaluation, weights: str) -> bytes:
    summary = {
        "identity": task.identity(),
        "weights": weights,
        "training": {"clips": task.training.num_clips, "frames": task.training.num_frames},
        "held_out": figures_of(evaluation),
    }
    return (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode()
