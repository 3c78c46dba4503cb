"""The command plan, and `tokenize --dry-run`, which is the same for the request of a run: nothing is written.

Knows no data. Imports torch as late as tokenize does, so that it starts as a run does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from jobs.commands.run.certain_work import is_work_certain
from jobs.commands.run.estimate_table import print_estimate, print_forecast, print_probe, say
from jobs.output.display import Display
from jobs.output.json_file import write_json
from jobs.session.session import open_session
from pipeline.run.stopping import stop_time
from pipeline.settings.job_config import TokenizeRequest

if TYPE_CHECKING:
    from pipeline.estimate.job_plan import JobPlan


def run_plan(request: TokenizeRequest, probe_s: float | None, json_file: str | None, console: Console) -> JobPlan:
    """Plan a job, say what it would write and compute, and write nothing of it.

    Args:
        request: without an output ("") it is planned as for an empty one.
        probe_s: seconds of real work that are to be measured; None measures the codec alone.

    Raises:
        MotionTokensError: the job could not start, or its input has no windows.
    """
    run = request.config.run
    began, stop_at = time.monotonic(), stop_time(run.deadline, run.max_runtime)
    display = Display(console)
    with _with_output(request) as whole, display.shown(), ExitStack() as stack:

        def is_certain() -> bool:
            return probe_s is not None and is_work_certain(whole, display)

        executor = stack.enter_context(open_session(run, is_certain))
        from pipeline.estimate.job_plan import Asked, plan_job

        planned = plan_job(whole, executor, display, Asked(began, probe_s, stop_at))
    if json_file is not None:
        write_json(json_file, planned.described(), run.storage_options)
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
        print_forecast(planned.forecast, planned.estimate.device, console)
    elif probe_s is not None:
        say(console, "probed", "nothing: every unit is tokenized")
    elif is_limited:
        say(console, "deadline", "--probe 60 says whether it holds")
    say(console, "written", "nothing: this was a dry run")
