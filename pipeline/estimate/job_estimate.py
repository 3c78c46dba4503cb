"""What a job would write, and how long a device would compute for it, before anything is written.

Knows no Ray: who runs the stages is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.dataset.manifest import read_manifest
from pipeline.estimate.window_costs import CostSample, WindowCosts, measure_costs
from pipeline.estimate.window_count import WindowCount, count_windows
from pipeline.executors.executor import Executor
from pipeline.job.request import Job
from pipeline.plan.plan import Plan
from pipeline.plan.units import Unit
from pipeline.stages.read import UnitReader


@dataclass(frozen=True)
class JobEstimate:
    """What a job would come to; built by `estimate_job`."""

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

    def described(self) -> dict[str, Any]:
        """Return the estimate as plain values, for programs."""
        parts = {"windows": vars(self.windows), "costs": vars(self.costs)}
        return {**vars(self), **parts, "windows_todo": self.num_windows_todo, "device_hours": self.device_hours}


def estimate_job(job: Job, plan: Plan, missing: Sequence[Unit], executor: Executor) -> JobEstimate:
    """Return what a job would write and compute; writes nothing.

    Args:
        job: prepared, so that it could start.
        plan: of its input.
        missing: its units without a fragment.
        executor: asks one of its workers; nothing else is started.

    Raises:
        NoClipLeftError: the units that were read have no window.
        StorageError: storage did not answer after all retries, or an input changed meanwhile.
        IncompleteError: the cluster has no place for a worker, or it was lost.
    """
    folders = {root.name: root.folder for root in job.roots}
    windows, block = count_windows(
        plan, UnitReader(folders, job.contract.spec, job.clips, job.codec.mean, job.codec.std)
    )
    num_threads = job.config.run.threads or executor.cores_a_machine
    sample = CostSample(job.codec.data, job.contract, job.export, num_threads, block)
    standing = read_manifest(job.output)
    return JobEstimate(
        input_bytes=plan.num_bytes,
        windows=windows,
        costs=executor.ask_worker(partial(measure_costs, sample)),
        device=job.contract.numerics.device,
        windows_per_shard=job.export.windows_per_shard,
        num_units_done=len(plan.units) - len(missing),
        todo_share=sum(unit.num_bytes for unit in missing) / max(1, plan.num_bytes),
        is_extended=standing is not None and standing.spec_id == job.contract.spec.spec_id,
    )
