"""What a probe means for the whole job: arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.errors import ConfigError
from pipeline.estimate.estimate import JobEstimate, WindowCount
from pipeline.estimate.forecast import (
    AroundSeconds,
    Room,
    compared_forecast,
    forecast_deadline,
    forecast_job,
    read_forecast,
)
from pipeline.estimate.probe import ProbeFigures
from pipeline.run.record import JobRecord

COUNT = WindowCount(
    num_windows=10_000, margin=0, num_units=40, num_units_read=4, num_clips_read=10, num_clips_dropped=0, drops={},
    num_clips=100, hours=1.0, read_s=2.0, read_bytes=100,
)  # fmt: skip
ESTIMATE = JobEstimate(
    input_bytes=1000, windows=COUNT, device="NVIDIA H100", num_devices=4.0, formats=("parquet",),
    windows_per_shard=2500, shard_s=0.001, num_units_done=20, todo_share=0.5, is_extended=True, choices=(),
)  # fmt: skip
PROBE = ProbeFigures(
    executor="ray", num_actors=4, num_gpus=4.0, workers_s=20.0, first_s=5.0, measured_s=10.0, num_windows=1000,
    windows_per_s=100.0, num_runs=8, stage_s={"read": 0.02, "tokenize": 0.04, "write": 0.01}, read_bytes_per_s=1e6,
)  # fmt: skip
ON_CPUS = replace(PROBE, num_gpus=0.0)
ROOM = Room(num_cpus=10, num_gpus=4, num_machines=2)
AROUND = AroundSeconds(start=6.0, plan=3.0, gate=2.0, report=5.0)


def test_forecast_job_adds_up_what_is_left():
    forecast = forecast_job(ESTIMATE, PROBE, AROUND, ROOM)
    wanted = {"start": 6.0, "plan": 3.0, "workers": 20.0, "tokenize": 55.0, "gate": 2.0, "export": 3.5, "report": 5.0}
    assert forecast.seconds == wanted
    assert forecast.wall_s == 94.5
    assert forecast.device_hours == pytest.approx(4 * 75 / 3600)


def test_forecast_job_counts_the_gpus_that_tokenizers_take():
    shared = replace(PROBE, num_gpus=2.0)  # four tokenizers on two of four
    forecast = forecast_job(ESTIMATE, shared, AROUND, replace(ROOM, num_cpus=100))
    assert forecast.device_hours == pytest.approx(2 * 75 / 3600)
    assert forecast.best_actors == 8


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
    forecast = forecast_job(estimate, probe, AROUND, replace(ROOM, num_cpus=num_cpus))
    assert forecast.seconds["export"] == pytest.approx(seconds)


def test_forecast_job_says_how_many_readers_keep_the_tokenizers_busy():
    forecast = forecast_job(ESTIMATE, PROBE, AROUND, ROOM)
    assert (forecast.best_actors, forecast.best_readers, forecast.is_read_bound) == (4, 2, False)


def test_forecast_job_says_where_reading_is_the_limit():
    forecast = forecast_job(ESTIMATE, PROBE, AROUND, replace(ROOM, num_cpus=2))
    assert (forecast.best_actors, forecast.is_read_bound) == (2, True)


def test_forecast_job_uses_one_tokenizer_a_machine_on_cpus():
    forecast = forecast_job(replace(ESTIMATE, device="cpu"), ON_CPUS, AROUND, replace(ROOM, num_gpus=0))
    assert (forecast.best_actors, forecast.is_read_bound) == (2, False)


def test_forecast_job_in_one_process_adds_reading_where_no_task_came_through():
    probe = replace(ON_CPUS, executor="local", num_actors=1, num_runs=0, stage_s={}, read_bytes_per_s=0.0)
    forecast = forecast_job(ESTIMATE, probe, AROUND, replace(ROOM, num_gpus=0))
    assert forecast.seconds["tokenize"] == pytest.approx(5 + 5000 * (0.01 + 2.0 / 1000))
    assert forecast.read_bytes_per_s == 50


def test_forecast_deadline_says_what_it_would_take():
    forecast = forecast_job(ESTIMATE, PROBE, AROUND, ROOM)
    assert forecast_deadline(forecast, 100.0).holds
    tight = forecast_deadline(forecast, 67.0)
    assert (tight.holds, tight.needed_actors) == (False, 8)
    assert forecast_deadline(forecast, 20.0).needed_actors is None


def test_read_forecast_takes_what_plan_wrote_with_a_probe():
    text = json.dumps({"plan": "p", "windows_todo": 7, "forecast": {"wall_s": 9, "seconds": {"plan": 1}}})
    assert read_forecast(text, "plan.json")["wall_s"] == 9.0
    for wrong in ("{", "[]", '{"plan": "p", "windows_todo": 7, "forecast": null}'):
        with pytest.raises(ConfigError, match=r"plan\.json .* --probe"):
            read_forecast(wrong, "plan.json")


def test_compared_forecast_states_both():
    record = JobRecord(seconds={"plan": 1.0, "workers": 2.0, "tokenize": 6.0})
    record.counts["windows"] = 7
    found = compared_forecast({"wall_s": 15.0, "seconds": {"report": 5.0}, "plan": "p", "windows": 8}, record, "q")
    assert (found["wall_ratio"], found["happened"]) == (0.9, {"wall_s": 9.0, "windows": 7})
    assert not found["is_same_plan"]
