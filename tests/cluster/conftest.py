"""Fixtures of tests on a real cluster: one of a head and two workers, and the command line as its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as beside:
    beside.syspath_prepend(str(Path(__file__).parent))
    from ray_nodes import RayNodes

COMMAND_LIMIT_S = 240


@pytest.fixture(scope="package")
def nodes() -> Iterator[RayNodes]:
    """A head and two workers of three CPUs each."""
    cluster = RayNodes()
    try:
        for _ in range(2):
            cluster.add()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="package")
def program(nodes: RayNodes) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `motion-tokens ARG...` as a client of the cluster and gives how it ended."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        words = [str(arg) for arg in args]
        command = [sys.executable, "-m", "jobs.cli", *words]
        return subprocess.run(
            command,
            env=nodes.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_LIMIT_S,
            stdin=subprocess.DEVNULL,
        )

    return run
