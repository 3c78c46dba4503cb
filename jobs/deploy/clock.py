"""When runs start and how long they may last: what would cost a night, and no API server sees.

Knows no manifest. The API server reads the schedule of a CronJob; that of a RayCronJob is read by KubeRay alone, later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobs.deploy.grace import drain_s
from pipeline.errors import ConfigError
from pipeline.run.stopping import seconds_of, time_left
from pipeline.settings.deploy_config import DeployConfig
from pipeline.settings.job_config import JobConfig

TICKS = 32
"""Starts of a schedule that are looked at: a month of nights."""
_TIME_OF_DAY = re.compile(r"\s*\d{1,2}:\d{2}(:\d{2})?\s*")


def longest_s(job: JobConfig, deploy: DeployConfig) -> float | None:
    """Return the seconds from the start of a try to the end of its drain, at most; None where nothing limits it."""
    if deploy.start == "once":
        return None if job.run.max_runtime is None else seconds_of(job.run.max_runtime) + drain_s(job)
    spans = [_lasts_s(job, start) for start, _ in _starts(deploy)]
    return max((lasts_s for lasts_s in spans if lasts_s is not None), default=None)


def clock_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    """Yield what does not fit of schedule, time zone, deadline, longest run time and retries."""
    run = job.run
    if run.deadline is not None and deploy.retries:
        yield (
            f"deploy.retries: {deploy.retries}, but a run that run.deadline ({run.deadline}) stops would be tried again"
            " until that time of the next day; say 0"
        )
    if deploy.start == "once":
        return
    if run.deadline is not None and not _TIME_OF_DAY.fullmatch(run.deadline):
        yield f"run.deadline: {run.deadline} comes once, but deploy.schedule starts again; write a time of day: 06:00"
        return
    try:
        starts = _starts(deploy)
    except ConfigError as error:
        yield str(error)
        return
    if deploy.start == "nightly" and run.when_active != "leave":
        yield from _overlaps(job, deploy, starts)


def _overlaps(job: JobConfig, deploy: DeployConfig, starts: list[tuple[datetime, datetime]]) -> Iterator[str]:
    """Yield the first start that a run before it, with all its tries, may still be active at."""
    tries = 1 if job.run.deadline else deploy.retries + 1  # what max_runtime stops is tried again
    for start, following in starts:
        lasts_s = _lasts_s(job, start)
        if lasts_s is None or lasts_s * tries >= (following - start).total_seconds():
            yield (
                f"run.deadline, run.max_runtime: a run that deploy.schedule ({deploy.schedule}) starts at"
                f" {start:%a %H:%M} may be active at the next start, {following:%a %H:%M}, beside a second cluster;"
                " stop it earlier, or set run.when_active: leave"
            )
            return


def _lasts_s(job: JobConfig, start: datetime) -> float | None:
    """Return the seconds from the start of a try to the end of its drain, None where nothing limits it."""
    left_s = time_left(job.run.deadline, job.run.max_runtime, start)
    return None if left_s is None else left_s + drain_s(job)


def _starts(deploy: DeployConfig) -> list[tuple[datetime, datetime]]:
    """Return the starts to come, each with its next one.

    Raises:
        ConfigError: the schedule cannot be read, or the time zone is unknown: a pod would take it for UTC.
    """
    try:
        now = datetime.now(ZoneInfo(deploy.time_zone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"deploy.time_zone: {deploy.time_zone!r} is unknown; write one such as Europe/Berlin"
        ) from error
    try:
        return list(pairwise(islice(CronSim(deploy.schedule, now), TICKS)))
    except CronSimError as error:
        raise ConfigError(
            f"deploy.schedule: {deploy.schedule!r} is no schedule ({error}); write minute, hour, day, month and weekday"
            " such as 0 22 * * 1-5"
        ) from error
