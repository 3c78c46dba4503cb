"""Commands as jobs of a real cluster with token authentication: followed, stopped, resumed, and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest

from jobs.ray_environment import RAY_ENVIRONMENT

with pytest.MonkeyPatch.context() as beside:
    beside.syspath_prepend(str(Path(__file__).parent))
    from relay import relayed

COMMAND_LIMIT_S = 240
ASK_A_WORKER = """
import json, os, sys
from jobs.session import ray_running
with ray_running(address=sys.argv[1]):
    import ray
    print(json.dumps(ray.get(ray.remote(lambda: dict(os.environ)).remote())))
"""

NUM_CLIPS = 16
PLAIN = (
    "--set",
    "units.files=1",
    "--set",
    "gate=off",
    "--set",
    "run.report=false",
    "--batch-size",
    "8",
    "--workers",
    "1",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_job):
    """Motion for a job of some seconds, one unit a clip."""
    return write_job(tmp_path_factory.mktemp("submit"), NUM_CLIPS, 3)


@pytest.fixture
def tokenize(nodes, corpus):
    """Return a function that gives the words of `submit tokenize`."""

    def words(output, *options, before=()):
        inputs = ["tokenize", corpus / "motion", output, "-c", corpus / "codec.safetensors", *PLAIN]
        return ["submit", "--address", nodes.server, *before, *inputs, *options]

    return words


def wait_for(condition, limit_s=240):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_submit_stops_and_resumes(nodes, program, tokenize, tmp_path):
    output = tmp_path / "o"
    begun = program(*tokenize(output, before=["--no-wait"]))
    assert begun.returncode == 0, begun.stderr
    job = begun.stdout.strip()
    wait_for(lambda: list(output.glob("_store/*/fragments/*/*.parquet")))
    with nodes.held("ray::MapWorker"):
        found = [process.environ() for node in nodes.hosting("ray::MapWorker") for process in node]
        second = program(*tokenize(output, "--set", "run.when_active=leave"))
        stopped = program("stop", job, "--address", nodes.server)
    assert found
    assert all(RAY_ENVIRONMENT.items() <= each.items() for each in found)
    assert second.returncode == 3, second.stdout + second.stderr
    assert "run.when_active=take_over" in second.stdout
    assert stopped.returncode == 0, stopped.stderr
    assert "exit code 143" in " ".join(stopped.stdout.split())
    assert program("logs", job, "--follow", "--address", nodes.server).returncode == 143
    assert not (output / "dataset.json").exists()
    assert not (output / "runs" / "active.json").exists()  # it had the time to end by itself

    done = {path: path.stat().st_mtime_ns for path in output.glob("_store/*/fragments/*/*.parquet")}
    resumed = program(*tokenize(output))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"{NUM_CLIPS} units" in resumed.stdout
    assert "prove it" in resumed.stdout
    assert 0 < len(done) < NUM_CLIPS
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_submit_returns_the_exit_code_of_the_command(nodes, program, corpus, tmp_path):
    missing = program("submit", "--address", nodes.server, "verify", tmp_path / "nothing")
    assert missing.returncode == 2, missing.stdout
    assert "exit code 2: the request cannot start" in missing.stderr
    (tmp_path / "motion").mkdir()
    (tmp_path / "motion" / "a.npz").write_bytes((corpus / "motion" / "clip00.npz").read_bytes()[:5000])
    words = ["tokenize", tmp_path / "motion", tmp_path / "o", "-c", corpus / "codec.safetensors", *PLAIN, "--local"]
    dropped = program("submit", "--address", nodes.server, *words)
    assert dropped.returncode == 1, dropped.stdout
    assert "truncated" in dropped.stdout


@pytest.mark.slow
def test_submit_that_is_interrupted_leaves_the_job(nodes, corpus, tokenize, tmp_path, program):
    words = [str(word) for word in tokenize(tmp_path / "o", "--local")]
    client = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *words],
        env=nodes.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines = iter(client.stdout.readline, "")
    assert any("entrypoint" in line for line in lines)
    os.killpg(client.pid, signal.SIGINT)
    _, said = client.communicate(timeout=60)
    assert client.returncode == 143, said
    assert "ended this command only" in said
    job = next(word for word in said.split() if word.startswith("raysubmit_"))
    came_back = program("logs", job, "--follow", "--address", nodes.server)
    assert came_back.returncode == 0, came_back.stdout
    assert (tmp_path / "o" / "dataset.json").exists()
    state = " ".join(program("status", job, "--address", nodes.server).stdout.split())
    assert "succeeded exit code 0, complete" in state
    log = program("logs", job, "--address", nodes.server).stdout
    assert log.count("prove it") == 1
    assert log == came_back.stdout


@pytest.mark.slow
def test_submit_outlives_a_cut_connection(nodes, program, tokenize, tmp_path):
    words = [str(word) for word in tokenize(tmp_path / "o", "--local")]
    server = urllib.parse.urlsplit(nodes.server)
    with relayed(server.hostname, server.port) as relay:
        words[words.index(nodes.server)] = relay.url
        command = [sys.executable, "-m", "jobs.cli", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        client = subprocess.Popen(command, env=nodes.environment, **pipes)
        first = client.stdout.readline()
        relay.cut()
        rest, said = client.stdout.read(), client.stderr.read()  # communicate would miss what readline has buffered
        assert client.wait(COMMAND_LIMIT_S) == 0, said
        assert relay.num_cut > 0
    job = next(word for word in said.split() if word.startswith("raysubmit_"))
    assert first + rest == program("logs", job, "--address", nodes.server).stdout


@pytest.mark.slow
def test_submit_uploads_a_folder(nodes, program, tmp_path, corpus):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "ids.txt").write_text("clip01\n")
    inputs = ["tokenize", corpus / "motion", tmp_path / "o", "-c", corpus / "codec.safetensors", *PLAIN, "--local"]
    ended = program("submit", "--address", nodes.server, "--working-dir", folder, *inputs, "--clips", "ids.txt")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "clips 1 " in " ".join(ended.stdout.split())


@pytest.mark.slow
def test_tokenize_address_runs_on_the_cluster(nodes, program, corpus, tmp_path):
    words = ["tokenize", corpus / "motion", tmp_path / "o", "-c", corpus / "codec.safetensors", *PLAIN]
    ended = program(*words, "--address", nodes.gcs)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("of_job", [{}, {"OTHER": "1"}, {"OTHER": "1", "MIMALLOC_PURGE_DELAY": "3"}])
def test_workers_of_a_cluster_get_what_its_nodes_lack(nodes, of_job):
    """Beside what a job was submitted with, by whatever client."""
    environment = {name: value for name, value in nodes.environment.items() if name not in RAY_ENVIRONMENT} | of_job
    if of_job:
        environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": {"env_vars": of_job}, "metadata": {}})
    command = [sys.executable, "-c", ASK_A_WORKER, nodes.gcs]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    wanted = RAY_ENVIRONMENT | of_job
    found = json.loads(ended.stdout.splitlines()[-1])
    assert {name: found.get(name) for name in wanted} == wanted


def test_a_client_without_the_token_is_told(nodes, tmp_path):
    environment = {**nodes.environment, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "jobs.cli", "submit", "--address", nodes.server, "verify", str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "RAY_AUTH_MODE=token" in ended.stderr


def test_an_unknown_job_is_told(nodes, program):
    ended = program("status", "raysubmit_none", "--address", nodes.server)
    assert ended.returncode == 2
    assert "no job 'raysubmit_none'" in ended.stderr
