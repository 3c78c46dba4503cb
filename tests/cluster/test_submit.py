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
from typer.testing import CliRunner

from jobs.cli import app
from jobs.session.ray_environment import RAY_ENVIRONMENT

with pytest.MonkeyPatch.context() as beside:
    beside.syspath_prepend(str(Path(__file__).parent))
    from relay import relayed

COMMAND_LIMIT_S = 240
ASK_A_WORKER = """
import json, os, sys
from jobs.session.ray_start import ray_running
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


def promised(folder):
    """Every file of a dataset whose bytes are promised, by relative path."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(("_store/", "runs/"))}


def start_program(nodes, words):
    """Start `motion-tokens WORD...` as a client of the cluster; what it prints fits into its pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *(str(word) for word in words)], env=nodes.environment, **pipes
    )


def wait_for(condition, limit_s=240):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_submit_stops_and_resumes_and_counts_for_prometheus(nodes, program, tokenize, tmp_path):
    output = tmp_path / "o"
    begun = program(*tokenize(output, before=["--no-wait"]))
    assert begun.returncode == 0, begun.stderr
    job = begun.stdout.strip()
    wait_for(lambda: list(output.glob("_store/*/fragments/*/*.parquet")))
    with nodes.held(nodes.TOKENIZERS):
        found = [process.environ() for node in nodes.hosting(nodes.TOKENIZERS) for process in node]
        stopped = program("stop", job, "--address", nodes.server)
    assert found
    assert all(RAY_ENVIRONMENT.items() <= each.items() for each in found)
    assert stopped.returncode == 0, stopped.stderr
    assert "exit code 143" in " ".join(stopped.stdout.split())
    assert program("logs", job, "--follow", "--address", nodes.server).returncode == 143
    assert not (output / "dataset.json").exists()
    assert not (output / "runs" / "active.json").exists()  # it had the time to end by itself

    done = {path: path.stat().st_mtime_ns for path in output.glob("_store/*/fragments/*/*.parquet")}
    resumed = start_program(nodes, tokenize(output))
    counted = set()
    while resumed.poll() is None:
        counted |= nodes.counted(output)
        time.sleep(0.5)
    printed, told = resumed.communicate()
    assert resumed.returncode == 0, printed + told
    assert {"windows_total", "units_total", "units_in_flight", "stage"} <= counted
    undisturbed = CliRunner().invoke(app, [str(word) for word in tokenize(tmp_path / "expected", "--local")[3:]])
    assert undisturbed.exit_code == 0, undisturbed.output
    assert promised(output) == promised(tmp_path / "expected")
    assert f"{NUM_CLIPS} units" in printed
    assert "prove it" in printed
    assert 0 < len(done) < NUM_CLIPS
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_submit_returns_the_exit_code_of_the_command(nodes, program, tmp_path):
    missing = program("submit", "--address", nodes.server, "verify", tmp_path / "nothing")
    assert missing.returncode == 2, missing.stdout
    assert "exit code 2: the request cannot start" in missing.stderr


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
    job = next(word for word in said.split() if word.startswith("job-"))
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
    job = next(word for word in said.split() if word.startswith("job-"))
    assert first + rest == program("logs", job, "--address", nodes.server).stdout


def through(relay, words, server):
    """The words of a command that reaches the cluster through a relay."""
    return [relay.url if word == server else str(word) for word in words]


def num_jobs(program, nodes, place):
    """How many jobs the cluster knows whose command names a path."""
    return "".join(program("status", "--address", nodes.server).stdout.split()).count(str(place))


def test_submit_hands_in_once_where_the_answer_is_lost(nodes, program, tmp_path):
    words = ["submit", "--address", nodes.server, "verify", tmp_path / "nothing"]
    server = urllib.parse.urlsplit(nodes.server)
    with relayed(server.hostname, server.port) as relay:
        relay.lose_answer(b"POST /api/jobs/ ", is_cut=True)
        ended = program(*through(relay, words, nodes.server))
        assert relay.num_lost == 1
    assert ended.returncode == 2, ended.stderr
    assert "trying again for 60 s" in ended.stderr
    assert "ended with exit code 2" in ended.stderr
    assert num_jobs(program, nodes, tmp_path) == 1


def test_submit_that_is_interrupted_while_it_hands_in_names_the_job(nodes, program, tmp_path):
    words = ["submit", "--address", nodes.server, "--no-wait", "verify", tmp_path / "nothing"]
    server = urllib.parse.urlsplit(nodes.server)
    with relayed(server.hostname, server.port) as relay:
        relay.lose_answer(b"POST /api/jobs/ ", is_cut=False)
        command = [sys.executable, "-m", "jobs.cli", *through(relay, words, nodes.server)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        client = subprocess.Popen(command, env=nodes.environment, **pipes)
        wait_for(lambda: relay.num_lost)
        client.send_signal(signal.SIGINT)
        printed, said = client.communicate(timeout=60)
    assert (client.returncode, printed) == (143, ""), said
    assert "may have been taken" in said
    job = next(word for word in said.split() if word.startswith("job-"))
    assert program("logs", job, "--follow", "--address", nodes.server).returncode == 2


def test_submit_by_id_follows_what_stands_and_continues_what_is_incomplete(nodes, program, tokenize, tmp_path):
    late = tokenize(tmp_path / "o", "--max-runtime", "0s", "--local", before=["--id", "night-1"])
    assert program(*late).returncode == 75
    again = program(*late)
    assert (again.returncode, "job night-1-2 at" in again.stderr) == (75, True), again.stderr
    missing = ["submit", "--address", nodes.server, "--id", "night-2", "verify", tmp_path / "nothing"]
    for known in ("", ", handed in before"):
        ended = program(*missing)
        assert ended.returncode == 2
        assert f"job night-2 at {nodes.server}{known}\n" in ended.stderr
    assert num_jobs(program, nodes, tmp_path / "nothing") == 1
    other = program(*missing[:-1], tmp_path / "other")
    assert (other.returncode, "night-2 is another command" in other.stderr) == (2, True)


@pytest.mark.slow
def test_submit_in_the_place_of_a_lost_one_follows_its_job(nodes, program, tokenize, tmp_path):
    words = [str(word) for word in tokenize(tmp_path / "o", "--local", before=["--id", "night-3"])]
    client = subprocess.Popen([sys.executable, "-m", "jobs.cli", *words], env=nodes.environment, stdout=subprocess.PIPE)
    assert client.stdout.readline()
    client.kill()
    client.wait()
    second = program(*words)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("prove it") == 1
    assert num_jobs(program, nodes, tmp_path / "o") == 1


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


@pytest.mark.parametrize("of_job", [{}, {"OTHER": "1", "MIMALLOC_PURGE_DELAY": "3"}])
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
    ended = program("status", "job-none", "--address", nodes.server)
    assert ended.returncode == 2
    assert "no job 'job-none'" in ended.stderr
