"""What a probe means for the whole job: wall time, GPU-hours, and a deadline.

Pure arithmetic on what was counted, measured and probed; knows no clock, Ray or storage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.estimate.job_estimate import JobEstimate
from pipeline.estimate.probe import ProbeFigures

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


@dataclass(frozen=True)
class DeadlineForecast:
    """Whether a job ends before it has to."""

    seconds_left: float
    holds: bool
    needed_actors: int | None
    """Tokenizers, each as fast as those probed, with which it would hold; None where no number would do."""


@dataclass(frozen=True)
class AroundSeconds:
    """What a job takes before its tokenizers are started, as it took now, and after its export."""

    start: float
    plan: float
    gate: float
    report: float


def forecast_job(estimate: JobEstimate, probe: ProbeFigures, around: AroundSeconds, num_cpus: float) -> Forecast:
    """Return what the units that are missing would take.

    Args:
        num_cpus: of all machines together.
    """
    window_s = 1 / probe.windows_per_s
    if probe.executor == "local" and not probe.num_runs:
        window_s += _read_s(estimate)  # one after the other there, and no task came to its end while it was measured
    num_shards, shard_windows = estimate.export_shards
    builders, begin_s = (max(1, int(num_cpus)), BUILDERS_S) if probe.executor == "ray" else (1, 0.0)
    seconds = {
        "start": around.start,
        "plan": around.plan,
        "workers": probe.workers_s,
        "tokenize": probe.first_s + estimate.num_windows_todo * window_s,
        "gate": around.gate,
        "export": begin_s + math.ceil(num_shards / builders) * shard_windows * estimate.costs.shard_s,
        "report": around.report,
    }
    return Forecast(
        wall_s=sum(seconds.values()),
        seconds=seconds,
        device=estimate.device,
        device_hours=(probe.num_gpus or 1.0) * (seconds["workers"] + seconds["tokenize"]) / 3600,
        num_actors=probe.num_actors,
    )


def forecast_deadline(forecast: Forecast, seconds_left: float) -> DeadlineForecast:
    """Return whether the job would end in so many seconds, and if not, what it would need."""
    tokenize_s = forecast.seconds["tokenize"]
    left_s = seconds_left - (forecast.wall_s - tokenize_s)
    needed = max(1, math.ceil(forecast.num_actors * tokenize_s / left_s)) if left_s > 0 else None
    return DeadlineForecast(seconds_left, forecast.wall_s <= seconds_left, needed)


def _read_s(estimate: JobEstimate) -> float:
    """Return the seconds that reading a window took while windows were counted."""
    windows = estimate.windows
    return windows.read_s / max(1.0, windows.num_windows * windows.read_bytes / max(1, estimate.input_bytes))
