"""The command plan, and `tokenize --dry-run`, which is the same for the request of a run: nothing is written.

Knows no data.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.display import Display
from jobs.estimate_table import print_estimate, print_forecast, print_probe, say
from jobs.session import open_session
from pipeline.estimate import JobEstimate, estimate_job
from pipeline.forecast import AroundSeconds, DeadlineForecast, Forecast, Room, forecast_deadline, forecast_job
from pipeline.gate import rehearse
from pipeline.job_config import TokenizeRequest
from pipeline.listing_problems import listing_problems
from pipeline.plan import Plan, make_plan
from pipeline.probe import ProbeFigures, probe_units
from pipeline.request import Job, prepare
from pipeline.stopping import stop_time
from pipeline.token_store import missing_units

REPORT_S = 5.0
"""What a report takes on a core of today, once its sample is decoded: mostly imports and pictures, for any dataset."""


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
            "windows_todo": self.estimate.num_windows_todo,
            "problems": list(self.problems),
            **{name: vars(part) if part is not None else None for name, part in parts.items()},
        }


def run_plan(request: TokenizeRequest, probe_s: float | None, json_file: Path | None, console: Console) -> JobPlan:
    """Plan a job, say what it would write and compute, and write nothing of it.

    Args:
        request: without an output ("") it is planned as for an empty one.
        probe_s: seconds of real work that are to be measured; None measures the codec alone.

    Raises:
        MotionTokensError: the job could not start, or its input has no windows.
    """
    run = request.config.run
    stop_at = stop_time(run.deadline, run.max_runtime)
    display, began = Display(console), time.perf_counter()
    with _with_output(request) as whole, display.shown(), ExitStack() as stack:
        if probe_s is not None:
            display.on_stage("session")
        executor = stack.enter_context(open_session(run, is_work_certain=probe_s is not None))
        started = time.perf_counter()
        display.on_stage("plan")
        job = prepare(whole, executor, display)
        plan = make_plan(job.roots, job.contract.corpus)
        missing = missing_units(job.store, plan.units)
        planned_at = time.perf_counter()
        display.on_plan(plan, len(plan.units) - len(missing), sum(root.skipped for root in job.roots))
        estimate = estimate_job(job, plan, executor)
        problems = listing_problems(job.roots, plan, job.contract.corpus.unit_bytes)
        probe = forecast = deadline = None
        if probe_s is not None and missing:
            probe = probe_units(job, missing, executor, probe_s, display)
            around = _around(job, estimate, started - began, planned_at - started)
            room = Room(sum(executor.cpus_of_nodes), executor.num_gpus, executor.num_machines)
            forecast = forecast_job(estimate, probe, around, room)
            if stop_at is not None:
                deadline = forecast_deadline(forecast, stop_at - time.monotonic())
    planned = JobPlan(plan, estimate, tuple(problems), probe, forecast, deadline)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(planned.described(), indent=1) + "\n")
    _print_plan(planned, probe_s, stop_at is not None, console)
    return planned


def _around(job: Job, estimate: JobEstimate, start_s: float, plan_s: float) -> AroundSeconds:
    """Return what comes before and after the probed stages; gate and report look at one sample of units."""
    config = job.config
    sample_s = estimate.windows.read_s + rehearse(job)
    gate_s = sample_s if config.gate != "off" else 0.0
    return AroundSeconds(start_s, plan_s, gate_s, REPORT_S + sample_s - gate_s if config.run.report else 0.0)


@contextmanager
def _with_output(request: TokenizeRequest) -> Iterator[TokenizeRequest]:
    """Give a request with an output: an empty folder in the place of none."""
    if request.output:
        yield request
        return
    with tempfile.TemporaryDirectory() as folder:
        yield TokenizeRequest(**{**vars(request), "output": folder})


def _print_plan(planned: JobPlan, probe_s: float | None, is_limited: bool, console: Console) -> None:
    print_estimate(planned.estimate, console)
    for line in planned.problems:
        say(console, "look", line)
    if planned.probe is not None and planned.forecast is not None:
        print_probe(planned.probe, console)
        print_forecast(planned.forecast, planned.deadline, console)
    elif probe_s is not None:
        say(console, "probed", "nothing: every unit is tokenized")
    elif is_limited:
        say(console, "deadline", "--probe 60 says whether it holds")
    say(console, "written", "nothing: this was a dry run")
