"""What a training is: codec, data, settings, and the processes that share it. Plain values, checked on construction.

Knows no tensors but in the hook through which processes add them up.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.training.clips import MotionClips, MotionStatistics, TrainingDataError
from bitwise_vae.training.losses import LossWeights

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that shapes a training's curve, beside the data and the codec's configuration.

    Attributes:
        steps: of the optimiser; the learning rate falls to `final_rate` of itself over them.
        batch_size: windows a step, over all workers.
        learning_rate: at the end of the warm-up.
        warmup_steps: over which it rises from 0.
        final_rate: share of it that is left at the last step (cosine between).
        weight_decay: AdamW's, on matrices only.
        max_gradient: largest norm of the gradient; a larger one is scaled down.
        ema_decay: of the average of the weights, which is what is measured and kept; less in the first steps.
        seed: of weights and windows.
        precision: bfloat16 (autocast, the quantizer in float32) or float32.
        log_every: steps between lines of the curve.
        validate_every: steps between measurements and checkpoints; a multiple of log_every.
        validation_windows: held-out windows in a measurement along the way.
        loss: weights of the terms.
    """

    steps: int = 20_000
    batch_size: int = 128
    learning_rate: float = 5e-4
    warmup_steps: int = 500
    final_rate: float = 0.02
    weight_decay: float = 0.01
    max_gradient: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    precision: str = "float32"
    log_every: int = 50
    validate_every: int = 500
    validation_windows: int = 256
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        """Looks at the ranges.

        Raises:
            ValueError: a value that no training can have.
        """
        counts = ("steps", "batch_size", "log_every", "validate_every", "validation_windows")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.validate_every % self.log_every:
            raise ValueError(
                f"validate_every must be a multiple of log_every, found {self.validate_every} and {self.log_every}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {self.precision!r}")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.ema_decay < 1 or self.warmup_steps < 0:
            raise ValueError(
                "wanted learning_rate > 0, 0 <= ema_decay < 1 and warmup_steps >= 0, found "
                f"{self.learning_rate}, {self.ema_decay}, {self.warmup_steps}"
            )

    def rate_at(self, step: int) -> float:
        """Returns the learning rate of a step, 0 the first: linear warm-up, then half a cosine."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        share = self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * share


@dataclass(frozen=True)
class Peers:
    """The other processes of a training. Alone by default; a launcher hands in sums over a process group.

    `add_up` replaces tensors, in place, by their sum over all workers.
    """

    rank: int = 0
    num_workers: int = 1
    add_up: Callable[[Sequence[Tensor]], None] = lambda tensors: None


@dataclass(frozen=True)
class TrainingTask:
    """What is fitted to what. Built once by whoever read the motion."""

    config: BitwiseVAEConfig
    statistics: MotionStatistics
    training: MotionClips
    held_out: MotionClips
    settings: TrainingSettings

    def identity(self) -> dict[str, Any]:
        """Returns what a checkpoint must agree with to be continued: field -> JSON value."""
        statistics = hashlib.sha256(self.statistics.mean.tobytes() + self.statistics.std.tobytes()).hexdigest()
        return {
            "codec": self.config.to_dict(),
            "settings": asdict(self.settings),
            "statistics": statistics,
            "training data": self.training.digest(),
            "held-out data": self.held_out.digest(),
        }


def check_task(task: TrainingTask) -> None:
    """Refuses data that the codec cannot be fitted to.

    Raises:
        TrainingDataError: columns or statistics of another number, or a deviation that is not above 0.
    """
    dims = task.config.motion_dim
    for clips, what in ((task.training, "training clips have"), (task.held_out, "held-out clips have")):
        if clips.frames.shape[1] != dims:
            raise TrainingDataError(
                f"{what} {clips.frames.shape[1]} columns, the codec {dims}: choose them with input.columns, or "
                "another motion_dim"
            )
    shapes = {task.statistics.mean.shape, task.statistics.std.shape}
    if shapes != {(dims,)}:
        found = ", ".join(str(shape) for shape in sorted(shapes))
        raise TrainingDataError(f"the statistics have shape {found}, the motion {dims} columns: compute them of it")
    if not (task.statistics.std > 0).all():
        raise TrainingDataError("the statistics hold a deviation that is not above 0: constant columns take 1")
