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
from pipeline.estimate.estimate import JobEstimate
from pipeline.estimate.probe import ProbeFigures
from pipeline.run.record import JobRecord

BUILDERS_S = 1.0
"""Until Ray's workers build the first shards: exports of some seconds took 1.0 to 1.5 s longer than building alone."""


@dataclass(frozen=True)
class Forecast:
    """What the job would take on what was probed; built by `forecast_job`."""

    wall_s: float
    seconds: Mapping[str, float]
    """Stage -> seconds, which add up to `wall_s`."""
    device: str
    device_hours: float
    """Of the GPUs that the tokenizers take; on CPUs of all cores together."""
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
    """What all machines together have for a job."""

    num_cpus: float
    num_gpus: float
    num_machines: int


@dataclass(frozen=True)
class AroundSeconds:
    """What a job takes before its tokenizers are started, as it took now, and after its export."""

    start: float
    plan: float
    gate: float
    report: float


def forecast_job(estimate: JobEstimate, probe: ProbeFigures, around: AroundSeconds, room: Room) -> Forecast:
    """Return what the units that are missing would take."""
    windows = estimate.num_windows_todo
    read_s, write_s, tokenize_s = _window_seconds(estimate, probe)
    alone_s = 1 / probe.windows_per_s
    if probe.executor == "local" and not probe.num_runs:
        alone_s += read_s  # one after the other there, and no task came to its end while it was measured
    num_shards, shard_windows = estimate.export_shards
    builders, begin_s = (max(1, int(room.num_cpus)), BUILDERS_S) if probe.executor == "ray" else (1, 0.0)
    seconds = {
        "start": around.start,
        "plan": around.plan,
        "workers": probe.workers_s,
        "tokenize": probe.first_s + windows * alone_s,
        "gate": around.gate,
        "export": begin_s + math.ceil(num_shards / builders) * shard_windows * estimate.shard_s,
        "report": around.report,
    }
    feeding = (read_s + write_s) / tokenize_s
    """Cores that keep one tokenizer busy."""
    if probe.num_gpus:
        most = max(1, int(room.num_gpus * probe.num_actors / probe.num_gpus + 1e-9))
        fed = math.floor(room.num_cpus / feeding) if feeding else most
    else:
        fed = most = room.num_machines
    best = max(1, min(most, int(fed), estimate.windows.num_units - estimate.num_units_done))
    return Forecast(
        wall_s=sum(seconds.values()),
        seconds=seconds,
        device=estimate.device,
        device_hours=(probe.num_gpus or 1.0) * (seconds["workers"] + seconds["tokenize"]) / 3600,
        num_actors=probe.num_actors,
        best_actors=best,
        best_readers=max(1, math.ceil(best * read_s / tokenize_s)),
        read_bytes_per_s=probe.read_bytes_per_s or estimate.windows.read_bytes / max(estimate.windows.read_s, 1e-9),
        is_read_bound=bool(probe.num_gpus) and fed < most,
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
    """Return a forecast beside what happened, for run.json, which is written before the report.

    Args:
        forecast: of `read_forecast`.
        plan: digest of the plan that ran; None where it did not come to that.
    """
    wall_s = sum(record.seconds.values())
    foretold_s = forecast["wall_s"] - forecast["seconds"].get("report", 0.0)
    return {
        **forecast,
        "is_same_plan": forecast["plan"] == plan,
        "happened": {"wall_s": round(wall_s, 3), "windows": record.counts["windows"]},
        "wall_ratio": round(wall_s / foretold_s, 3) if foretold_s > 0 else None,
    }
