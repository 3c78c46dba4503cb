"""How long a run may last, and what is wrong with what ends it; schedules are read by the API server.

Knows no manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jobs.deploy.grace import drain_s
from pipeline.run.stopping import seconds_of
from pipeline.settings.deploy_config import DeployConfig
from pipeline.settings.job_config import JobConfig

DAY_S = 24 * 3600.0
_TIME_OF_DAY = re.compile(r"\s*\d{1,2}:\d{2}(:\d{2})?\s*")


def longest_s(job: JobConfig) -> float | None:
    """Return the seconds from the start of a try to the end of its drain, at most; None where nothing limits it."""
    limits = [] if job.run.max_runtime is None else [seconds_of(job.run.max_runtime)]
    if job.run.deadline is not None and _TIME_OF_DAY.fullmatch(job.run.deadline):
        limits.append(DAY_S)
    return min(limits) + drain_s(job) if limits else None


def clock_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    """Yield what does not fit of time zone, deadline, longest run time and retries, and costs a night."""
    run = job.run
    try:
        ZoneInfo(deploy.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield (
            f"deploy.time_zone: {deploy.time_zone!r} is unknown, and a pod would take it for UTC; write one such as"
            " Europe/Berlin"
        )
    if run.deadline is not None and deploy.retries:
        yield (
            f"deploy.retries: {deploy.retries}, but a run that run.deadline ({run.deadline}) stops would be tried again"
            " until that time of the next day; say 0"
        )
    if deploy.start == "once":
        return
    if run.deadline is not None and not _TIME_OF_DAY.fullmatch(run.deadline):
        yield f"run.deadline: {run.deadline} comes once, but deploy.schedule starts again; write a time of day: 06:00"
    if deploy.start == "nightly" and longest_s(job) is None and run.when_active != "leave":
        yield (
            "run.deadline: missing, and run.max_runtime too; a run could still be active at the next tick of"
            " deploy.schedule, and two clusters would stand; set one of them, or run.when_active: leave"
        )
