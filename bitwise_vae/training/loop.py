"""Fits a codec: AdamW over random windows, an average of the weights, and held-out error along the way.

Knows tensors, clips in memory and bytes; no files and no cluster: where state goes, and who else takes part in a
step, is handed in. On one machine and device equal data and settings give the same curve, resumed or not (on a CPU
to the bit).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.model import BitwiseVAE
from bitwise_vae.training.clips import MotionStatistics
from bitwise_vae.training.evaluation import Evaluation, evaluate
from bitwise_vae.training.losses import ExtraLoss, LossTerms, training_loss
from bitwise_vae.training.state import state_bytes, state_from_bytes
from bitwise_vae.training.task import Peers, TrainingSettings, TrainingTask, check_task
from bitwise_vae.training.window_bank import WindowBank, WindowBatch

BETAS = (0.9, 0.99)


class TrainingDivergedError(ArithmeticError):
    """The loss is no finite number any more."""


class Trainer:
    """Owns model, average, optimiser and frames on one device; dies with the training.

    Built by a command (one a process); `step` advances by one batch, `state` and `restore` carry everything over a
    death of the process.
    """

    def __init__(
        self,
        task: TrainingTask,
        device: torch.device,
        peers: Peers | None = None,
        extra_losses: Sequence[ExtraLoss] = (),
    ) -> None:
        """Draws the weights from the seed and copies the frames to the device.

        Raises:
            TrainingDataError: no clip is long enough, or statistics of another dimension.
            ValueError: the batch does not divide by the workers.
        """
        check_task(task)
        self.task, self.settings, self.device = task, task.settings, device
        self.peers = peers or Peers()
        if self.settings.batch_size % self.peers.num_workers:
            raise ValueError(
                f"batch_size must divide by the workers, found {self.settings.batch_size} and {self.peers.num_workers}"
            )
        self.identity = task.identity()
        self.completed = 0
        self.best_error = math.inf
        window_frames = task.config.window_frames
        self._training = WindowBank(task.training, window_frames, device)
        self._held_out = WindowBank(task.held_out, window_frames, device)
        self.model = new_model(task.config, task.statistics, self.settings.seed).to(device).train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self._extra_losses = tuple(extra_losses)
        self._optimizer = _optimizer(self.model, self.settings)
        self._forward: Callable[[WindowBatch], tuple[LossTerms, Tensor]] = self._losses

    def compile(self) -> None:
        """Compiles forward and loss on first use; the numbers change in their last places."""
        self._forward = torch.compile(self._losses, dynamic=False)

    def step(self) -> StepFigures:
        """Takes one step of the optimiser.

        Returns:
            The batch's losses and bit usage, on the device: reading them waits for it.
        """
        settings = self.settings
        share = slice(self.peers.rank, None, self.peers.num_workers)
        batch = self._training.random_batch(settings.batch_size, settings.seed, self.completed, share)
        losses, entropy = self._forward(batch)
        self._optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        parameters = list(self.model.parameters())
        if self.peers.num_workers > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            self.peers.add_up(gradients)
            torch._foreach_div_(gradients, float(self.peers.num_workers))
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_gradient)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate_at(self.completed)
        self._optimizer.step()
        self._follow(parameters)
        self.completed += 1
        return StepFigures(torch.stack([term.detach() for term in losses]), entropy, norm.detach())

    def measure(self, max_windows: int | None = None) -> Evaluation:
        """Measures the averaged weights on held-out clips."""
        return evaluate(self.average, self._held_out, max_windows)

    def validate(self) -> tuple[Evaluation, bool]:
        """Measures the average, and keeps it as the best where it is.

        Returns:
            The figures, and whether it is the best so far.
        """
        found = self.measure(self.settings.validation_windows)
        is_best = found.error.normalised_l1 < self.best_error
        if is_best:
            self.best_error = found.error.normalised_l1
            self.best.load_state_dict(self.average.state_dict())
        return found, is_best

    def best_codec(self) -> tuple[BitwiseVAE, Evaluation]:
        """Returns the best average, and its figures on all held-out windows."""
        return self.best, evaluate(self.best, self._held_out)

    def state(self) -> bytes:
        """Returns everything that continues the training, as bytes that hold plain tensors only."""
        return state_bytes(
            {
                "identity": json.dumps(self.identity, sort_keys=True),
                "completed": self.completed,
                "best_error": self.best_error,
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "best": self.best.state_dict(),
                "optimizer": self._optimizer.state_dict(),
            }
        )

    def restore(self, data: bytes, name: str) -> None:
        """Continues where `state` was taken.

        Args:
            data: from `state`.
            name: of the file, for messages.

        Raises:
            TrainingStateError: it cannot be read, or belongs to other data or settings; the message names them.
        """
        state = state_from_bytes(data, name, self.identity)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.best.load_state_dict(state["best"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.completed, self.best_error = state["completed"], state["best_error"]

    def _losses(self, batch: WindowBatch) -> tuple[LossTerms, Tensor]:
        """Forward and loss of a batch, and the mean entropy of its bits at each scale, (K,)."""
        is_rounded = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_rounded):
            output = self.model(batch.motion)
        config = self.task.config
        losses = training_loss(output, batch.motion, batch.is_real, config, self.model.motion_std, self.settings.loss)
        for extra_loss in self._extra_losses:
            losses = losses._replace(total=losses.total + extra_loss(output.motion, batch.motion, batch.is_real))
        bits = torch.cat([output.prev_bits, output.this_bits]).detach().float()
        shares = [scale.mean(dim=(0, 1)) for scale in torch.split(bits, list(config.patch_nums), dim=1)]
        return losses, _entropy(torch.stack(shares)).mean(dim=1)

    def _follow(self, parameters: list[nn.Parameter]) -> None:
        """Moves the average towards the weights, faster while it is young."""
        decay = min(self.settings.ema_decay, (1 + self.completed) / (10 + self.completed))
        averages = [parameter.detach() for parameter in self.average.parameters()]
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in parameters], 1 - decay)


@dataclass(frozen=True)
class StepFigures:
    """What one step showed: losses in the order of LossTerms (6,), entropy of bits (K,), norm of the gradient."""

    losses: Tensor
    entropy: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class CurvePoint:
    """One line of a training's curve: means over `log_every` steps, and a validation where there was one.

    Holds no clock: equal trainings have equal curves.
    """

    step: int
    losses: dict[str, float]
    entropy: tuple[float, ...]
    gradient: float
    learning_rate: float
    held_out: dict[str, Any] | None = None

    def to_json(self) -> str:
        """Returns one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class TrainingEvents:
    """Who is told of what: a point of the curve; and that a checkpoint is due, with the figures if it is the best."""

    on_point: Callable[[CurvePoint], None] = lambda point: None
    on_checkpoint: Callable[[Trainer, Evaluation | None], None] = lambda trainer, best: None


def train(trainer: Trainer, events: TrainingEvents) -> None:
    """Takes all steps that are left; measures and reports as the settings say.

    Raises:
        TrainingDivergedError: the loss is not finite.
    """
    settings = trainer.settings
    since: list[StepFigures] = []
    while trainer.completed < settings.steps:
        since.append(trainer.step())
        is_last = trainer.completed == settings.steps
        if trainer.completed % settings.log_every and not is_last:
            continue
        point = _curve_point(since, trainer)
        since = []
        is_due = trainer.completed % settings.validate_every == 0 or is_last
        if is_due and trainer.peers.rank == 0:
            found, is_best = trainer.validate()
            events.on_point(replace(point, held_out=_validation_values(found)))
            events.on_checkpoint(trainer, found if is_best else None)
        else:
            events.on_point(point)


def new_model(config: BitwiseVAEConfig, statistics: MotionStatistics, seed: int) -> BitwiseVAE:
    """Returns a model to train: torch's initialisation from the seed, with the statistics of the motion."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BitwiseVAE(config)
    model.motion_mean.copy_(torch.from_numpy(statistics.mean))
    model.motion_std.copy_(torch.from_numpy(statistics.std))
    return model


def _optimizer(model: BitwiseVAE, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases, norms and position embeddings do not."""
    parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    decaying = [value for name, value in parameters.items() if value.ndim == 2]
    others = [value for name, value in parameters.items() if value.ndim != 2]
    groups = [
        {"params": decaying, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    is_cuda = decaying[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=is_cuda)


def _curve_point(since: Sequence[StepFigures], trainer: Trainer) -> CurvePoint:
    losses = torch.stack([figures.losses for figures in since]).double().mean(dim=0)
    if trainer.peers.num_workers > 1:
        trainer.peers.add_up([losses])
        losses = losses / trainer.peers.num_workers
    values = losses.tolist()
    if not all(math.isfinite(value) for value in values):
        raise TrainingDivergedError(
            f"the loss at step {trainer.completed} is {values[0]}: try a smaller learning rate than "
            f"{trainer.settings.learning_rate:g}, or more warm-up; the last checkpoint stands"
        )
    return CurvePoint(
        step=trainer.completed,
        losses=dict(zip(LossTerms._fields, values, strict=True)),
        entropy=tuple(torch.stack([figures.entropy for figures in since]).double().mean(dim=0).tolist()),
        gradient=float(torch.stack([figures.gradient for figures in since]).double().mean()),
        learning_rate=trainer.settings.rate_at(trainer.completed - 1),
    )


def _validation_values(found: Evaluation) -> dict[str, Any]:
    return {
        "fraction_of_mean": found.error.fraction_of_mean,
        "normalised_l1": found.error.normalised_l1,
        "entropy": list(found.codes.mean_entropy),
        "dead_bits": len(found.codes.dead_bits),
    }


def _entropy(share: Tensor) -> Tensor:
    """Entropy in bits of yes-no values by their share of yes, 0 .. 1."""
    share = share.clamp(1e-7, 1 - 1e-7)
    return -(share * share.log2() + (1 - share) * (1 - share).log2())
