"""The soak: one tokenize job through Ray passes small units without a pause, and nothing may grow meanwhile.

    python tests/faults/soak.py --minutes 30 --json out/soak.json

The job runs in a process of its own, which this one watches from outside; a plot stands beside the JSON. It differs
from a job of `motion-tokens tokenize` in one thing: `run.row_bytes` is one byte there, so that every unit passes
alone. By default, a job would gather the same units into a few large tasks, and a growth by task would stay hidden.
The time limit ends it (`--max-runtime`, exit code 75), with units left over. Ray Data keeps statistics of every task as
long as a job runs, about 1.2 KiB each in the driver, 3.5 KiB a unit: at three units a second 0.6 MiB a minute of the
allowed 1; in a job of full tasks, 128 MB each, some 30 MB after a terabyte.

What is measured, in MiB, every few seconds:
- of every process its own (anonymous) memory, without the shared pages of the object store and of program files.
  Ray's workers count by role, as a sum: one that is replaced is no growth, one that is added is;
- of the object store the bytes that objects hold, as Ray says it, and the pages that its memory file occupies;
- open files and threads, by role likewise.
After a warm-up, a line is fitted to each (Theil-Sen; the interval takes samples for independent, so it is narrow).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

MIB = 1 << 20
DIMS, FRAMES, STRIDE = 106, 500, 5
"""Of a unit: about 100 windows, so that two cores pass a few units a second."""
DISTINCT_FILES = 64
UNITS_A_MINUTE = 600
"""More than two cores get done, so that the time limit ends the job."""
SAMPLE_S, COUNT_S = 5.0, 60.0
WARM_UP_SHARE, WARM_UP_S = 0.2, 180.0
MAX_MIB_A_MINUTE = 1.0
MAX_FILES_A_MINUTE = 0.2
"""Of each role but Ray's servants: its log monitor holds every worker's logs open, 200 files at most."""
EXIT_INCOMPLETE = 75
END_LIMIT_S = 120.0

DRIVER, TOKENIZER, WRITER = "driver", "tokenizer", "writer"
TASK_WORKERS, ALL_WORKERS = "task workers", "all workers"
SERVANTS = "ray's servants"
SERVERS = {"raylet": "raylet", "gcs_server": "gcs server"}
OBJECTS, PAGES = "object store: objects", "object store: pages"
NO_WORKERS = (DRIVER, SERVANTS, *SERVERS.values())
SERVANT_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
ACTOR_TITLE = re.compile(r"ray::(_?[A-Z]\w*)")
TASK_TITLE = re.compile(r"ray::(IDLE|MapBatches|_?[a-z])")


# The job, in a process of its own


def run_job(folder: Path, minutes: float) -> int:
    """Tokenize every unit alone until the time is over, and return the exit code of the command."""
    from rich.console import Console

    from jobs.commands.run.tokenize_command import run_tokenize
    from pipeline.errors import MotionTokensError
    from pipeline.settings.job_config import TokenizeRequest, load_config

    settings = ["units.files=1", "run.row_bytes=1", "gate=off", f"window.stride={STRIDE}"]
    settings += [f"run.max_runtime={60 * minutes:.0f}s"]
    request = TokenizeRequest(
        inputs=(str(folder / "motion"),),
        output=str(folder / "tokens"),
        checkpoint=str(folder / "codec.safetensors"),
        preset=None,
        model_config=None,
        config=load_config(None, settings),
    )
    try:
        run_tokenize(request, Console())
    except MotionTokensError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 0


def make_corpus(folder: Path, num_units: int) -> None:
    """Write a small codec, and motion under many names: a few distinct files, linked again and again."""
    from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint

    (folder / "distinct").mkdir(parents=True)
    (folder / "motion").mkdir()
    for number in range(DISTINCT_FILES):
        motion = np.random.default_rng(number).normal(size=(FRAMES, DIMS)).astype(np.float32)
        np.savez(folder / "distinct" / f"{number:02}.npz", motion=motion, fps=25)
    for number in range(num_units):
        os.link(folder / "distinct" / f"{number % DISTINCT_FILES:02}.npz", folder / "motion" / f"clip{number:06}.npz")
    config = BitwiseVAEConfig(hidden_dim=256, depth=2)
    write_checkpoint(random_checkpoint(config, np.zeros(DIMS), np.ones(DIMS), 0), folder / "codec.safetensors")


# The watcher


class Watcher:
    """Looks at the job's processes from outside; built for one job, remembers what role each process plays."""

    def __init__(self, driver: psutil.Process) -> None:
        self._driver = driver
        self._begin = time.monotonic()
        self._roles: dict[psutil.Process, str] = {}
        self._address: tuple[str, int] | None = None
        self.samples: list[dict[str, Any]] = []

    @property
    def num_processes(self) -> dict[str, int]:
        """How many processes played each role in all."""
        roles = list(self._roles.values())
        return {role: roles.count(role) for role in sorted(set(roles))}

    def processes(self) -> list[psutil.Process]:
        """The driver and everything it started that lives."""
        return [self._driver, *self._driver.children(recursive=True)]

    def look(self) -> None:
        """Take one sample."""
        sample: dict[str, Any] = {"s": round(time.monotonic() - self._begin, 1), "mib": {}, "files": {}, "threads": {}}
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                role = self._role(process)
                if role is None:
                    continue
                figures = {"mib": own_mib(process.pid), "files": process.num_fds(), "threads": process.num_threads()}
                for name in (role,) if role in NO_WORKERS else (role, ALL_WORKERS):
                    for kind, figure in figures.items():
                        sample[kind][name] = sample[kind].get(name, 0) + figure
                if role == "raylet":
                    sample["mib"][PAGES] = store_pages_mib(process.pid)
                    sample["mib"][OBJECTS] = self._objects_mib(process)
        self.samples.append(sample)

    def _role(self, process: psutil.Process) -> str | None:
        """Return what a process is for; a worker is known once Ray has named it."""
        known = self._roles.get(process)
        if known is not None and known != TASK_WORKERS:
            return known
        role = DRIVER if process == self._driver else role_of(process.cmdline())
        if role is not None:
            self._roles[process] = role
        return role

    def _objects_mib(self, raylet: psutil.Process) -> float:
        """Ask the raylet how many bytes its objects hold: one of its two ports answers."""
        from grpc import RpcError
        from ray._private.internal_api import node_stats

        host = re.search(r"--node_ip_address=(\S+)", " ".join(raylet.cmdline()))
        ports = [self._address] if self._address else [(host[1], port) for port in listening(raylet)] if host else []
        for address in ports:
            with contextlib.suppress(RpcError):
                used = node_stats(*address, include_memory_info=False).store_stats.object_store_bytes_used
                self._address = address
                return used / MIB
        raise OSError("the raylet does not answer")


def role_of(line: list[str]) -> str | None:
    """Return what a process is for, from its command line; None before it is known."""
    title = line[0] if line else ""
    if Path(title).name in SERVERS:
        return SERVERS[Path(title).name]
    if title in SERVANT_TITLES:
        return SERVANTS
    if title.startswith("ray::MapWorker"):
        return WRITER if "HostedWriter" in title else TOKENIZER
    if TASK_TITLE.match(title):
        return TASK_WORKERS
    actor = ACTOR_TITLE.match(title)
    if actor:
        return actor[1].lstrip("_")
    is_servant = any(part in " ".join(line) for part in ("/ray/dashboard/", "/ray/autoscaler/", "log_monitor.py"))
    return SERVANTS if is_servant else None


def listening(process: psutil.Process) -> list[int]:
    return [connection.laddr.port for connection in process.net_connections() if connection.status == "LISTEN"]


def own_mib(pid: int) -> float:
    """Return a process's anonymous memory: what it alone can have grown by."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"process {pid} is ending")
    return int(found[1]) / 1024


def store_pages_mib(raylet: int) -> float:
    """Return what the object store's memory file occupies: it has no name any more, but the raylet holds it open."""
    for handle in Path(f"/proc/{raylet}/fd").iterdir():
        with contextlib.suppress(OSError):
            if "/plasma" in str(handle.readlink()):
                return handle.stat().st_blocks * 512 / MIB
    raise OSError("no object store")


# The judgement


@dataclass(frozen=True)
class Trend:
    """How one series went after the warm-up."""

    kind: str
    name: str
    first: float
    last: float
    slope: float
    low: float
    high: float
    limit: float | None
    """By minute; None where it is only told."""

    @property
    def is_good(self) -> bool:
        """Whether it stays within its limit; open files only grow where their last quarter lies higher, too."""
        if self.limit is None or self.slope <= self.limit:
            return True
        return self.kind == "files" and self.last <= self.first


def slope_of(minutes: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Return the Theil-Sen slope and its 95 % interval (Sen 1968), samples taken for independent."""
    left, right = np.triu_indices(len(minutes), 1)
    slopes = np.sort((values[right] - values[left]) / (minutes[right] - minutes[left]))
    count = len(minutes)
    width = 1.96 * np.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low, high = (int(np.clip((len(slopes) + sign * width) / 2, 0, len(slopes) - 1)) for sign in (-1, 1))
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])


def trends_of(samples: list[dict[str, Any]], from_s: float) -> list[Trend]:
    """Return how every series went that was there at least half of the time."""
    limits = {"mib": MAX_MIB_A_MINUTE, "files": MAX_FILES_A_MINUTE, "threads": None}
    steady = [sample for sample in samples if sample["s"] >= from_s]
    trends = []
    for kind, limit in limits.items():
        for name in sorted({name for sample in steady for name in sample[kind]}):
            points = [(sample["s"] / 60, sample[kind][name]) for sample in steady if name in sample[kind]]
            if len(points) < max(8, len(steady) / 2):
                continue
            minutes, values = np.array(points, float).T
            quarter = len(values) // 4
            first, last = float(np.median(values[:quarter])), float(np.median(values[-quarter:]))
            is_told_only = kind == "files" and name == SERVANTS
            trends.append(Trend(kind, name, first, last, *slope_of(minutes, values), None if is_told_only else limit))
    return trends


def table_of(trends: list[Trend]) -> str:
    """Return the trends for a person."""
    units = {"mib": "MiB", "files": "open files", "threads": "threads"}
    lines = ["|  | first quarter | last quarter | a minute | 95 % | limit |  |", "|---|---:|---:|---:|---:|---:|---|"]
    for trend in trends:
        told = f"| {trend.name}, {units[trend.kind]} | {trend.first:,.1f} | {trend.last:,.1f} | {trend.slope:+.3f} "
        told += f"| {trend.low:+.3f} to {trend.high:+.3f} | {'' if trend.limit is None else trend.limit} "
        lines.append(told + f"| {'' if trend.limit is None else 'good' if trend.is_good else 'GROWS'} |")
    return "\n".join(lines)


def plot(samples: list[dict[str, Any]], units: list[tuple[float, int]], from_s: float, path: Path) -> None:
    """Draw every series; memory and files as what they changed by since the warm-up."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(3, 1, figsize=(11, 13), sharex=True, layout="constrained")
    for panel, kind, title in zip(panels, ("mib", "files"), ("MiB", "open files"), strict=False):
        for number, name in enumerate(sorted({name for sample in samples for name in sample[kind]})):
            points = np.array([(s["s"] / 60, s[kind][name]) for s in samples if name in s[kind]], float)
            steady = points[points[:, 0] >= from_s / 60]
            if len(steady):
                base = np.median(steady[: max(1, len(steady) // 4), 1])
                style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--", "linewidth": 1}
                panel.plot(points[:, 0], points[:, 1] - base, label=f"{name} ({base:,.0f})", **style)
        panel.set_ylabel(f"{title}, less the first quarter's median")
        panel.legend(fontsize=7, ncols=2)
    panels[0].set_ylim(-40, 60)
    panels[1].set_ylim(-30, 30)
    panels[2].plot(*np.array([(at_s / 60, count) for at_s, count in units], float).reshape(-1, 2).T)
    panels[2].set_ylabel("units with a fragment")
    panels[2].set_xlabel("minutes")
    for panel in panels:
        panel.axvline(from_s / 60, color="grey", linestyle=":")
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


# The soak


@dataclass(frozen=True)
class Soak:
    """One soak: what was seen, and how the job ended."""

    samples: list[dict[str, Any]]
    units: list[tuple[float, int]]
    num_processes: dict[str, int]
    exit_code: int | None
    log: str


def soak(folder: Path, minutes: float, tell: Callable[[str], None]) -> Soak:
    """Run the job, watch it until its time is over, and leave nothing of it behind."""
    make_corpus(folder, int(minutes * UNITS_A_MINUTE))
    command = [sys.executable, __file__, "--job", str(folder), "--minutes", str(minutes)]
    log_path = folder / "job.log"
    with log_path.open("wb") as log:
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    watcher, units = Watcher(process), [(0.0, 0)]
    begin, seen = time.monotonic(), []
    try:
        while (now_s := time.monotonic() - begin) < 60 * minutes - SAMPLE_S and process.poll() is None:
            watcher.look()
            seen = watcher.processes()
            if now_s >= units[-1][0] + COUNT_S:
                units.append((round(now_s, 1), count_fragments(folder)))
                mib = {name: round(value) for name, value in watcher.samples[-1]["mib"].items()}
                tell(f"{now_s / 60:5.1f} min  {units[-1][1]:,} units  MiB {mib}")
            time.sleep(max(0.0, begin + now_s + SAMPLE_S - time.monotonic()))
        units.append((round(time.monotonic() - begin, 1), count_fragments(folder)))
        exit_code = None
        with contextlib.suppress(psutil.TimeoutExpired):
            exit_code = process.wait(END_LIMIT_S)
    finally:
        for left in seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
    return Soak(watcher.samples, units, watcher.num_processes, exit_code, log_path.read_text(errors="replace")[-4000:])


def count_fragments(folder: Path) -> int:
    return sum(1 for _ in (folder / "tokens").glob("_store/*/fragments/*/*.parquet"))


def warm_up_s(minutes: float) -> float:
    """Return the time not judged: a fifth, at least three minutes, never more than half."""
    return min(max(WARM_UP_SHARE * 60 * minutes, WARM_UP_S), 30 * minutes)


def faults_of(found: Soak, trends: list[Trend], from_s: float) -> list[str]:
    """Return everything that was promised and not kept."""
    faults = [f"{trend.name}: {trend.kind} grow by {trend.slope:.2f} a minute" for trend in trends if not trend.is_good]
    if found.exit_code != EXIT_INCOMPLETE:
        faults.append(f"the job ended with {found.exit_code}, its time limit gives {EXIT_INCOMPLETE}:\n{found.log}")
    judged = {(trend.kind, trend.name) for trend in trends}
    wanted = {("mib", name) for name in (DRIVER, ALL_WORKERS, OBJECTS, PAGES)}
    faults.extend(f"{name} was not measured" for _, name in sorted(wanted - judged))
    steady = [count for at_s, count in found.units if at_s >= from_s]
    if any(later <= earlier for earlier, later in itertools.pairwise(steady)):
        faults.append(f"the job stood still: {found.units}")
    return faults


def main() -> int:
    """Soak, judge, and say whether anything grew."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        return run_job(arguments.job, arguments.minutes)
    from_s = warm_up_s(arguments.minutes)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), arguments.minutes, lambda line: print(line, flush=True))
    trends = trends_of(found.samples, from_s)
    faults = faults_of(found, trends, from_s)
    (first_s, first), (last_s, last) = next(unit for unit in found.units if unit[0] >= from_s), found.units[-1]
    speed = (last - first) / max(last_s - first_s, 1e-9)
    print(table_of(trends))
    print(f"{last:,} units, three tasks each, {speed:.1f} a second after the warm-up; processes {found.num_processes}")
    print("\n".join(f"BAD: {fault}" for fault in faults) or "nothing grew")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        told = [{**asdict(trend), "is_good": trend.is_good} for trend in trends]
        report = {"minutes": arguments.minutes, "warm_up_s": from_s, "faults": faults, "trends": told, **asdict(found)}
        arguments.json.write_text(json.dumps(report))
        plot(found.samples, found.units, from_s, arguments.json.with_suffix(".png"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
