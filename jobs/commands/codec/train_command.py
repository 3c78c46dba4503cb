"""The command train: motion, codec to be and settings to one training, here or in Ray Train's workers.

Knows no formula and no format. Every worker reads the motion itself; only the first one writes.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from bitwise_vae.config import BitwiseVAEConfig, ConfigError as CodecConfigError, config_from_values, values_from_json
from bitwise_vae.training.evaluation import Evaluation
from bitwise_vae.training.loop import CurvePoint, Trainer
from bitwise_vae.training.task import Peers, TrainingSettings, TrainingTask
from jobs.session.ray_start import ray_running
from pipeline.errors import ConfigError, IncompleteError
from pipeline.settings.job_config import JobConfig
from pipeline.stages.codec import pick_device
from pipeline.storage import Folder, read_text
from pipeline.training.train_job import CODEC, SUMMARY, TrainObserver, check_output, fit_codec
from pipeline.training.training_motion import (
    MotionRequest,
    TrainingMotion,
    divided,
    read_motion,
    read_statistics,
    require_statistics,
)

LINE_INTERVAL_S = 10.0


@dataclass(frozen=True)
class TrainRequest:
    """What a person asked for.

    Args:
        codec: values of BitwiseVAEConfig that are given on the command line.
        model_config: path or URL of a JSON with others; the command line wins.
        stats: path or URL of a stats.json; None: computed from the clips to train on.
        held_out_share: of the clips, by a hash of their id.
        num_workers: processes; above 1 they are Ray Train's.
    """

    inputs: tuple[str, ...]
    output: str
    codec: dict[str, Any]
    model_config: str | None
    stats: str | None
    held_out_share: float
    settings: TrainingSettings
    num_workers: int
    config: JobConfig


def run_train(request: TrainRequest, console: Console) -> None:
    """Train a codec, or continue where a training of the same data and settings was stopped.

    Raises:
        RequestError: the request cannot start.
        DataError: no codec can be fitted to the motion.
        IncompleteError: workers died; the same command continues.
    """
    if not 0 < request.held_out_share < 1:
        raise ConfigError(f"--held-out {request.held_out_share:g}: wanted a share of the clips above 0 and below 1")
    if request.settings.batch_size % request.num_workers:
        raise ConfigError(
            f"--batch-size {request.settings.batch_size} does not divide by --num-workers {request.num_workers}"
        )
    output = Folder(request.output, request.config.run.storage_options)
    check_output(output)
    with console.status("reading motion"):
        task, motion = training_task(request)
    show_motion(task, motion, console)
    device = pick_device()
    display = TrainDisplay(console, task.settings.steps, scalars_folder(output))
    if request.num_workers == 1:
        result = fit_codec(task, output, device, display)
        if result is not None:
            show_result(json.loads(output.read(SUMMARY)), output, result.was_complete, console)
    else:
        del task, motion
        train_with_ray(request, console)


def settings_of(options: Mapping[str, Any], precision: str | None) -> TrainingSettings:
    """Return settings as given, the others scaled to the number of steps.

    Raises:
        ConfigError: a value that no training can have.
    """
    steps: int = options["steps"]
    every = max(1, min(500, steps // 10) // 50 * 50 or min(50, steps))
    try:
        return TrainingSettings(
            **options,
            precision=precision or ("bfloat16" if pick_device().type == "cuda" else "float32"),
            warmup_steps=min(500, steps // 10),
            log_every=min(50, every),
            validate_every=every,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def training_task(request: TrainRequest) -> tuple[TrainingTask, TrainingMotion]:
    """Read the motion, and say what is fitted to it.

    Raises:
        RequestError: inputs, statistics or the codec's configuration cannot be.
        DataError: no codec can be fitted to the motion.
    """
    values = _codec_values(request)
    statistics = None if request.stats is None else read_statistics(request.stats, request.config)
    fps = float(values.get("fps", BitwiseVAEConfig.fps))
    motion = read_motion(MotionRequest(request.inputs, request.config, fps, values.get("motion_dim"), statistics))
    clips = motion.clips()
    if statistics is not None:
        require_statistics(statistics, clips, str(request.stats))
    try:
        config = config_from_values({**values, "motion_dim": clips.frames.shape[1]})
    except CodecConfigError as error:
        raise ConfigError(str(error)) from error
    training, held_out = divided(clips, config.window_frames, request.held_out_share)
    if statistics is None:
        statistics = training.statistics()
    return TrainingTask(config, statistics, training, held_out, request.settings), motion


def show_motion(task: TrainingTask, motion: TrainingMotion, console: Console) -> None:
    """Print what is trained on and what was left out."""
    hours = task.training.num_frames / task.config.fps / 3600
    drawn = f", {motion.share:.1%} of the clips drawn" if motion.share < 1 else ""
    console.print(
        f"  motion        {task.training.num_clips:,} clips to train on, {hours:.2f} h; "
        f"{task.held_out.num_clips:,} held out{drawn}",
        highlight=False,
    )
    for line in motion.drop_lines():
        console.print(f"  [yellow]dropped[/yellow]       {escape(line)}", highlight=False, soft_wrap=True)


def show_result(summary: dict[str, Any], output: Folder, was_complete: bool, console: Console) -> None:
    """Print what came out, from train.json."""
    held_out = summary["held_out"]
    entropy = " ".join(f"{value:.2f}" for value in held_out["entropy"])
    console.print(
        f"  {'already complete' if was_complete else 'trained'}\n"
        f"  held out      {held_out['fraction_of_mean']:.4f} of the error of keeping the mean "
        f"({held_out['num_clips']:,} clips, {held_out['num_frames']:,} frames)\n"
        f"  bits          entropy {entropy} by scale; {len(held_out['dead_bits'])} dead\n"
        f"  codec         {escape(output.url_of(CODEC))}",
        highlight=False,
        soft_wrap=True,
    )


class TrainDisplay(TrainObserver):
    """Prints a line every few seconds and at every measurement; writes TensorBoard scalars where a folder is given."""

    def __init__(self, console: Console, steps: int, scalars: str | None) -> None:
        self._console, self._steps, self._scalars = console, steps, scalars
        self._writer: Any = None
        self._last_line, self._since, self._first = -LINE_INTERVAL_S, time.monotonic(), 0

    def on_start(self, trainer: Trainer) -> None:
        """Say where the training begins."""
        self._first, self._since = trainer.completed, time.monotonic()
        if trainer.completed:
            self._console.print(f"  continued     at step {trainer.completed:,} of {self._steps:,}", highlight=False)
        self._writer = _scalar_writer(self._scalars, trainer.completed)

    def on_point(self, point: CurvePoint) -> None:
        """Print a line, and write scalars."""
        if self._writer is not None:
            for name, value in scalars_of(point).items():
                self._writer.add_scalar(name, value, point.step)
        now = time.monotonic()
        if point.held_out is None and now - self._last_line < LINE_INTERVAL_S and point.step < self._steps:
            return
        self._last_line = now
        speed = (point.step - self._first) / max(1e-9, now - self._since)
        self._console.print(f"  {curve_line(point, self._steps)}  {speed:.1f} steps/s", highlight=False, soft_wrap=True)

    def on_checkpoint(self, step: int, best: Evaluation | None) -> None:
        """Make scalars visible."""
        if self._writer is not None:
            self._writer.flush()


def curve_line(point: CurvePoint, steps: int) -> str:
    """Return a point of the curve as one line: losses, use of bits by scale, held-out error."""
    entropy = " ".join(f"{value:.2f}" for value in point.entropy)
    losses = point.losses
    line = (
        f"step {point.step:,} of {steps:,}  loss {losses['total']:.4f}  L1 {losses['l1']:.4f}  "
        f"quantizer {losses['quantizer']:.4f}  bits {entropy}"
    )
    if point.held_out is None:
        return line
    fraction, dead = point.held_out["fraction_of_mean"], point.held_out["dead_bits"]
    return f"{line}  held out {fraction:.4f} of the mean, {dead} dead bits"


def scalars_of(point: CurvePoint) -> dict[str, float]:
    """Return name -> value of a point's TensorBoard scalars."""
    values = {f"loss/{name}": value for name, value in point.losses.items()}
    values.update({f"bit_entropy/scale_{scale}": value for scale, value in enumerate(point.entropy)})
    values.update({"optimizer/gradient": point.gradient, "optimizer/learning_rate": point.learning_rate})
    if point.held_out is not None:
        values["held_out/fraction_of_mean"] = point.held_out["fraction_of_mean"]
        values["held_out/dead_bits"] = point.held_out["dead_bits"]
    return values


def scalars_folder(output: Folder) -> str | None:
    """Return where TensorBoard scalars go: beside the codec, where that is a local folder."""
    return output.local_path("tensorboard")


def _scalar_writer(folder: str | None, step: int) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step + 1)


def train_with_ray(request: TrainRequest, console: Console) -> None:
    """Train in several processes of Ray Train, each with a share of every batch.

    Raises:
        IncompleteError: a worker died and was not replaced; the same command continues.
    """
    with ray_running(shows_workers=True), tempfile.TemporaryDirectory() as results:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            _train_as_worker,
            train_loop_config={"request": request},
            scaling_config=ScalingConfig(num_workers=request.num_workers, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(storage_path=results, failure_config=FailureConfig(max_failures=1)),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise IncompleteError(f"the workers ended with {type(error).__name__}: {error}") from error
    output = Folder(request.output, request.config.run.storage_options)
    show_result(json.loads(output.read(SUMMARY)), output, False, console)


def _train_as_worker(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs."""
    from ray.train import get_context
    from ray.train.torch import get_device

    request: TrainRequest = config["request"]
    context = get_context()
    peers = Peers(context.get_world_rank(), context.get_world_size(), add_up)
    output = Folder(request.output, request.config.run.storage_options)
    task, _ = training_task(request)
    observer = TrainObserver()
    if peers.rank == 0:
        observer = TrainDisplay(Console(), task.settings.steps, scalars_folder(output))
    fit_codec(task, output, get_device(), observer, peers)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all processes of the group, in one exchange."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def _codec_values(request: TrainRequest) -> dict[str, Any]:
    """Return configuration values as given: a JSON's, then the command line's."""
    values: dict[str, Any] = {}
    if request.model_config is not None:
        text = read_text(request.model_config, request.config.run.storage_options)
        try:
            values = values_from_json(text)
        except CodecConfigError as error:
            raise ConfigError(f"{request.model_config}: {error}") from error
    return {**values, **request.codec}
