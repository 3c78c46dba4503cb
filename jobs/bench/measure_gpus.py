"""The suite gpus: the whole job on every GPU of this machine, against the same job on one of them where there are more.

Knows which GPUs and cores a run may see; the command itself is started and watched by measure_startup.py.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.bench.data import make_data
from jobs.bench.measure_startup import CommandRun, run_command
from jobs.bench.result import BenchRequest, BenchResult, Report
from pipeline.errors import ConfigError
from pipeline.storage import Folder

SUITE = "gpus"
DISTINCT_WINDOWS = 300_000
"""A longer job reads the same files under several names of input."""
OPTIONS = ("--format", "parquet")


@dataclass(frozen=True)
class Share:
    """The part of a machine that a run may see."""

    name: str
    gpus: tuple[int, ...]
    cores: tuple[int, ...]


def shares_of(num_gpus: int, cores: list[int]) -> list[Share]:
    """Return the whole machine; where it has several GPUs also one with its share of the cores, and one with all.

    Raises:
        ConfigError: no GPU.
    """
    if num_gpus < 1:
        raise ConfigError("bench gpus needs a GPU, and found none: bench pipeline measures whole jobs on CPUs")
    if num_gpus == 1:
        return [Share("1 GPU", (0,), tuple(cores))]
    every = tuple(range(num_gpus))
    return [
        Share(f"{num_gpus} GPUs", every, tuple(cores)),
        Share("one with its share of the cores", (0,), tuple(cores[: max(1, len(cores) // num_gpus)])),
        Share("one with all cores", (0,), tuple(cores)),
    ]


def measure_gpus(
    request: BenchRequest,
    report: Report,
    *,
    distinct_windows: int = DISTINCT_WINDOWS,
    options: Sequence[str] = OPTIONS,
) -> list[BenchResult]:
    """Run the command on each share of the machine in turn, each into a fresh output of Parquet shards.

    A speed is that from the first tokenizer that is ready to the last fragment. A run on the whole machine goes
    before and is not counted: it warms the files' pages and what the devices compile.

    Args:
        distinct_windows: windows of the files; a longer job reads them under several names of input.
        options: of the command, beside codec and precision.

    Raises:
        ConfigError: no GPU.
        DataError: the command failed, or wrote another number of windows.
    """
    import torch

    shares = shares_of(torch.cuda.device_count(), sorted(os.sched_getaffinity(0)))
    runs: dict[str, list[CommandRun]] = {share.name: [] for share in shares}
    num_copies = max(1, round(request.windows / distinct_windows))
    num_steps = len(shares) * request.repeats + 3
    with tempfile.TemporaryDirectory(prefix="motion-tokens-bench-") as place:
        report("making motion", 0, num_steps)
        num_windows = max(1, request.windows // num_copies)
        data = make_data(Folder(f"{place}/data"), num_windows, request.codec, request.motion_format)
        inputs = [f"copy{index}={data.folder.url_of('motion')}" for index in range(num_copies)]
        words = ["-c", data.checkpoint, "--precision", request.config.precision, *options]

        def run(share: Share) -> CommandRun:
            with tempfile.TemporaryDirectory(dir=place) as output, limited_to(share) as environment:
                command = ["tokenize", *inputs, output, *words]
                return run_command(command, Path(output), num_copies * data.num_windows, environment)

        report("warm-up", 1, num_steps)
        run(shares[0])
        for repeat in range(request.repeats):
            for number, share in enumerate(shares):
                step = f"{share.name}, {repeat + 1} of {request.repeats}"
                report(step, 2 + len(shares) * repeat + number, num_steps)
                runs[share.name].append(run(share))
        report("done", num_steps, num_steps)
    return _results(request, shares, runs, num_copies * data.num_windows)


@contextmanager
def limited_to(share: Share) -> Iterator[dict[str, str]]:
    """Give the environment of a process that sees a share alone; one started meanwhile may use its cores only."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share.cores)
    try:
        yield {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, share.gpus))}
    finally:
        os.sched_setaffinity(0, allowed)


def _results(
    request: BenchRequest, shares: list[Share], runs: dict[str, list[CommandRun]], num_windows: int
) -> list[BenchResult]:
    speeds = {
        name: tuple(num_windows / run.stages_s["tokenize"] for run in of_share) for name, of_share in runs.items()
    }
    whole, *parts = shares
    details = {
        "windows": num_windows,
        "motion_format": request.motion_format,
        "cores": {share.name: len(share.cores) for share in shares},
        "seconds": {name: [run.stages_s for run in of_share] for name, of_share in runs.items()},
    }
    name = f"{whole.name}, first tokenizer that is ready to the last fragment, {request.config.precision}"
    if not parts:
        return [BenchResult(SUITE, name, "windows/s", speeds[whole.name], details=details)]
    return [
        BenchResult(SUITE, name, "windows/s", speeds[whole.name], part.name, speeds[part.name], details)
        for part in parts
    ]
