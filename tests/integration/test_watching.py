"""Watching runs: the log as JSON, word at the end, and runs compared."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from jobs.session.session import open_session
from pipeline.job.tokenize_job import JobControl, tokenize_dataset
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.settings.job_config import TokenizeRequest, load_config

KEEPS = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes(sys.stdin.buffer.read())"


@pytest.fixture
def arguments(tiny_corpus, tiny_codec, tmp_path):
    sets = ("--set", "units.files=4", "--local")
    return ("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, *sets)


@pytest.fixture
def told(tmp_path):
    """Settings that keep the word of a run's end, and a function that reads it."""
    place = tmp_path / "told.json"
    keep = shlex.join([sys.executable, "-c", KEEPS, str(place)])
    return ("--set", f"run.notify.command={json.dumps(keep)}"), lambda: json.loads(place.read_text())


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def run_json(output):
    return json.loads(max(output.glob("runs/*/run.json")).read_text())


def invoke(arguments):
    """Run a command whose output capsys sees line by line."""
    from jobs.cli import app

    with pytest.raises(SystemExit) as end:
        app([str(argument) for argument in (arguments[0], "--set", "gate=off", *arguments[1:])])
    return end.value.code


def test_json_log_has_a_line_an_event_each_with_the_run(arguments, tmp_path, capsys):
    assert invoke((*arguments, "--log-format", "json", "--set", "run.report=false")) == 0
    lines = lines_of(capsys)
    record = run_json(tmp_path / "o")
    assert {line["run_id"] for line in lines} == {record["run_id"]}
    assert all(set(line) >= {"time", "level", "event"} for line in lines)
    assert [line["stage"] for line in lines if line["event"] == "stage"][:2] == ["plan", "start"]
    (planned,) = [line for line in lines if line["event"] == "plan"]
    assert planned["units"] == record["units"]
    end = lines[-1]
    assert (end["event"], end["level"], end["exit_code"], end["status"]) == ("end", "info", 0, "unrated")
    assert end["counts"] == record["counts"]
    assert end["run_record"] == f"runs/{record['run_id']}/run.json"


def test_json_log_tells_of_a_failure(arguments, tmp_path, capsys):
    assert invoke((*arguments, "--log-format", "json", "--set", "run.max_dropped=1")) == 65
    end = lines_of(capsys)[-1]
    assert (end["level"], end["exit_code"], end["error"]) == ("error", 65, "TooManyDroppedError")
    assert "max_dropped" in end["message"]


def test_a_command_is_told_of_every_end(command, arguments, told):
    setting, read = told
    assert command(*arguments, *setting, "--max-runtime", "0s").code == 75
    assert (read()["exit_code"], read()["error"]) == (75, "IncompleteError")
    assert command(*arguments, *setting).code == 0
    assert (read()["exit_code"], read()["already_complete"]) == (0, False)
    assert read()["drops"] == {"non_finite": 1, "too_short": 1, "truncated": 1}
    assert command(*arguments, *setting).code == 0
    assert (read()["exit_code"], read()["already_complete"]) == (0, True)
    assert command(*arguments, *setting, "--stride", "3").code == 2
    assert (read()["exit_code"], "--restart" in read()["message"]) == (2, True)


def test_replay_logs_and_tells_as_tokenize_does(command, arguments, tiny_corpus, told, tmp_path, capsys):
    setting, read = told
    replay = ("replay", tmp_path / "o", tiny_corpus, *arguments[3:], *setting, "--set", "run.log_format=json")
    assert invoke(replay) == 2
    assert (read()["exit_code"], read()["error"]) == (2, "InputNotFoundError")
    assert command(*arguments).code == 0
    capsys.readouterr()
    assert invoke(replay) == 0
    lines = lines_of(capsys)
    assert (lines[-1]["event"], lines[-1]["exit_code"], read()["exit_code"]) == ("end", 0, 0)


def test_nobody_who_cannot_be_told_changes_the_exit_code(command, arguments):
    outcome = command(
        *arguments, "--set", "run.notify.command=sh -c 'exit 5'", "--set", "run.notify.webhook=http://127.0.0.1:9/x"
    )
    assert outcome.code == 0
    assert "run.notify.command ended with 5" in outcome.text
    assert "run.notify.webhook at 127.0.0.1 was not reached" in outcome.text


def test_a_wrong_address_is_refused_without_being_shown(command, arguments):
    outcome = command(*arguments, "--set", "run.notify.webhook=ftp://user:secret@host/x")
    assert (outcome.code, "run.notify.webhook" in outcome.text, "secret" in outcome.text) == (2, True, False)


def test_runs_compares_each_with_the_one_before(command, arguments, tiny_corpus, tools, tmp_path):
    for night in range(2):
        motion = tmp_path / "motion"
        motion.mkdir(exist_ok=True)
        for n in range(20):
            data = tools.npz_bytes(motion=tools.tiny_motion(100 * night + n, 60) * (1 + 5 * night), fps=25.0)
            (motion / f"night{night}_{n:02}.npz").write_bytes(data)
        assert command("tokenize", motion, *arguments[2:]).code == 0
    outcome = command("runs", tmp_path / "o", "--json", tmp_path / "runs.json")
    assert outcome.code == 0
    first, second = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert first["drift"] is None
    assert second["drift"]["mean"] > 0
    assert second["run"]["run_id"] in outcome.text
    assert second["speed_ratio"] > 0
    assert command("runs", tmp_path / "o", "--last", "1", "--json", tmp_path / "runs.json").code == 0
    (only,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert (only["run"]["run_id"], only["drift"]) == (second["run"]["run_id"], second["drift"])


def test_runs_of_no_dataset_is_refused(command, tmp_path):
    outcome = command("runs", tmp_path)
    assert (outcome.code, "run.json" in outcome.text) == (2, True)


class Watcher(JobObserver):
    """Keeps what it is told of units between the stages."""

    def __init__(self):
        self.flows = []

    def on_flow(self, flow):
        self.flows.append(flow)


def test_ray_tells_where_units_stand(ray_local, tiny_corpus, tiny_codec, tmp_path):
    config = load_config(None, ["units.files=4", "gate=off"])
    request = TokenizeRequest((str(tiny_corpus),), str(tmp_path / "o"), str(tiny_codec), None, None, config)
    watcher, record = Watcher(), JobRecord()
    with open_session(config.run) as executor:
        tokenize_dataset(request, executor, watcher, record, JobControl("a", StopSwitch()))
    assert max(sum(flow.in_flight.values()) for flow in watcher.flows) > 0
    assert sum(watcher.flows[-1].in_flight.values()) == 0
    assert all(not flow.retries for flow in watcher.flows)
    assert record.stage_seconds["wait"] > 0


def test_a_port_for_metrics_does_no_harm_without_ray(command, arguments):
    assert command(*arguments, "--set", "run.metrics_port=8089").code == 0


def first_stages_of_a_process(arguments, last):
    """Run a command with a Ray of its own; return the stages that its log names, up to the last one asked for.

    It is ended there.
    """
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments), "--log-format", "json", "--set", "gate=off"]
    stages = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            event = json.loads(line)
            stages += [event["stage"]] if event["event"] == "stage" else []
            if stages[-1:] == [last]:
                process.terminate()
        code = process.wait(60)
    assert code in (0, 143)
    return stages


def test_ray_starts_at_once_where_work_is_certain_and_not_at_all_where_there_is_none(command, arguments):
    with_ray = arguments[:-1]
    assert first_stages_of_a_process(with_ray, "workers") == ["session", "plan", "start", "workers"]
    assert command(*arguments).code == 0
    assert first_stages_of_a_process(with_ray, "workers") == ["plan"]
