"""What a probe means for the whole job: arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.estimate.forecast import JobEstimate, forecast_job
from pipeline.estimate.probe import ProbeFigures
from pipeline.estimate.window_costs import WindowCosts
from pipeline.estimate.window_count import WindowCount

COUNT = WindowCount(
    num_windows=10_000, margin=0, num_units=40, num_units_read=4, num_clips_read=10, num_clips_dropped=0, drops={},
    num_clips=100, hours=1.0, read_s=2.0, read_bytes=100,
)  # fmt: skip
ESTIMATE = JobEstimate(
    input_bytes=1000, windows=COUNT, costs=WindowCosts({"parquet": 1500}, 0.001, 50.0), device="NVIDIA H100",
    windows_per_shard=2500, num_units_done=20, todo_share=0.5, is_extended=True,
)  # fmt: skip
PROBE = ProbeFigures(
    executor="ray", num_actors=4, num_gpus=4.0, workers_s=20.0, first_s=5.0, measured_s=10.0, num_windows=1000,
    windows_per_s=100.0, num_runs=8,
)  # fmt: skip
ON_CPUS = replace(PROBE, num_gpus=0.0)
NUM_CPUS = 10
BEFORE = {"start": 6.0, "plan": 3.0}


def test_forecast_job_adds_up_what_is_left():
    forecast = forecast_job(ESTIMATE, PROBE, BEFORE, NUM_CPUS)
    assert forecast.seconds == {"start": 6.0, "plan": 3.0, "workers": 20.0, "tokenize": 55.0, "export": 3.5}
    assert forecast.wall_s == 87.5
    assert (forecast.holds, forecast.seconds_left) == (True, None)
    assert forecast.device_hours == pytest.approx(4 * 75 / 3600)


def test_forecast_job_counts_the_gpus_that_tokenizers_take():
    shared = replace(PROBE, num_gpus=2.0)  # four tokenizers on two of four
    forecast = forecast_job(ESTIMATE, shared, BEFORE, NUM_CPUS)
    assert forecast.device_hours == pytest.approx(2 * 75 / 3600)


@pytest.mark.parametrize(
    ("executor", "num_cpus", "is_extended", "seconds"),
    [
        ("ray", 10, True, 3.5),  # two shards at once, behind a second
        ("ray", 1, True, 6.0),
        ("local", 10, True, 5.0),  # one after the other
        ("ray", 10, False, 3.5),  # four, of all windows
        ("ray", 3, False, 6.0),
    ],
)
def test_forecast_job_builds_as_many_shards_at_once_as_there_are_cpus(executor, num_cpus, is_extended, seconds):
    estimate, probe = replace(ESTIMATE, is_extended=is_extended), replace(PROBE, executor=executor)
    forecast = forecast_job(estimate, probe, BEFORE, num_cpus)
    assert forecast.seconds["export"] == pytest.approx(seconds)


def test_forecast_job_in_one_process_adds_reading_where_no_task_came_through():
    probe = replace(ON_CPUS, executor="local", num_actors=1, num_runs=0)
    forecast = forecast_job(ESTIMATE, probe, BEFORE, NUM_CPUS)
    assert forecast.seconds["tokenize"] == pytest.approx(5 + 5000 * (0.01 + 2.0 / 1000))


def test_job_estimate_counts_what_is_left():
    assert ESTIMATE.num_windows_todo == 5000
    assert ESTIMATE.device_hours == pytest.approx(100 / 3600)


def test_forecast_job_says_what_a_deadline_would_take():
    def forecast(seconds_left):
        found = forecast_job(ESTIMATE, PROBE, BEFORE, NUM_CPUS, seconds_left)
        return found.holds, found.needed_actors

    assert forecast(100.0) == (True, 4)
    assert forecast(60.0) == (False, 8)  # 27.5 s for what took 55
    assert forecast(20.0) == (False, None)
