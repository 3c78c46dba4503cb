"""A real Slurm on this machine's loopback: munge, a controller and two nodes, in a folder of its own.

Knows nothing of the jobs that run on it. The programs are Debian's slurmctld, slurmd, slurm-client and munge.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo")
NODES = ("one", "two")
START_S = 60.0
END_S = 20.0

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0
MailProg=/bin/true
ReturnToService=2
KillWait=20
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing_programs() -> list[str]:
    """Which of the programs this machine does not have."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Slurm:
    """A controller and two nodes, each with all processors of this machine; whoever starts it stops it.

    Args:
        folder: new; its path is short, since sockets lie in it.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(parents=True, mode=0o700)
        host = socket.gethostname().partition(".")[0]
        num_cpus = len(os.sched_getaffinity(0))
        controller_port, *node_ports = free_ports(1 + len(NODES))
        text = CONFIGURATION.format(
            host=host,
            folder=folder,
            user=getpass.getuser(),
            controller_port=controller_port,
            nodes="\n".join(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={num_cpus} State=UNKNOWN"
                for node, port in zip(NODES, node_ports, strict=True)
            ),
        )
        (folder / "slurm.conf").write_text(text)
        self._folder = folder
        self._servers: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's programs need to find it, over the environment of this process."""
        path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
        return {**os.environ, "SLURM_CONF": str(self._folder / "slurm.conf"), "PATH": path}

    def start(self) -> None:
        """Start it and wait until its nodes are idle."""
        munge = self._folder / "munge"
        self.ask("mungekey", "--create", f"--keyfile={munge / 'key'}")
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._serve("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
        self._serve("slurmctld", "-D")
        for node in NODES:
            self._serve("slurmd", "-D", "-N", node)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                if self.ask("sinfo", "--noheader", "--format=%T %D") == f"idle {len(NODES)}":
                    return
            except subprocess.CalledProcessError:  # the controller does not answer yet
                pass
            time.sleep(0.2)
        raise TimeoutError(f"no idle nodes after {START_S} s; {self.logs()}")

    def stop(self) -> None:
        """End it, the nodes first."""
        for server in reversed(self._servers):
            server.terminate()
            try:
                server.wait(END_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        self._servers.clear()

    def ask(self, *words: str, **variables: str) -> str:
        """Return what one of Slurm's programs prints."""
        environment = self.environment | variables
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """Return what the controller knows of a job, such as JobState, Restarts and ExitCode."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words)

    def logs(self) -> str:
        """The last lines of every server."""
        paths = sorted(self._folder.glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in paths)

    def _serve(self, program: str, *words: str) -> None:
        name = "-".join([program, *words[-1:]]) if program == "slurmd" else program
        with (self._folder / f"{name}.log").open("wb") as log:
            command = [program, *words]
            server = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self._servers.append(server)
        if program == "munged":
            deadline = time.monotonic() + START_S
            while not (self._folder / "munge" / "socket").exists() and time.monotonic() < deadline:
                time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
