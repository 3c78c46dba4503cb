"""How fast a job goes, and when it will be done: from what tokenizers took up and finished so far.

Knows counts and clocks, nothing of data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports pyarrow
    from pipeline.plan.plan import Plan


SPEED_SPAN_S = 20.0


class Pace:
    """Built by whoever watches a job, for that job.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._todo_bytes = 0
        self._begun_windows = self._begun_bytes = 0
        self._marks: list[tuple[float, int]] = []
        self._first: tuple[float, int] | None = None
        self.windows = 0
        """Windows encoded so far."""

    def plan(self, plan: Plan, num_done: int) -> None:
        """The plan stands; `num_done` of its units need no work."""
        share = num_done / len(plan.units) if plan.units else 1.0
        self._todo_bytes = max(1, int(plan.num_bytes * (1 - share)))

    def begun(self, num_windows: int, num_bytes: int) -> None:
        """Tokenizers took up so many windows of so many bytes of input: that tells how many windows a byte holds."""
        self._begun_windows += num_windows
        self._begun_bytes += num_bytes

    def encoded(self, num_windows: int) -> None:
        """So many more windows were encoded."""
        self.windows += num_windows
        now = self._clock()
        if self._first is None and self.windows:
            self._first = (now, self.windows)
        self._marks = [mark for mark in self._marks if mark[0] > now - SPEED_SPAN_S] + [(now, self.windows)]

    @property
    def expected_windows(self) -> float | None:
        """Windows of this run in all, None before any were taken up."""
        if not self._begun_bytes:
            return None
        return max(self._begun_windows, self._begun_windows * self._todo_bytes / self._begun_bytes)

    @property
    def windows_per_s(self) -> float:
        """Speed of late, 0 before there is one."""
        return _speed(self._marks[0], self._marks[-1]) if self._marks else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds until all windows are encoded, at the mean speed since the first; None before there is one."""
        if self._first is None or self.expected_windows is None:
            return None
        speed = _speed(self._first, (self._clock(), self.windows))
        return max(0.0, self.expected_windows - self.windows) / speed if speed else None


def _speed(begin: tuple[float, int], end: tuple[float, int]) -> float:
    return (end[1] - begin[1]) / (end[0] - begin[0]) if end[0] > begin[0] else 0.0
