"""What a job would come to: arithmetic on what was counted, measured and probed.

Knows no clock, Ray or storage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.estimate.probe import ProbeFigures
from pipeline.estimate.window_costs import WindowCosts
from pipeline.estimate.window_count import WindowCount

BUILDERS_S = 1.0
"""Until Ray's workers build the first shards: exports of some seconds took 1.0 to 1.5 s longer than building alone."""


@dataclass(frozen=True)
class JobEstimate:
    """What a job would write, and how long a device would compute for it; built by `plan_job`."""

    input_bytes: int
    windows: WindowCount
    costs: WindowCosts
    device: str
    windows_per_shard: int
    num_units_done: int
    """Units that have a fragment already."""
    todo_share: float
    """Share of the input, by bytes, whose units have none."""
    is_extended: bool
    """Whether a dataset stands, whose shards are taken over where their units stay as they are."""

    @property
    def num_windows_todo(self) -> int:
        """Windows that a run would encode."""
        return round(self.windows.num_windows * self.todo_share)

    @property
    def device_hours(self) -> float:
        """Hours that one device would encode them."""
        return self.num_windows_todo / self.costs.windows_per_s / 3600

    @property
    def export_shards(self) -> tuple[int, int]:
        """Shards that a run would build, about, and windows of each."""
        windows = max(1, self.num_windows_todo if self.is_extended else self.windows.num_windows)
        of_shard = min(self.windows_per_shard, windows)
        return math.ceil(windows / of_shard), of_shard


@dataclass(frozen=True)
class Forecast:
    """What the job would take on what was probed; built by `forecast_job`."""

    seconds: Mapping[str, float]
    """Stage -> seconds, as run.json names them; gate and report, some seconds of any job, are not among them."""
    wall_s: float
    device_hours: float
    """Of the GPUs that the tokenizers take; on CPUs of all cores together."""
    seconds_left: float | None
    """Until the job has to end; None where nothing limits it."""
    needed_actors: int | None
    """Tokenizers, each as fast as those probed, with which it would end in time; None where no number would do."""

    @property
    def holds(self) -> bool:
        """Whether it would end in time."""
        return self.seconds_left is None or self.wall_s <= self.seconds_left


def forecast_job(
    estimate: JobEstimate,
    probe: ProbeFigures,
    before: Mapping[str, float],
    num_cpus: float,
    seconds_left: float | None = None,
) -> Forecast:
    """Return what the units that are missing would take.

    Args:
        before: what stages took until the probe began, as they will again.
        num_cpus: of all machines together.
        seconds_left: until the job has to end.
    """
    window_s = 1 / probe.windows_per_s
    windows = estimate.windows
    if probe.executor == "local" and not probe.num_runs:  # reading comes on top, and no task came to its end
        read = windows.num_windows * windows.read_bytes / max(1, estimate.input_bytes)
        window_s += windows.read_s / max(1.0, read)
    num_shards, shard_windows = estimate.export_shards
    builders, begin_s = (max(1, int(num_cpus)), BUILDERS_S) if probe.executor == "ray" else (1, 0.0)
    seconds = {
        **before,
        "workers": probe.workers_s,
        "tokenize": probe.first_s + estimate.num_windows_todo * window_s,
        "export": begin_s + math.ceil(num_shards / builders) * shard_windows * estimate.costs.shard_s,
    }
    wall_s, tokenize_s = sum(seconds.values()), seconds["tokenize"]
    spare_s = math.inf if seconds_left is None else seconds_left - (wall_s - tokenize_s)
    return Forecast(
        seconds=seconds,
        wall_s=wall_s,
        device_hours=(probe.num_gpus or 1.0) * (probe.workers_s + tokenize_s) / 3600,
        seconds_left=seconds_left,
        needed_actors=max(1, math.ceil(probe.num_actors * tokenize_s / spare_s)) if spare_s > 0 else None,
    )
