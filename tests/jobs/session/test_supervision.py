"""A command and the parent that outlives it: real processes, first without Ray, then whole jobs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import typer

from jobs.app import NOT_HANDED_IN
from jobs.cli import app
from jobs.session.supervision import ECHO_S, RAY_COMMANDS

NUM_CLIPS = 12
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PROGRAM = """
import os, signal, sys, time
from jobs.session.supervision import run_supervised

def command():
    {body}

run_supervised(command)
"""
COUNT_SIGNALS = """
    got = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: got.append(number))
    print(os.getpid(), flush=True)
    while len(got) < {wanted}:
        time.sleep(0.01)
    time.sleep(0.4)
    print(*(signal.Signals(number).name for number in got))
    sys.exit(143)
"""
WAIT = "print(os.getpid(), flush=True); time.sleep(60)"


def end_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def start():
    """Return a function that starts a supervised command in a process group of its own, and gives its child's id."""
    running = []

    def start(body):
        command = [sys.executable, "-c", PROGRAM.format(body=body.strip())]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
        running.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in running:
        end_group(process)


def run_program(body):
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("print('done')", 0),
        ("print('done'); sys.exit(2)", 2),
        ("print('done'); sys.exit(143)", 143),
        ("import atexit; atexit.register(print, 'done'); sys.exit(70)", 70),
        ("import atexit; atexit.register(os._exit, 1); print('done'); sys.exit()", 0),
    ],
)
def test_run_supervised_ends_as_the_command_did(body, code):
    done = run_program(body)
    assert (done.returncode, done.stdout, done.stderr) == (code, "done\n", "")


def test_run_supervised_leaves_an_exception_to_python():
    done = run_program("raise KeyError('surprise')")
    assert done.returncode == 1
    assert done.stderr.count("KeyError: 'surprise'") == 1


def test_run_supervised_speaks_for_a_child_that_native_code_ended():
    done = run_program("os._exit(1)")
    assert done.returncode == 3
    assert "code 1" in done.stderr
    assert "run the same command again" in done.stderr


def test_run_supervised_speaks_for_a_child_that_was_killed(start):
    process, child = start(WAIT)
    os.kill(child, signal.SIGKILL)
    _, message = process.communicate(timeout=5)
    assert process.returncode == 3
    assert "memory" in message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_run_supervised_gives_the_child_every_signal_once(start, send, number):
    process, _ = start(COUNT_SIGNALS.format(wanted=2))
    send(process.pid, number)
    time.sleep(3 * ECHO_S)
    send(process.pid, number)
    output, _ = process.communicate(timeout=10)
    assert (process.returncode, output.split()) == (143, [number.name] * 2)


def test_run_supervised_gives_a_signal_once_that_parent_and_child_are_sent_apart(start):
    process, child = start(COUNT_SIGNALS.format(wanted=1))
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGTERM)
        time.sleep(ECHO_S / 10)
    output, _ = process.communicate(timeout=10)
    assert (process.returncode, output.split()) == (143, ["SIGTERM"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_run_supervised_is_stopped_before_the_command_has_handlers(start, send, number):
    process, _ = start(WAIT)
    send(process.pid, number)
    _, message = process.communicate(timeout=5)
    assert process.returncode == 143
    assert message == f"stopped by {number.name}: run the same command again, what is committed stays\n"


def test_run_supervised_takes_the_child_with_it(start):
    process, child = start(WAIT)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 1
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_is_to_supervise_what_runs_ray():
    """Asked where it is asked in earnest: in a process that has imported the command line and nothing else."""
    lines = ["tokenize a b", "stats a", "train a", "tokenize a b --local", "tokenize --help", "verify export", ""]
    program = "import sys, jobs.cli; print(*(jobs.cli.is_to_supervise(line.split()) for line in sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, *lines], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3 + ["False"] * 4


def test_every_command_that_can_be_told_how_to_use_ray_is_supervised():
    """By its options: --local, --num-workers and, but for those that talk to a job server, --address."""
    commands = typer.main.get_command(app).commands
    options = {name: {param.name for param in command.params} for name, command in commands.items()}
    running = {name for name, has in options.items() if has & {"local", "num_workers"}}
    running |= {name for name in set(options) - NOT_HANDED_IN if "address" in options[name]}
    assert running <= RAY_COMMANDS <= set(commands)
    assert RAY_COMMANDS - running == {"bench"}  # runs Ray, and has none of these options


def test_is_to_supervise_not_with_threads():
    program = "import threading, time, jobs.cli; threading.Thread(target=time.sleep, args=(1,), daemon=True).start()"
    program += "; print(jobs.cli.is_to_supervise(['tokenize']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_job):
    """Motion for a job of some seconds, one unit a clip."""
    return write_job(tmp_path_factory.mktemp("supervised"), NUM_CLIPS, 3)


def tokenize_command(corpus, output, *options):
    command = [sys.executable, "-m", "jobs.cli", "tokenize", str(corpus / "motion"), str(output)]
    return [*command, "-c", str(corpus / "codec.safetensors"), "--set", "units.files=1", "--set", "gate=off", *options]


@pytest.fixture
def start_job():
    """Return a function that starts a job in a process group of its own, and waits for its first fragments."""
    running = []

    def start(command, output):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = psutil.Popen(command, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)
        running.append(process)
        deadline = time.monotonic() + 120
        while not list(output.glob("_store/*/fragments/*/*.parquet")):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    yield start
    for process in running:
        end_group(process)


def copies_of(process):
    """Descendants that are forks of a command, not programs of Ray."""
    return [child for child in process.children(recursive=True) if child.cmdline() == process.cmdline()]


def test_a_request_that_cannot_start_exits_2(corpus, tmp_path):
    command = tokenize_command(corpus, tmp_path / "o", "--set", "window.strid=5")
    done = subprocess.run(command, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert (done.returncode, "window.stride" in done.stderr) == (2, True)


def test_a_local_job_has_no_parent(corpus, tmp_path, start_job):
    process = start_job(tokenize_command(corpus, tmp_path / "o", "--local"), tmp_path / "o")
    assert copies_of(process) == []
