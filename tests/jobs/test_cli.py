from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from jobs.app import job_config
from jobs.cli import app
from pipeline.errors import ConfigError, IncompleteError
from pipeline.storage import Folder

NUM_CLIPS = 36
COMMANDS = ["tokenize", "export", "verify", "diff", "clean", "replay", "demo", "bench", "report", "certify", "train"]
COMMANDS += ["submit", "status", "logs", "stop"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example(name):
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"motion-tokens {name}" in result.output


def test_help_of_the_program_lists_the_commands():
    result = CliRunner().invoke(app, ["--help"])
    assert all(name in result.output for name in COMMANDS)


def test_job_config_lets_options_win(tmp_path):
    (tmp_path / "run.yaml").write_text("window: {stride: 10}\nprecision: float16\n")
    config = job_config(str(tmp_path / "run.yaml"), ["window.stride=20"], {"window.stride": 30, "precision": None})
    assert (config.window.stride, config.precision) == (30, "float16")
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        (tmp_path / "run.yaml").write_text("window: {stride: many}\n")
        job_config(str(tmp_path / "run.yaml"), None, {})


@pytest.mark.parametrize(("error", "code"), [(IncompleteError("units are missing"), 75), (KeyError("surprise"), 70)])
def test_errors_end_in_their_exit_code(monkeypatch, error, code):
    def fail(*args):
        raise error

    monkeypatch.setattr(Folder, "read", fail)
    result = CliRunner().invoke(app, ["verify", "x"])
    assert result.exit_code == code
    assert ("Traceback" in result.output) == (code == 70)


def test_messages_show_brackets_as_they_are(tmp_path):
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "[bold]")])
    assert result.exit_code == 2
    assert "[bold]" in "".join(result.output.split())


@pytest.fixture(scope="module")
def slow_job(tmp_path_factory, write_job):
    """Motion for a job of some ten seconds."""
    return write_job(tmp_path_factory.mktemp("slow"), NUM_CLIPS, 7)


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_sigterm_exits_143_and_the_same_command_continues(slow_job, tmp_path, executor):
    command = [sys.executable, "-m", "jobs.cli", "tokenize", str(slow_job / "motion"), str(tmp_path / "o")]
    command += ["-c", str(slow_job / "codec.safetensors"), "--set", "units.files=1"]
    command += ["--set", "gate=off", "--set", "run.report=false"]
    command += ["--local"] * (executor == "local")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("o/_store/*/fragments/*/*.parquet")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    asked_at = time.monotonic()
    output, _ = process.communicate(timeout=30)
    took_s = time.monotonic() - asked_at
    assert process.returncode == 143, output
    assert "run the same command again" in output
    assert output.count("stopped by SIGTERM") == 1
    assert took_s < 6, "twice the 3 s that a stopped Ray job gets, for a busy machine"
    assert not (tmp_path / "o" / "runs" / "active.json").exists()
    assert not (tmp_path / "o" / "dataset.json").exists()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("o/_store/*/fragments/*/*.parquet")}
    assert 1 <= len(done) < NUM_CLIPS
    finished = CliRunner().invoke(app, [*command[3:], *(["--local"] if executor == "ray" else [])])
    assert finished.exit_code == 0, finished.output
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "o")]).exit_code == 0


def test_sigterm_while_python_ends_leaves_the_exit_code(tmp_path):
    """Modules go last: one whose end takes a moment is met by the signal."""
    program = f"""
import sys, time
from jobs import cli
class Slow:
    def __del__(self, time=time, path={str(tmp_path / "ending")!r}, open=open):
        open(path, "w").close()
        time.sleep(1.5)
sys.slow = Slow()
sys.argv = ["motion-tokens", "diff", "--help"]
cli.main()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ending").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
