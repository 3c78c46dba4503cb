"""How a job is asked to stop: by a signal, a deadline or a longest run time; at once, or after what is in flight.

Knows clocks only: no Ray, storage or data.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from pipeline.errors import ConfigError, IncompleteError

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


class Stopped(BaseException):
    """A signal asked the process to stop; raised in the main thread, so that the state stays resumable."""


class StopSwitch:
    """Built by a command, asked by the stages; set once, by the signal handler or by a clock.

    Args:
        grace_s: seconds that units in flight get to finish, once no more are handed out.
        stop_at: seconds of the monotonic clock at which the job stops by itself; None without a limit.
    """

    def __init__(self, grace_s: float = 0.0, stop_at: float | None = None) -> None:
        self.grace_s, self._stop_at = grace_s, stop_at
        self._signal: str | None = None
        self._reason = "the time for this run is over"
        self._asked_at: float | None = None
        self._is_graceful = False

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """While it lasts, a first signal lets units in flight finish; outside, and by a second one, it ends at once."""
        self._is_graceful = True
        try:
            yield
        finally:
            self._is_graceful = False

    def on_signal(self, name: str) -> None:
        """Note a signal.

        Raises:
            Stopped: nothing is in flight that would be worth a grace time.
        """
        is_first = self._signal is None
        self._signal = name
        self._asked_at = time.monotonic()
        if not (is_first and self._is_graceful and self.grace_s > 0):
            raise Stopped(name)

    def ask(self, reason: str) -> None:
        """Ask the job to stop, from any thread."""
        self._reason = reason
        self._asked_at = time.monotonic()

    @property
    def is_set(self) -> bool:
        """Whether no more units are to be handed out."""
        if self._asked_at is None and self._stop_at is not None and time.monotonic() >= self._stop_at:
            self._asked_at = time.monotonic()
        return self._asked_at is not None

    @property
    def was_signalled(self) -> bool:
        """Whether a signal asked: then nothing more is to be begun, not even an export."""
        return self._signal is not None

    def check(self, is_drained: bool = False) -> None:
        """Leave, where stopping was asked for and the grace time is over or nothing is in flight any more.

        Raises:
            Stopped: a signal asked for it.
            IncompleteError: deadline, longest run time or another run asked for it.
        """
        if not self.is_set or self._asked_at is None:
            return
        if not is_drained and time.monotonic() < self._asked_at + self.grace_s:
            return
        if self._signal is not None:
            raise Stopped(self._signal)
        raise IncompleteError(f"{self._reason}: the same command continues where it ended")


def stop_time(deadline: str | None, max_runtime: str | None, now: datetime | None = None) -> float | None:
    """Return when a job stops by itself, on the monotonic clock, seconds; None where nothing limits it.

    Args:
        deadline: local time of day ``06:00`` (the next one to come), or a date with time.
        max_runtime: such as ``90m``, ``1h30m`` or seconds.

    Raises:
        ConfigError: not to be understood, or past.
    """
    left_s = time_left(deadline, max_runtime, now or datetime.now().astimezone())
    return None if left_s is None else time.monotonic() + left_s


def time_left(deadline: str | None, max_runtime: str | None, now: datetime) -> float | None:
    """Return the seconds until a job that starts now stops by itself; None where nothing limits it.

    Raises:
        ConfigError: not to be understood, or past.
    """
    limits = []
    if deadline is not None:
        limits.append((_next_time(deadline, now) - now).total_seconds())
    if max_runtime is not None:
        limits.append(seconds_of(max_runtime))
    return min(limits, default=None)


def seconds_of(text: str) -> float:
    """Return the seconds of a duration such as ``90m``, ``1h30m``, ``2d`` or ``45``.

    Raises:
        ConfigError: not to be understood.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        raise ConfigError(f"duration {text!r}: write 90m, 1h30m, 2d or seconds")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _next_time(text: str, now: datetime) -> datetime:
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text.strip()):
            hour, minute, *rest = (int(part) for part in text.split(":"))
            moment = now.replace(hour=hour, minute=minute, second=rest[0] if rest else 0, microsecond=0)
            return moment if moment > now else moment + timedelta(days=1)
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"deadline {text!r}: write 06:00, or 2030-01-31T06:00") from error
    moment = moment if moment.tzinfo else moment.astimezone()
    if moment <= now:
        raise ConfigError(f"deadline {text!r} is past")
    return moment
