"""What is handed to a cluster, and how what comes back is read; without a cluster."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.cluster.submit import MEANINGS, JobState, entrypoint, exit_code_of, is_settled, meaning_of


@pytest.mark.parametrize("code", sorted(set(MEANINGS) - {0}))
def test_exit_code_of_a_failed_job_is_that_of_its_command(code):
    assert exit_code_of("FAILED", code, "JOB_ENTRYPOINT_COMMAND_ERROR") == code


@pytest.mark.parametrize(
    ("status", "driver_code", "error_type", "code"),
    [
        ("SUCCEEDED", 0, None, 0),
        ("STOPPED", None, None, 143),
        ("FAILED", -15, None, 143),
        ("FAILED", -9, None, 75),
        ("FAILED", 137, None, 75),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", 75),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", 75),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", 2),
        ("FAILED", 127, None, 2),
        ("FAILED", 99, None, 70),
    ],
)
def test_exit_code_of_a_job_without_a_code_of_ours(status, driver_code, error_type, code):
    assert exit_code_of(status, driver_code, error_type) == code


@pytest.mark.parametrize(
    ("command", "code", "settled", "said"),
    [
        ("tokenize a b", 0, True, "complete"),
        ("tokenize a b", 1, False, "without a word"),
        ("tokenize a b", 65, True, "data is wrong"),
        ("tokenize a b", 74, False, "cannot be written"),
        ("tokenize a b", 75, False, "incomplete"),
        ("verify b", 1, True, "something was found"),
        ("diff a b", 1, True, "something was found"),
        ("certify b a", 1, True, "something was found"),
    ],
)
def test_is_settled_by_what_a_code_means_of_the_command(command, code, settled, said):
    job = JobState("job-1", command, "failed", True, code, "", 0.0, 1.0)
    assert (is_settled(job), said in meaning_of(job)) == (settled, True)


def run_line(arguments, python_path):
    line = entrypoint(arguments).replace("python", shlex.quote(sys.executable), 1)
    return subprocess.run(
        ["/bin/sh", "-c", line], env={"PYTHONPATH": python_path}, cwd="/", capture_output=True, text=True, check=False
    )


def test_entrypoint_passes_words_and_exit_code_on():
    root = str(Path(__file__).resolve().parents[3])
    ended = run_line(["verify", "no such; $HOME 'place'"], root)
    assert ended.returncode == 2
    assert "no such; $HOME 'place'" in ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tokenzie", "a"], "did you mean 'tokenize'"),
        (["status"], "cannot be handed in"),
        (["tokenize", "a", "--bogus"], "No such option"),
        (["tokenize", "a"], "Missing argument"),
    ],
)
def test_submit_reads_the_command_before_it_asks_the_cluster(words, said):
    result = CliRunner().invoke(app, ["submit", *words])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_submit_where_nothing_answers_can_be_tried_again(monkeypatch):
    clock, begin = time.monotonic, time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: begin + 40 * (clock() - begin))  # a minute in one and a half seconds
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = CliRunner().invoke(app, ["submit", "--address", address, "verify", "x"])
    assert result.exit_code == 75
    assert result.output.count("trying again for 60 s") == 1
    assert address in "".join(result.output.split())


def test_submit_with_an_id_that_cannot_be_one_is_refused():
    for name in ("1st", "a/b", "", "a" * 101):
        result = CliRunner().invoke(app, ["submit", "--id", name, "verify", "x"])
        assert (result.exit_code, "begin with a letter" in " ".join(result.output.split())) == (2, True), name


@pytest.mark.parametrize("words", [[], ["raysubmit_x", "--all"]])
def test_stop_wants_one_job_or_all_of_them(words):
    ended = CliRunner().invoke(app, ["stop", *words])
    assert ended.exit_code == 2
    assert "say which job to stop, by its ID, or --all" in " ".join(ended.output.split())
