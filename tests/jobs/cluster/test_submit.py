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
from jobs.cluster.submit import MEANINGS, NOT_INSTALLED, entrypoint, exit_code_of


@pytest.mark.parametrize("code", sorted(set(MEANINGS) - {0}))
def test_exit_code_of_a_failed_job_is_that_of_its_command(code):
    assert exit_code_of("FAILED", code, "JOB_ENTRYPOINT_COMMAND_ERROR") == code


@pytest.mark.parametrize(
    ("status", "driver_code", "error_type", "code"),
    [
        ("SUCCEEDED", 0, None, 0),
        ("STOPPED", None, None, 143),
        ("FAILED", -15, None, 143),
        ("FAILED", -9, None, 3),
        ("FAILED", 137, None, 3),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", 3),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", 3),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", 2),
        ("FAILED", NOT_INSTALLED, None, 2),
        ("FAILED", 99, None, 70),
    ],
)
def test_exit_code_of_a_job_without_a_code_of_ours(status, driver_code, error_type, code):
    assert exit_code_of(status, driver_code, error_type) == code


def run_line(arguments, python_path):
    line = entrypoint(arguments).replace("python", shlex.quote(sys.executable), 2)
    return subprocess.run(
        ["/bin/sh", "-c", line], env={"PYTHONPATH": python_path}, cwd="/", capture_output=True, text=True, check=False
    )


def test_entrypoint_tells_a_missing_package_from_wrong_data(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise ImportError('not this one')")
    assert run_line(["verify", "x"], str(tmp_path)).returncode == NOT_INSTALLED


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
    assert result.exit_code == 3
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
