"""Speed and time left, on a clock of the test's own."""

from __future__ import annotations

import pytest

from jobs.output.pace import SPEED_SPAN_S, Pace
from pipeline.plan.plan import Plan
from pipeline.plan.units import Unit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def plan_of(num_units: int, num_bytes: int) -> Plan:
    return Plan(tuple(Unit(str(n), "", num_bytes, ()) for n in range(num_units)))


def test_pace_knows_nothing_before_the_first_window(clock):
    pace = Pace(clock)
    pace.plan(plan_of(4, 100), 1)
    pace.encoded(0)
    assert (pace.expected_windows, pace.remaining_s, pace.windows_per_s) == (None, None, 0.0)


def test_pace_expects_windows_by_what_bytes_held_so_far(clock):
    pace = Pace(clock)
    pace.plan(plan_of(4, 100), 1)
    pace.begun(20, 100)
    assert pace.expected_windows == 60
    pace.begun(100, 200)
    assert pace.expected_windows == 120


def test_pace_tells_the_time_left_at_the_mean_speed(clock):
    pace = Pace(clock)
    pace.plan(plan_of(1, 100), 0)
    pace.begun(100, 100)
    pace.encoded(10)
    clock.now = 10.0
    pace.encoded(40)
    assert pace.windows_per_s == 4.0
    assert pace.remaining_s == pytest.approx(50 / 4)


def test_pace_forgets_what_is_long_ago_in_its_speed(clock):
    pace = Pace(clock)
    for second in range(60):
        clock.now = float(second)
        pace.encoded(1 if second < 30 else 5)
    assert pace.windows_per_s == pytest.approx(5.0)
    clock.now += 2 * SPEED_SPAN_S
    pace.encoded(0)
    assert pace.windows_per_s == 0.0
