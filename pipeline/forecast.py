"""What a probe means for the whole job: wall time, GPU-hours, how many readers and tokenizers, and a deadline.

Pure arithmetic on what estimate.py and probe.py measured; knows no clock, Ray or storage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.estimate import JobEstimate
from pipeline.execution import JobRecord
from pipeline.probe import ProbeFigures


@dataclass(frozen=True)
class Forecast:
    """What the job would take on what was probed; built by `forecast_job`."""

    wall_s: float
    seconds: Mapping[str, float]
    """Stage -> seconds, which add up to `wall_s`."""
    device: str
    device_hours: float
    """GPU-hours; on CPUs hours of all cores together."""
    num_actors: int
    """That were probed."""
    best_actors: int
    """Tokenizers that this executor can keep busy."""
    best_readers: int
    """Read tasks at once that keep so many tokenizers busy."""
    read_bytes_per_s: float
    """Of one reader."""
    is_read_bound: bool
    """Whether reading leaves devices idle: more CPUs for reading would make the job faster."""


@dataclass(frozen=True)
class DeadlineForecast:
    """Whether a job ends before it has to."""

    seconds_left: float
    holds: bool
    needed_actors: int | None
    """Tokenizers, each as fast as those probed, with which it would hold; None where no number would do."""


@dataclass(frozen=True)
class Room:
    """What the executor has."""

    num_cpus: float
    num_gpus: float
    cores_a_machine: int


def forecast_job(estimate: JobEstimate, probe: ProbeFigures, plan_s: float, room: Room) -> Forecast:
    """Return what the units that are missing would take.

    Gate and report, some seconds each, are not in it.

    Args:
        plan_s: seconds that planning took.
    """
    windows = estimate.num_windows_todo
    read_s, write_s, tokenize_s = _window_seconds(estimate, probe)
    alone_s = 1 / probe.windows_per_s
    if probe.executor == "local" and not probe.num_runs:
        alone_s += read_s  # one after the other there, and no task came to its end while it was measured
    seconds = {
        "plan": plan_s,
        "start": probe.start_s,
        "first": probe.first_s,
        "tokenize": windows * alone_s,
        "export": windows * estimate.shard_s / max(1.0, room.num_cpus),
    }
    feeding = (read_s + write_s) / tokenize_s
    """Cores that keep one tokenizer busy."""
    if room.num_gpus:
        fed = math.floor(room.num_cpus / feeding) if feeding else room.num_gpus
        most = int(room.num_gpus)
    else:
        fed = most = max(1, int(room.num_cpus) // room.cores_a_machine)
    best = max(1, min(most, int(fed), estimate.windows.num_units - estimate.num_units_done))
    return Forecast(
        wall_s=sum(seconds.values()),
        seconds=seconds,
        device=estimate.device,
        device_hours=estimate.num_devices * (probe.start_s + probe.first_s + seconds["tokenize"]) / 3600,
        num_actors=probe.num_actors,
        best_actors=best,
        best_readers=max(1, math.ceil(best * read_s / tokenize_s)),
        read_bytes_per_s=probe.read_bytes_per_s or estimate.windows.read_bytes / max(estimate.windows.read_s, 1e-9),
        is_read_bound=bool(room.num_gpus) and fed < most,
    )


def forecast_deadline(forecast: Forecast, seconds_left: float) -> DeadlineForecast:
    """Return whether the job would end in so many seconds, and if not, what it would need."""
    tokenize_s = forecast.seconds["tokenize"]
    left_s = seconds_left - (forecast.wall_s - tokenize_s)
    needed = max(1, math.ceil(forecast.num_actors * tokenize_s / left_s)) if left_s > 0 else None
    return DeadlineForecast(seconds_left, forecast.wall_s <= seconds_left, needed)


def _window_seconds(estimate: JobEstimate, probe: ProbeFigures) -> tuple[float, float, float]:
    """Return the seconds of one reader, one writer and one tokenizer a window.

    Where no task came through all stages in time, reading is what it was while windows were counted.
    """
    counted = max(1.0, estimate.windows.num_windows * estimate.windows.read_bytes / max(1, estimate.input_bytes))
    read_s = probe.stage_s.get("read", estimate.windows.read_s / counted)
    tokenize_s = probe.stage_s.get("tokenize", probe.num_actors / probe.windows_per_s)
    return read_s, probe.stage_s.get("write", 0.0), tokenize_s


def read_forecast(text: str, name: str) -> dict[str, Any]:
    """Return what a run is compared with, of the JSON that plan wrote.

    Raises:
        ConfigError: it is something else, or was written without a probe.
    """
    try:
        tree = json.loads(text)
        forecast = tree["forecast"]
        found = {"wall_s": float(forecast["wall_s"]), "seconds": dict(forecast["seconds"]), "plan": str(tree["plan"])}
        return found | {"windows": int(tree["windows_todo"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"run.estimate: {name} is not what plan wrote with --probe: make it with"
            f" motion-tokens plan INPUT.. --probe 60 --json {name}"
        ) from error


def compared_forecast(forecast: Mapping[str, Any], record: JobRecord, plan: str | None) -> dict[str, Any]:
    """Return a forecast beside what happened, for run.json.

    Args:
        forecast: of `read_forecast`.
        plan: digest of the plan that ran; None where it did not come to that.
    """
    stages = ("plan", "start", "workers", "tokenize", "export")
    wall_s = sum(record.seconds.get(name, 0.0) for name in stages)
    return {
        **forecast,
        "is_same_plan": forecast["plan"] == plan,
        "happened": {"wall_s": round(wall_s, 3), "windows": record.counts["windows"]},
        "wall_ratio": round(wall_s / forecast["wall_s"], 3) if forecast["wall_s"] else None,
    }
