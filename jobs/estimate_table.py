"""What `tokenize --dry-run` says: windows, bytes and hours of each choice of `emit`, as a table.

Knows no data.
"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.display import counted, size_text
from pipeline.estimate import ChoiceEstimate, JobEstimate
from pipeline.job_config import EMITTED

LARGE_SHARD_BYTES = 1 << 30
"""A shard is built in memory: larger ones are worth a hint."""


def print_estimate(estimate: JobEstimate, console: Console) -> None:
    """Print what a job would write and compute, the configured choice marked."""
    windows = estimate.windows
    margin = f" ± {windows.margin:,}" if windows.margin else ""
    read = f"{windows.num_units_read:,} of {counted(windows.num_units, 'unit')} read"
    dropped = f", {windows.num_clips_dropped:,} of {counted(windows.num_clips_read, 'clip')} in them dropped"
    _say(console, "windows", f"{windows.num_windows:,}{margin}  ({read}{dropped if windows.num_clips_dropped else ''})")
    devices = f"{estimate.num_devices} x " if estimate.num_devices > 1 else ""
    _say(console, "measured on", f"{devices}{estimate.device}, encoding alone")
    if estimate.num_units_done:
        _say(console, "done", f"{counted(estimate.num_units_done, 'unit')} tokenized before, with the emit configured")
    console.print(_table(estimate))
    _say(console, ">", "configured (--set emit=..); bytes are those of a window")
    sizes = ", ".join(f"{name} {size_text(size)}" for name, size in estimate.shard_bytes.items())
    _say(console, "a shard", f"{sizes}; the token store takes the Parquet bytes once more")
    if max(estimate.shard_bytes.values(), default=0) > LARGE_SHARD_BYTES:
        _say(console, "hint", "shards are built in memory: set export.windows_per_shard lower")
    _say(console, "written", "nothing: this was a dry run")


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


def _say(console: Console, name: str, text: str) -> None:
    console.print(f"  {name:<13} {escape(text)}", highlight=False, soft_wrap=True)
