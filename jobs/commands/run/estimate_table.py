"""What `plan` and `tokenize --dry-run` say: windows, bytes and hours of each choice of `emit`, and what a probe found.

Knows no data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.output.display import counted, size_text
from pipeline.settings.job_config import EMITTED

if TYPE_CHECKING:  # they import torch
    from pipeline.estimate.estimate import ChoiceEstimate, JobEstimate
    from pipeline.estimate.forecast import DeadlineForecast, Forecast
    from pipeline.estimate.probe import ProbeFigures

LARGE_SHARD_BYTES = 1 << 30
"""A shard is built in memory: larger ones are worth a hint."""


def print_estimate(estimate: JobEstimate, console: Console) -> None:
    """Print what a job would write and compute, the configured choice marked."""
    windows = estimate.windows
    margin = f" ± {windows.margin:,}" if windows.margin else ""
    read = f"{windows.num_units_read:,} of {counted(windows.num_units, 'unit')} read"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in windows.drops.items())
    dropped = f", {windows.num_clips_dropped:,} of {counted(windows.num_clips_read, 'clip')} in them dropped: {reasons}"
    about = "" if windows.num_units_read == windows.num_units else "about "
    say(console, "clips", f"{about}{windows.num_clips:,}  ({windows.hours:,.2f} h of motion kept)")
    say(console, "windows", f"{windows.num_windows:,}{margin}  ({read}{dropped if windows.num_clips_dropped else ''})")
    devices = f"{estimate.num_devices:g} x " if estimate.num_devices > 1 else ""
    say(console, "measured on", f"{devices}{estimate.device}, encoding alone")
    if estimate.num_units_done:
        say(console, "done", f"{counted(estimate.num_units_done, 'unit')} tokenized before, with the emit configured")
    console.print(_table(estimate))
    say(console, ">", "configured (--set emit=..); bytes are those of a window")
    sizes = ", ".join(f"{name} {size_text(size)}" for name, size in estimate.shard_bytes.items())
    say(console, "a shard", f"{sizes}; the token store takes the Parquet bytes once more")
    if max(estimate.shard_bytes.values(), default=0) > LARGE_SHARD_BYTES:
        say(console, "hint", "shards are built in memory: set export.windows_per_shard lower")


def print_forecast(forecast: Forecast, deadline: DeadlineForecast | None, console: Console) -> None:
    """Print what a probe means for the whole job."""
    parts = ", ".join(f"{name} {duration_text(s)}" for name, s in forecast.seconds.items() if s >= 1)
    say(console, "wall time", f"about {duration_text(forecast.wall_s)}  ({parts})")
    of = "of all cores" if forecast.device.startswith("cpu") else ""
    say(console, "CPU hours" if of else "GPU-hours", f"{forecast.device_hours:,.2f} {of}".rstrip())
    readers = (
        f"{counted(forecast.best_readers, 'read task')} at once, {size_text(int(forecast.read_bytes_per_s))}/s each"
    )
    say(console, "best", f"{counted(forecast.best_actors, 'tokenizer')} (--workers), kept busy by {readers}")
    if forecast.is_read_bound:
        say(console, "hint", "reading leaves GPUs idle: more CPUs in the cluster would make the job faster")
    if deadline is None:
        return
    left = duration_text(deadline.seconds_left)
    if deadline.holds:
        say(console, "deadline", f"holds: {left} are left")
    elif deadline.needed_actors is None:
        say(console, "deadline", f"does not hold, {left} are left: let the job continue in another run")
    else:
        needed = counted(deadline.needed_actors, "tokenizer")
        say(console, "deadline", f"does not hold, {left} are left: it takes {needed}, or another run that continues")


def print_probe(probe: ProbeFigures, console: Console) -> None:
    """Print what was measured."""
    speed = f"{probe.windows_per_s:,.1f} windows/s by {counted(probe.num_actors, 'tokenizer')}"
    say(console, "probed", f"{speed}, {probe.num_windows:,} windows in {probe.measured_s:.0f} s ({probe.executor})")


def duration_text(seconds: float) -> str:
    """Return a time in the units that suit it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:,.1f} h"


def _table(estimate: JobEstimate) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("emit", no_wrap=True)
    for head in ("bytes,\nParquet", "bytes,\ntar", "all\nParquet", "all\ntars", "windows\nper s", "hours"):
        table.add_column(head, justify="right", no_wrap=True)
    if estimate.num_devices > 1:
        table.add_column("hours,\nshared", justify="right", no_wrap=True)
    for choice in estimate.choices:
        table.add_row(*_cells(choice, estimate), style="bold" if choice.is_configured else None)
    return table


def _cells(choice: ChoiceEstimate, estimate: JobEstimate) -> list[str]:
    name = "all three" if choice.emit == EMITTED else " ".join(choice.emit) or "bits alone"
    cells = [
        f"> {name}" if choice.is_configured else f"  {name}",
        f"{choice.parquet_window_bytes:,}",
        f"{choice.tar_window_bytes:,}",
        size_text(choice.parquet_bytes),
        size_text(choice.tar_bytes),
        f"{choice.windows_per_s:,.0f}",
        f"{choice.device_hours:,.2f}",
    ]
    return [*cells, f"{choice.device_hours / estimate.num_devices:,.2f}"] if estimate.num_devices > 1 else cells


def say(console: Console, name: str, text: str) -> None:
    """Print a named finding."""
    console.print(f"  {name:<13} {escape(text)}", highlight=False, soft_wrap=True)
