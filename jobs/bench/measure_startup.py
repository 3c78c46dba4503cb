"""The suite startup: from the start of the command to the first fragment that stands, in a process of its own.

Knows how to start the command and to watch its store; counts and JSON are result.py's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.bench.data import make_data
from jobs.bench.result import BenchRequest, BenchResult, Report
from pipeline.errors import DataError
from pipeline.storage import Folder

SUITE = "startup"
BASELINE_NAME = "the same with --local"
LOOK_S = 0.005
SIDES: tuple[tuple[str, ...], ...] = ((), ("--local",))
"""Options of the command on our side and on that of the baseline."""


@dataclass(frozen=True)
class CommandRun:
    """One run of the command."""

    first_fragment_s: float
    whole_s: float
    stages_s: dict[str, float]
    """As run.json books them."""


def measure_startup(
    request: BenchRequest, report: Report, *, sides: tuple[tuple[str, ...], ...] = SIDES
) -> list[BenchResult]:
    """Run the command with Ray and with --local in turn, each into a fresh output.

    A run of each goes before and is not counted: it warms the files' pages and what the device compiles.

    Args:
        request: its windows are those of the whole job; what is compiled, and when, may depend on them.
        sides: options of the command on our side and on that of the baseline.

    Raises:
        DataError: the command failed, or wrote another number of windows.
    """
    starts: dict[tuple[str, ...], list[CommandRun]] = {side: [] for side in sides}
    num_steps = 2 * request.repeats + 3
    with tempfile.TemporaryDirectory(prefix="motion-tokens-bench-") as place:
        report("making motion", 0, num_steps)
        data = make_data(Folder(f"{place}/data"), request.windows, request.codec)
        for repeat in range(-1, request.repeats):
            for number, side in enumerate(sides):
                name = f"{repeat + 1} of {request.repeats}" if repeat >= 0 else "warm-up"
                report(f"command {' '.join(side)}, {name}", 2 * (repeat + 1) + number + 1, num_steps)
                with tempfile.TemporaryDirectory(dir=place) as output:
                    options = ["--precision", request.config.precision, *side]
                    command = ["tokenize", data.folder.url_of("motion"), output, "-c", data.checkpoint, *options]
                    start = run_command(command, Path(output), request.windows)
                if repeat >= 0:
                    starts[side].append(start)
        report("done", num_steps, num_steps)
    ours, local = (starts[side] for side in sides)
    details = {
        "windows": request.windows,
        "stages_s": [start.stages_s for start in ours],
        "baseline_stages_s": [start.stages_s for start in local],
    }
    first, first_local = (tuple(start.first_fragment_s for start in side) for side in (ours, local))
    whole, whole_local = (tuple(start.whole_s for start in side) for side in (ours, local))
    name = f"command to first fragment, {request.config.precision}"
    return [
        BenchResult(SUITE, name, "s", first, BASELINE_NAME, first_local, details),
        BenchResult(SUITE, "command to its end", "s", whole, BASELINE_NAME, whole_local),
    ]


def run_command(
    command: list[str], output: Path, num_windows: int, environment: Mapping[str, str] | None = None
) -> CommandRun:
    """Run a command of motion-tokens, and note when its first fragment stands and when it ends.

    Args:
        environment: of its process; None: that of this one.

    Raises:
        DataError: it failed, or its dataset holds another number of windows.
    """
    settings = ["--set", "gate=off", "--set", "run.report=false"]  # random weights decode to noise
    first_s: float | None = None
    with tempfile.TemporaryFile() as said:
        begin = time.perf_counter()
        full = [sys.executable, "-m", "jobs.cli", *command, *settings]
        with subprocess.Popen(full, stdout=said, stderr=subprocess.STDOUT, env=environment) as process:
            while process.poll() is None:
                if first_s is None and any(output.glob("_store/*/fragments/*/*.parquet")):
                    first_s = time.perf_counter() - begin
                time.sleep(LOOK_S)
        whole_s = time.perf_counter() - begin
        said.seek(0)
        tail = said.read().decode(errors="replace").strip()[-2000:]
    if process.returncode:
        raise DataError(f"the command failed with exit code {process.returncode}: {tail}")
    found = json.loads((output / "dataset.json").read_text())["counts"]["windows"]
    if found != num_windows or first_s is None:
        raise DataError(f"wanted {num_windows} windows, the command wrote {found}: {tail}")
    record = json.loads(next(output.glob("runs/*/run.json")).read_text())
    return CommandRun(first_s, whole_s, record["seconds"])
