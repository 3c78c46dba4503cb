"""The command bench: runs a suite, prints its results beside their baselines, and writes them as JSON.

A suite is a function of a request; adding one is a line in `SUITES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.bench.data import MOTION_FORMATS
from jobs.bench.measure_control import measure_control
from jobs.bench.measure_encode import measure_encode
from jobs.bench.measure_export import measure_export
from jobs.bench.measure_gpus import SUITE as GPUS, measure_gpus
from jobs.bench.measure_loader import measure_loader
from jobs.bench.measure_pipeline import measure_pipeline
from jobs.bench.measure_plan import measure_plan
from jobs.bench.measure_startup import measure_startup
from jobs.bench.result import SPREAD, BenchRequest, BenchResult, Report, Suite
from jobs.output.json_file import write_json
from jobs.output.run_record import hardware, versions
from pipeline.errors import ConfigError
from pipeline.settings.job_config import load_config

SUITES: dict[str, Suite] = {
    "control": measure_control,
    "encode": measure_encode,
    "export": measure_export,
    "gpus": measure_gpus,
    "loader": measure_loader,
    "pipeline": measure_pipeline,
    "plan": measure_plan,
    "startup": measure_startup,
}
NUM_WINDOWS = {"control": 2400, "encode": 256, "export": 1_000_000, "gpus": 900_000, "plan": 1_000_000, "startup": 64}
"""Where none are asked for; `USUAL_WINDOWS` in the other suites."""
USUAL_WINDOWS = 1000


def make_request(
    suite: str, windows: int | None, repeats: int, precision: str, motion_format: str = "parquet"
) -> BenchRequest:
    """Return what to ask of a suite.

    Args:
        windows: of motion in a run; None: as many as the suite's own figure asks for.
        repeats: runs of each side, interleaved.
        precision: float32, float16 or bfloat16 of our side; baselines compute in float32.
        motion_format: what motion is made as, of the suite gpus; others have one of their own.

    Raises:
        ConfigError: no such suite, precision or format.
    """
    if suite not in SUITES:
        raise ConfigError(f"no suite {suite!r}; there are: {', '.join(sorted(SUITES))}")
    formats = MOTION_FORMATS if suite == GPUS else ("parquet",)
    if motion_format not in formats:
        raise ConfigError(f"bench {suite} makes no motion as {motion_format!r}; there is: {', '.join(formats)}")
    size = NUM_WINDOWS.get(suite, USUAL_WINDOWS) if windows is None else windows
    config = load_config(None, [f"precision={precision}"], "options")
    return BenchRequest(size, repeats, config, motion_format=motion_format)


def run_bench(
    suite: str,
    request: BenchRequest,
    json_file: str | None,
    console: Console,
    suites: Mapping[str, Suite] = SUITES,
) -> None:
    """Measure, print, and write the results where a file is named.

    Args:
        suite: one of `suites`.

    Raises:
        ConfigError: this machine has not what the suite needs.
        DataError: the two sides do not agree about the tokens.
    """
    with _progress(console) as report:
        results = suites[suite](request, report)
    console.print(results_table(results))
    if json_file is not None:
        write_json(json_file, results_tree(results))
        console.print(f"results in {json_file}", highlight=False, soft_wrap=True)


def results_tree(results: Sequence[BenchResult]) -> dict[str, Any]:
    """Return what the JSON file holds: results, how spread is meant, hardware and versions."""
    return {
        "results": [result.to_json() for result in results],
        "spread_is": SPREAD,
        "hardware": hardware(),
        "versions": versions(),
    }


def results_table(results: Sequence[BenchResult]) -> Table:
    """Return the results as a person reads them."""
    table = Table(box=None, padding=(0, 2))
    table.add_column("measured")
    for title in ("median", "spread", "baseline", "ratio"):
        table.add_column(title, justify="right")
    table.add_column("unit")
    for result in results:
        row = result.to_json()
        baseline, ratio = row["baseline"], row["ratio"]
        table.add_row(
            result.name,
            f"{row['median']:g}",
            f"{row['spread']:g}",
            "" if baseline is None else f"{baseline:g}",
            "" if ratio is None else f"[bold]{ratio:.2f}[/bold]",
            result.unit,
        )
    return table


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    """Show a bar in a terminal, a line a step elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("bench", total=None)

        def report(step: str, num_done: int, num_steps: int) -> None:
            progress.update(bar, description=step, completed=num_done, total=num_steps)
            if not console.is_terminal:
                console.print(f"{num_done}/{num_steps} {step}", highlight=False)

        yield report
