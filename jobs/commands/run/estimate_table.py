"""What `plan` and `tokenize --dry-run` say: windows, bytes, speed, and what a probe found.

Knows no data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from jobs.output.display import counted, size_text

if TYPE_CHECKING:  # they import torch
    from pipeline.estimate.forecast import Forecast, JobEstimate
    from pipeline.estimate.probe import ProbeFigures

LARGE_SHARD_BYTES = 1 << 30
"""A shard is built in memory: larger ones are worth a hint."""


def print_estimate(estimate: JobEstimate, console: Console) -> None:
    """Print what a job would write and compute."""
    windows = estimate.windows
    margin = f" ± {windows.margin:,}" if windows.margin else ""
    read = f"{windows.num_units_read:,} of {counted(windows.num_units, 'unit')} read"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in windows.drops.items())
    dropped = f", {windows.num_clips_dropped:,} of {counted(windows.num_clips_read, 'clip')} in them dropped: {reasons}"
    about = "" if windows.num_units_read == windows.num_units else "about "
    say(console, "clips", f"{about}{windows.num_clips:,}  ({windows.hours:,.2f} h of motion kept)")
    say(console, "windows", f"{windows.num_windows:,}{margin}  ({read}{dropped if windows.num_clips_dropped else ''})")
    if estimate.num_units_done:
        say(console, "done", f"{counted(estimate.num_units_done, 'unit')} tokenized before")
    of_window = estimate.costs.shard_bytes
    sizes = (f"{name} {size_text(size * windows.num_windows)}" for name, size in of_window.items())
    say(console, "bytes", f"{', '.join(sizes)}; the token store takes the Parquet bytes once more")
    each = ", ".join(f"{name} {size:,}" for name, size in of_window.items())
    largest = max(of_window.values(), default=0) * min(estimate.windows_per_shard, windows.num_windows)
    say(console, "a window", f"{each}; a shard up to {size_text(largest)}")
    speed = f"{estimate.costs.windows_per_s:,.0f} windows/s, encoding alone"
    say(console, "one device", f"{estimate.device}: {speed}, {estimate.device_hours:,.2f} h for what is left")
    if largest > LARGE_SHARD_BYTES:
        say(console, "hint", "shards are built in memory: set export.windows_per_shard lower")


def print_forecast(forecast: Forecast, device: str, console: Console) -> None:
    """Print what a probe means for the whole job."""
    parts = ", ".join(f"{name} {duration_text(s)}" for name, s in forecast.seconds.items() if s >= 1)
    say(
        console, "wall time", f"about {duration_text(forecast.wall_s)}  ({parts}), and some seconds for gate and report"
    )
    of = "of all cores" if device.startswith("cpu") else ""
    say(console, "CPU hours" if of else "GPU-hours", f"{forecast.device_hours:,.2f} {of}".rstrip())
    if forecast.seconds_left is None:
        return
    left = f"{duration_text(forecast.seconds_left)} are left"
    if forecast.holds:
        say(console, "deadline", f"holds: {left}")
    elif forecast.needed_actors is None:
        say(console, "deadline", f"does not hold, {left}: let the job continue in another run")
    else:
        needed = counted(forecast.needed_actors, "tokenizer")
        say(console, "deadline", f"does not hold, {left}: it takes {needed}, or another run that continues")


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


def say(console: Console, name: str, text: str) -> None:
    """Print a named finding."""
    console.print(f"  {name:<13} {escape(text)}", highlight=False, soft_wrap=True)
