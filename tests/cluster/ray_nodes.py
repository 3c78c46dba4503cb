"""A Ray cluster of processes that `ray start` makes here, with token authentication; its nodes can be killed.

Knows nothing of the project but the name of its processes: commands reach it through the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_LIMIT_S = 120
STORE_BYTES = 120 << 20


@dataclass(frozen=True)
class Host:
    """Where a node runs: this machine, or a network namespace with an address of its own."""

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


HERE = Host()


class RayNodes:
    """A head that computes nothing; workers are added and killed. Whoever builds it closes it.

    Args:
        host: of the head.
        environment: what all nodes, and so all jobs, find beside this process's environment.
        of_head: what the head finds besides.
    """

    TOKENIZERS = "ray::MapWorker(MapBatches(HostedTokenizer)"
    """How the processes of a job's tokenizers are called."""

    def __init__(
        self, host: Host = HERE, environment: dict[str, str] | None = None, of_head: dict[str, str] | None = None
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mt-", dir="/tmp"))  # sockets want a short path
        (self._folder / "token").write_text(secrets.token_hex(32))
        self._host, self._workers = host, list[subprocess.Popen[bytes]]()
        self._ending: list[subprocess.Popen[bytes]] = []
        self._gcs_port, self._http_port, self._metrics_port, client_port = _free_ports(4)
        self._client = {**os.environ, **self._secret(), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
        self._client["RAY_metrics_report_interval_ms"] = "1000"  # so that short jobs are seen
        self._client.pop("RAY_ADDRESS", None)
        self._nodes = {
            **self._client,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_health_check_period_ms": "1000",  # a killed node is missed after five seconds, not fifteen
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        options = ["--head", "--port", str(self._gcs_port), "--num-cpus", "0", "--temp-dir", str(self._folder / "ray")]
        options += ["--include-dashboard", "true", "--dashboard-host", host.address]
        options += ["--dashboard-port", str(self._http_port), "--ray-client-server-port", str(client_port)]
        options += ["--metrics-export-port", str(self._metrics_port)]
        self._head = self._start(host, options, of_head)
        deadline = time.monotonic() + START_LIMIT_S
        while self._num_alive() < 1:
            if self._head.poll() is not None or time.monotonic() > deadline:
                log = self._log()
                self.close()
                raise TimeoutError(f"no cluster came up at {self.server}:\n{log}")
            time.sleep(0.3)

    @property
    def gcs(self) -> str:
        """The cluster's own address, HOST:PORT."""
        return f"{self._host.address}:{self._gcs_port}"

    @property
    def server(self) -> str:
        """The address of its job server."""
        return f"http://{self._host.address}:{self._http_port}"

    def counted(self, output: Path) -> set[str]:
        """Return the names of the metrics of an output's runs that the head answers Prometheus: of drivers there."""
        address = f"http://{self._host.address}:{self._metrics_port}/metrics"
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                text = reply.read().decode()
        except OSError:
            return set()
        return {
            line.partition("{")[0].removeprefix("ray_motion_tokens_")
            for line in text.splitlines()
            if line.startswith("ray_motion_tokens_") and f'"{output}"' in line
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs: this process's environment and the token."""
        return dict(self._client)

    def add(self, num_cpus: int = 3, num_gpus: int = 0, host: Host = HERE) -> None:
        """Start one more worker node; on a busy machine Ray may give up after half a minute, and is told again."""
        wanted = self._num_alive() + 1
        options = ["--address", self.gcs, "--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus)]
        worker = self._start(host, options)
        deadline = time.monotonic() + START_LIMIT_S
        while self._num_alive() < wanted:
            if worker.poll() is not None:
                worker = self._start(host, options)
            if time.monotonic() > deadline:
                _kill_tree(worker)
                raise TimeoutError(f"no worker joined the cluster at {self.gcs}:\n{self._log()}")
            time.sleep(0.3)
        self._workers.append(worker)

    def kill(self, index: int = 0) -> None:
        """End a worker node and all that runs on it with SIGKILL, as a machine is lost."""
        _kill_tree(self._workers.pop(index))

    def terminate(self, index: int | None = None) -> subprocess.Popen[bytes]:
        """Send a worker node, or the head, SIGTERM as Kubernetes does; return its process, which ends after that."""
        node = self._head if index is None else self._workers.pop(index)
        node.terminate()
        self._ending.append(node)
        return node

    def hosting(self, name: str) -> list[list[psutil.Process]]:
        """Return the processes whose name begins so, for each worker node."""
        return [[child for child in _descendants(node.pid) if _name(child).startswith(name)] for node in self._workers]

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Halt all processes of a name on the worker nodes meanwhile: a job stays where it is."""
        processes = [process for node in self.hosting(name) for process in node]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.resume()

    def close(self) -> None:
        """End everything and remove what it left."""
        for process in [*self._ending, *self._workers, self._head]:
            _kill_tree(process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _secret(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._folder / "token")}

    def _start(
        self, host: Host, options: Sequence[str], besides: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        ports = _free_ports(2)
        command = [*host.prefix, str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
        command += ["--node-ip-address", host.address, "--object-store-memory", str(STORE_BYTES)]
        for name, port in zip(("dashboard-agent-listen", "dashboard-agent-grpc"), ports, strict=True):
            command += [f"--{name}-port", str(port)]
        with (self._folder / "nodes.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env={**self._nodes, **(besides or {})},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _log(self) -> str:
        return (self._folder / "nodes.log").read_text()[-3000:]

    def _num_alive(self) -> int:
        """Ask the dashboard how many nodes are alive."""
        token = (self._folder / "token").read_text()
        request = urllib.request.Request(
            f"{self.server}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                nodes = json.load(answer)["data"]["summary"]
        except (OSError, ValueError):  # not there yet, or in the midst of its start
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()[:1])
    return ""


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    below = _descendants(process.pid)
    for each in [process, *below]:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            each.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(below, timeout=10)
