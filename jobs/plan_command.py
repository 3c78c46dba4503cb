"""The command plan, and `tokenize --dry-run`, which is the same for the request of a run: nothing is written.

Knows no data.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.display import Display
from jobs.estimate_table import print_estimate, print_forecast, print_probe, say
from jobs.session import num_cores, open_session
from pipeline.estimate import JobEstimate, estimate_job
from pipeline.forecast import DeadlineForecast, Forecast, Room, forecast_deadline, forecast_job
from pipeline.job_config import TokenizeRequest
from pipeline.listing_problems import listing_problems
from pipeline.plan import Plan, make_plan
from pipeline.probe import ProbeFigures, probe_units
from pipeline.request import prepare
from pipeline.stopping import stop_time
from pipeline.token_store import missing_units


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
    display = Display(console)
    with _with_output(request) as whole, display.shown(), open_session(run) as executor:
        display.on_stage("plan")
        began = time.perf_counter()
        job = prepare(whole, executor, display)
        plan = make_plan(job.roots, job.contract.corpus)
        missing = missing_units(job.store, plan.units)
        plan_s = time.perf_counter() - began
        display.on_plan(plan, len(plan.units) - len(missing), sum(root.skipped for root in job.roots))
        estimate = estimate_job(job, plan, executor)
        problems = listing_problems(job.roots, plan, job.contract.corpus.unit_bytes)
        probe = forecast = deadline = None
        if probe_s is not None and missing:
            probe = probe_units(job, missing, executor, probe_s, display)
            room = Room(executor.num_cpus, executor.num_gpus, num_cores())
            forecast = forecast_job(estimate, probe, plan_s, room)
            if stop_at is not None:
                deadline = forecast_deadline(forecast, stop_at - time.monotonic())
    planned = JobPlan(plan, estimate, tuple(problems), probe, forecast, deadline)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(planned.described(), indent=1) + "\n")
    _print_plan(planned, probe_s, stop_at is not None, console)
    return planned


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
