"""Pods are ended as Kubernetes does it, with the head's own hook and SIGTERM: what was in work is kept."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.deploy.render import TREE

with pytest.MonkeyPatch.context() as beside:
    beside.syspath_prepend(str(Path(__file__).parent))
    from ray_nodes import BIN, RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUM_CLIPS = 96
GRACE_S = 45
OWN_FOLDERS = ("_store/", "runs/", "report/")
PLAIN = ["--set", "units.files=1", "--set", "gate=off", "--set", "run.report=false", "--set", f"run.grace_s={GRACE_S}"]
ASKED_S = 10
"""Until the hook has reached the job, on a busy machine."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_job: Callable[..., Path]) -> Path:
    """Motion for a job of some seconds, one unit a clip, and the dataset that a plain loop makes of it."""
    folder = write_job(tmp_path_factory.mktemp("ended"), NUM_CLIPS, 3)
    locally(tokenize(folder, folder / "expected"))
    return folder


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[RayNodes]:
    """A head and two workers whose Ray drains for so many seconds as the test's parameter says, else for 60."""
    drain_s = getattr(request, "param", GRACE_S + 15)
    waits = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_s), "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S + 30)}
    (head,) = head_containers()
    cluster = RayNodes(environment=waits, of_head={item["name"]: item["value"] for item in head["env"]})
    try:
        for _ in range(2):
            cluster.add(num_cpus=2)
        yield cluster
    finally:
        cluster.close()


def tokenize(corpus: Path, output: Path) -> list[str]:
    return ["tokenize", str(corpus / "motion"), str(output), "-c", str(corpus / "codec.safetensors"), *PLAIN]


def locally(words: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "jobs.cli", *words, "--local"], check=True, capture_output=True)


def hand_in(nodes: RayNodes, words: list[str]) -> str:
    """Submit a command as KubeRay does, and return the job's id."""
    entrypoint = ["motion-tokens", words[0], "--address", "auto", *words[1:]]
    command = [str(BIN / "ray"), "job", "submit", "--address", nodes.server, "--no-wait", "--submission-id", "pod-job"]
    subprocess.run([*command, "--", *entrypoint], env=nodes.environment, check=True, capture_output=True)
    return "pod-job"


def head_containers() -> list[dict[str, Any]]:
    cluster = yaml.safe_load((TREE / "base" / "ray_cluster.yaml").read_text())
    return list(cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"])


def hook(nodes: RayNodes) -> list[str]:
    """The command that Kubernetes runs in the head before it sends SIGTERM."""
    (head,) = head_containers()
    program, *words = head["lifecycle"]["preStop"]["exec"]["command"]
    assert words[-1] == "http://127.0.0.1:8265"
    return [str(BIN / program), *words[:-1], nodes.server]


def fragments(output: Path) -> list[Path]:
    return list(output.glob("_store/*/fragments/*/*.parquet"))


def wait_for(condition: Callable[[], Any], limit_s: float = 240) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def promised(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset whose bytes are promised, by relative path."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(OWN_FOLDERS)}


def said(nodes: RayNodes, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *words, "--address", nodes.server]
    return subprocess.run(command, env=nodes.environment, capture_output=True, text=True, check=False)


def test_the_hook_of_the_head_keeps_what_is_in_work(nodes, corpus, tmp_path):
    output = tmp_path / "o"
    job = hand_in(nodes, tokenize(corpus, output))
    wait_for(lambda: fragments(output))
    with nodes.held(nodes.TOKENIZERS):
        ending = subprocess.Popen(hook(nodes), env=nodes.environment, stdout=subprocess.PIPE, text=True)
        time.sleep(ASKED_S)
        assert ending.poll() is None
        num_before = len(fragments(output))
    wait_for(lambda: len(fragments(output)) > num_before, GRACE_S)
    with nodes.held(nodes.TOKENIZERS):  # what is not through by the end of the grace time stays behind
        told, _ = ending.communicate(timeout=GRACE_S + 60)
    assert ending.returncode == 0, told
    assert "exit code 143" in " ".join(told.split())
    assert said(nodes, "logs", job, "--follow").returncode == 143
    assert num_before < len(fragments(output)) < NUM_CLIPS
    assert not (output / "runs" / "active.json").exists()
    nodes.terminate().wait(30)
    locally(tokenize(corpus, output))
    assert len(fragments(output)) == NUM_CLIPS
    assert promised(output) == promised(corpus / "expected")


def test_the_hook_of_a_head_without_a_job_ends_at_once(nodes):
    begun = time.monotonic()
    ended = subprocess.run(hook(nodes), env=nodes.environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "no job runs" in ended.stdout
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("nodes", [3], indirect=True)
def test_a_worker_that_gets_sigterm_changes_no_byte(nodes, corpus, tmp_path):
    output = tmp_path / "o"
    job = hand_in(nodes, [*tokenize(corpus, output), "--workers", "2"])
    wait_for(lambda: fragments(output))
    nodes.terminate(0).wait(60)
    assert not (output / "dataset.json").exists()
    ended = said(nodes, "logs", job, "--follow")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert promised(output) == promised(corpus / "expected")


def test_all_pods_that_end_at_once_leave_a_run_that_continues(nodes, corpus, tmp_path):
    output = tmp_path / "o"
    job = hand_in(nodes, [*tokenize(corpus, output), "--workers", "2"])
    wait_for(lambda: fragments(output))
    ending = subprocess.Popen(hook(nodes), env=nodes.environment, stdout=subprocess.PIPE, text=True)
    for _ in range(2):
        nodes.terminate(0)
    told, _ = ending.communicate(timeout=GRACE_S + 60)
    assert ending.returncode == 0, told
    assert said(nodes, "logs", job, "--follow").returncode in (75, 143)
    assert not (output / "runs" / "active.json").exists()
    nodes.terminate().wait(30)
    locally(tokenize(corpus, output))
    assert promised(output) == promised(corpus / "expected")
