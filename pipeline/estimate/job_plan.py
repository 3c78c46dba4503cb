"""A job before it runs: its plan, what it would write, and with a probe how long it would take. Writes nothing of it.

Knows no Ray: who runs the stages is handed in.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pipeline.dataset.token_store import missing_units
from pipeline.estimate.forecast import AroundSeconds, DeadlineForecast, Forecast, forecast_deadline, forecast_job
from pipeline.estimate.job_estimate import JobEstimate, estimate_job
from pipeline.estimate.probe import ProbeFigures, probe_units
from pipeline.executors.executor import Executor
from pipeline.job.gate import rehearse
from pipeline.job.request import Job, prepare
from pipeline.plan.listing_problems import listing_problems
from pipeline.plan.plan import Plan, make_plan
from pipeline.run.observer import JobObserver
from pipeline.settings.job_config import TokenizeRequest

REPORT_S = 5.0
"""What a report takes on a core of today, once its sample is decoded: mostly imports and pictures, for any dataset."""


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
    deadline: DeadlineForecast | None

    def described(self) -> dict[str, Any]:
        """Return it as plain values, for programs."""
        parts = {"probe": self.probe, "forecast": self.forecast, "deadline": self.deadline}
        return {
            "plan": self.plan.digest,
            **self.estimate.described(),
            "problems": list(self.problems),
            **{name: vars(part) if part is not None else None for name, part in parts.items()},
        }


def plan_job(request: TokenizeRequest, executor: Executor, observer: JobObserver, asked: Asked) -> JobPlan:
    """Plan a job and say what it would come to.

    Raises:
        MotionTokensError: the job could not start, or its input has no windows.
    """
    started = time.monotonic()
    observer.on_stage("plan")
    job = prepare(request, executor, observer)
    plan = make_plan(job.roots, job.contract.corpus)
    missing = missing_units(job.store, plan.units)
    planned_at = time.monotonic()
    observer.on_plan(plan, len(plan.units) - len(missing), sum(root.skipped for root in job.roots))
    estimate = estimate_job(job, plan, missing, executor)
    problems = tuple(listing_problems(job.roots, plan, job.contract.corpus.unit_bytes))
    if asked.probe_s is None or not missing:
        return JobPlan(plan, estimate, problems, None, None, None)
    probe = probe_units(job, missing, executor, asked.probe_s, observer)
    around = _around(job, estimate, started - asked.began, planned_at - started)
    forecast = forecast_job(estimate, probe, around, sum(executor.cpus_of_nodes))
    deadline = None if asked.stop_at is None else forecast_deadline(forecast, asked.stop_at - time.monotonic())
    return JobPlan(plan, estimate, problems, probe, forecast, deadline)


def _around(job: Job, estimate: JobEstimate, start_s: float, plan_s: float) -> AroundSeconds:
    """Return what comes before and after the probed stages; gate and report look at one sample of units."""
    config = job.config
    sample_s = estimate.windows.read_s + rehearse(job)
    gate_s = sample_s if config.gate != "off" else 0.0
    return AroundSeconds(start_s, plan_s, gate_s, REPORT_S + sample_s - gate_s if config.run.report else 0.0)
