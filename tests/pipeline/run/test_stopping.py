from __future__ import annotations

import time
from datetime import datetime

import pytest

from pipeline.errors import ConfigError, IncompleteError
from pipeline.run.stopping import Stopped, StopSwitch, seconds_of, stop_time


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("1h30m", 5400), ("2d", 172800), ("45", 45), ("45s", 45), ("1.5h", 5400)]
)
def test_seconds_of_reads_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "-3"])
def test_seconds_of_refuses_others(text):
    with pytest.raises(ConfigError, match="90m"):
        seconds_of(text)


def test_stop_time_is_the_earlier_of_deadline_and_runtime():
    now = datetime(2030, 1, 31, 22, 0).astimezone()

    def left(*limits):
        return round(stop_time(*limits, now=now) - time.monotonic())

    assert stop_time(None, None) is None
    assert left("23:30", None) == 5400
    assert left("06:00", None) == 8 * 3600
    assert left("2030-01-31T22:10", None) == 600
    assert left("06:00", "20m") == 1200
    for text in ("25:00", "tomorrow", "2020-01-01T00:00"):
        with pytest.raises(ConfigError, match="deadline"):
            stop_time(text, None, now=now)


def test_a_signal_ends_at_once_where_nothing_is_in_flight():
    with pytest.raises(Stopped, match="SIGTERM"):
        StopSwitch(grace_s=5).on_signal("SIGTERM")
    with pytest.raises(Stopped), StopSwitch(grace_s=0).graceful():
        StopSwitch(grace_s=0).on_signal("SIGTERM")


def test_a_first_signal_leaves_a_grace_time_and_a_second_none():
    switch = StopSwitch(grace_s=0.05)
    with switch.graceful():
        assert not switch.is_set
        switch.check()
        switch.on_signal("SIGTERM")
        assert switch.is_set
        switch.check()
        with pytest.raises(Stopped):
            switch.check(is_drained=True)
        time.sleep(0.06)
        with pytest.raises(Stopped):
            switch.check()
        with pytest.raises(Stopped):
            switch.on_signal("SIGTERM")


def test_a_time_limit_means_incomplete():
    switch = StopSwitch(grace_s=0, stop_at=time.monotonic() + 0.02)
    assert not switch.is_set
    time.sleep(0.03)
    assert switch.is_set
    with pytest.raises(IncompleteError, match="time for this run"):
        switch.check()


def test_another_run_can_ask():
    switch = StopSwitch()
    switch.ask("run x took over")
    with pytest.raises(IncompleteError, match="run x took over"):
        switch.check()
