"""A job before it runs: its plan, what it would write, and with a probe how long it would take. Writes nothing of it.

Knows no Ray: who runs the stages is handed in.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.token_store import missing_units
from pipeline.estimate.forecast import Forecast, JobEstimate, forecast_job
from pipeline.estimate.probe import ProbeFigures, probe_units
from pipeline.estimate.window_costs import CostSample, measure_costs
from pipeline.estimate.window_count import count_windows
from pipeline.executors.executor import Executor
from pipeline.job.request import prepare
from pipeline.plan.listing_problems import listing_problems
from pipeline.plan.plan import Plan, make_plan
from pipeline.run.observer import JobObserver
from pipeline.settings.job_config import TokenizeRequest
from pipeline.stages.read import UnitReader


@dataclass(frozen=True)
class Asked:
    """How much is wanted to be known, and since when, on the monotonic clock."""

    began: float
    """When the command began: what it took until now, a run takes too."""
    probe_s: float | None
    """Seconds of real work that are to be measured; None measures the codec alone."""
    stop_at: float | None
    """When a run would stop by itself; None where nothing limits it."""


@dataclass(frozen=True)
class JobPlan:
    """What is known of a job before it runs."""

    plan: Plan
    estimate: JobEstimate
    problems: tuple[str, ...]
    probe: ProbeFigures | None
    """None where no probe was asked for, or nothing is left to do."""
    forecast: Forecast | None

    def described(self) -> dict[str, Any]:
        """Return it as plain values, for programs."""
        estimate, forecast = self.estimate, self.forecast
        parts = {"windows": vars(estimate.windows), "costs": vars(estimate.costs)}
        left = {"windows_todo": estimate.num_windows_todo, "device_hours": estimate.device_hours}
        return {
            "plan": self.plan.digest,
            **(vars(estimate) | parts | left),
            "problems": list(self.problems),
            "probe": vars(self.probe) if self.probe else None,
            "forecast": {**vars(forecast), "holds": forecast.holds} if forecast else None,
        }


def plan_job(request: TokenizeRequest, executor: Executor, observer: JobObserver, asked: Asked) -> JobPlan:
    """Plan a job and say what it would come to.

    Args:
        executor: asks one of its workers what a window costs; a probe starts it.

    Raises:
        MotionTokensError: the job could not start, or its input has no windows.
    """
    started = time.monotonic()
    observer.on_stage("plan")
    job = prepare(request, executor, observer)
    plan, run = make_plan(job.roots, job.contract.corpus), job.config.run
    missing = missing_units(job.store, plan.units)
    before = {"start": started - asked.began, "plan": time.monotonic() - started}
    observer.on_plan(plan, len(plan.units) - len(missing), sum(root.skipped for root in job.roots))
    folders = {root.name: root.folder for root in job.roots}
    reader = UnitReader(folders, job.contract.spec, job.clips, job.codec.mean, job.codec.std)
    windows, block = count_windows(plan, reader)
    sample = CostSample(job.codec.data, job.contract, job.export, run.threads or executor.cores_a_machine, block)
    standing = read_manifest(job.output)
    estimate = JobEstimate(
        input_bytes=plan.num_bytes,
        windows=windows,
        costs=executor.ask_worker(partial(measure_costs, sample)),
        device=job.contract.numerics.device,
        windows_per_shard=job.export.windows_per_shard,
        num_units_done=len(plan.units) - len(missing),
        todo_share=sum(unit.num_bytes for unit in missing) / max(1, plan.num_bytes),
        is_extended=standing is not None and standing.spec_id == job.contract.spec.spec_id,
    )
    problems = tuple(listing_problems(job.roots, plan, job.contract.corpus.unit_bytes))
    if asked.probe_s is None or not missing:
        return JobPlan(plan, estimate, problems, None, None)
    probe = probe_units(job, missing, executor, asked.probe_s, observer)
    seconds_left = None if asked.stop_at is None else asked.stop_at - time.monotonic()
    forecast = forecast_job(estimate, probe, before, sum(executor.cpus_of_nodes), seconds_left)
    return JobPlan(plan, estimate, problems, probe, forecast)
