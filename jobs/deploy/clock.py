"""When runs start and how long they may last: the schedule as Kubernetes reads it, against what ends a run.

Knows no manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobs.deploy.grace import drain_s
from pipeline.errors import ConfigError
from pipeline.run.stopping import seconds_of, time_left
from pipeline.settings.deploy_config import DeployConfig
from pipeline.settings.job_config import JobConfig

TICKS = 400
"""So many ticks of a schedule are looked at: more than a year of nights."""
SHORTEST_RUN_S = 600.0
"""Starting a cluster takes minutes: a run that may last less does little else."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, Sequence[str]], ...] = (
    ("minute", 0, 59, ()), ("hour", 0, 23, ()), ("day", 1, 31, ()), ("month", 1, 12, _MONTHS),
    ("weekday", 0, 6, _WEEKDAYS),
)  # fmt: skip
_TERM = re.compile(r"(?:[*?]|([a-z]+|\d+)(?:-([a-z]+|\d+))?)(?:/(\d+))?", re.ASCII)
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(:\d{2})?")


def longest_s(job: JobConfig, deploy: DeployConfig) -> float | None:
    """Return the seconds from the start of a try to the end of its drain, at most; None where nothing limits it."""
    if deploy.start == "once":
        return None if job.run.max_runtime is None else seconds_of(job.run.max_runtime) + drain_s(job)
    spans = [_lasts_s(job, start) for start, _ in _ticks(deploy)]
    return max((lasts_s for lasts_s in spans if lasts_s is not None), default=None)


def clock_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    """Yield what does not fit of schedule, deadline, longest run time and retries."""
    run = job.run
    if run.deadline is not None and deploy.retries:
        yield (
            f"deploy.retries: {deploy.retries}, but a run that run.deadline ({run.deadline}) stops would be tried again"
            " until that time of the next day; say 0"
        )
    if deploy.start == "once":
        return
    if run.deadline is not None and not _TIME_OF_DAY.fullmatch(run.deadline.strip()):
        yield f"run.deadline: {run.deadline} comes once, but deploy.schedule starts again; write a time of day: 06:00"
        return
    try:
        ticks = _ticks(deploy)
    except ConfigError as error:
        yield str(error)
    else:
        yield from _tick_findings(job, deploy, ticks)


def _tick_findings(job: JobConfig, deploy: DeployConfig, ticks: Sequence[tuple[datetime, datetime]]) -> Iterator[str]:
    """Yield the first tick at which a run is too short, too long, or without end."""
    run = job.run
    limits = f"run.deadline ({run.deadline})" if run.deadline else f"run.max_runtime ({run.max_runtime})"
    tries = 1 if run.deadline else deploy.retries + 1  # what max_runtime stops ends with 75, and is tried again
    for start, following in ticks:
        lasts_s = _lasts_s(job, start)
        if lasts_s is None:
            if deploy.start == "nightly" and run.when_active != "leave":
                yield (
                    "run.deadline: missing, and run.max_runtime too; a run could still be active at the next tick of"
                    " deploy.schedule, and two clusters would stand; set one of them, or run.when_active: leave"
                )
            return
        if lasts_s - drain_s(job) < SHORTEST_RUN_S:
            yield (
                f"{limits}: leaves {(lasts_s - drain_s(job)) / 60:.0f} min to the run that deploy.schedule"
                f" ({deploy.schedule}) starts at {start:%a %H:%M}; leave it {SHORTEST_RUN_S / 60:.0f} min at least"
            )
            return
        if lasts_s * tries >= (following - start).total_seconds():
            of_tries = f" with {deploy.retries} retries" if tries > 1 else ""
            yield (
                f"{limits}: a run that starts at {start:%a %H:%M}{of_tries} may end {lasts_s * tries / 3600:.1f} h"
                f" later, after the next tick of deploy.schedule ({deploy.schedule}) at {following:%a %H:%M};"
                f" stop earlier, {'lower deploy.retries, ' if tries > 1 else ''}or start less often"
            )
            return


def _lasts_s(job: JobConfig, start: datetime) -> float | None:
    """Return the seconds from the start of a try to the end of its drain, None where nothing limits it."""
    left_s = time_left(job.run.deadline, job.run.max_runtime, start)
    return None if left_s is None else left_s + drain_s(job)


def _ticks(deploy: DeployConfig) -> list[tuple[datetime, datetime]]:
    """Return the ticks to come, each with its next one.

    Raises:
        ConfigError: the schedule is none of Kubernetes, no day fits it, or the time zone is unknown.
    """
    try:
        now = datetime.now(ZoneInfo(deploy.time_zone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"deploy.time_zone: {deploy.time_zone!r} is unknown; write one such as Europe/Berlin"
        ) from error
    try:
        return list(pairwise(islice(CronSim(plain_schedule(deploy.schedule), now), TICKS)))
    except (ValueError, CronSimError) as error:
        raise ConfigError(
            f"deploy.schedule: {deploy.schedule!r} is no schedule of Kubernetes ({error}); write minute, hour, day,"
            " month and weekday such as 0 22 * * 1-5"
        ) from error


def plain_schedule(text: str) -> str:
    """Return a schedule as numbers, commas and stars: what Kubernetes' parser makes of it.

    That parser (robfig/cron, standard) knows no seconds, L, W or #, and Sunday only as 0; days and weekdays are either
    enough, unless one of them is a star without a step.

    Raises:
        ValueError: the parser would refuse it.
    """
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f"{len(fields)} fields")
    return " ".join(_plain_field(field, *known) for field, known in zip(fields, _FIELDS, strict=True))


def _plain_field(text: str, name: str, lowest: int, highest: int, names: Sequence[str]) -> str:
    values: set[int] = set()
    for term in text.lower().split(","):
        found = _TERM.fullmatch(term)
        if found is None or (found[3] and not int(found[3])):
            raise ValueError(f"{name} {term!r}")
        first, last, step = found[1], found[2], int(found[3] or 1)
        if first is None and step == 1:
            return "*"
        ends = [names.index(end) + lowest if end in names else end for end in (first, last) if end is not None]
        if any(isinstance(end, str) and not (end.isdigit() and lowest <= int(end) <= highest) for end in ends):
            raise ValueError(f"{name} {term!r}: from {lowest} to {highest}")
        start, *stop = [int(end) for end in ends] or [lowest, highest]
        end = stop[0] if stop else highest if found[3] else start
        if end < start:
            raise ValueError(f"{name} {term!r} goes backwards")
        values.update(range(start, end + 1, step))
    return ",".join(str(value) for value in sorted(values))
