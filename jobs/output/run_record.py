"""runs/<run_id>/run.json and the summary at the end: what happened, for a program and for a person.

Knows clocks, hosts and versions, which stand nowhere else in a dataset.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.output.display import IDS_SHOWN, size_text
from jobs.session.ray_start import num_cores
from pipeline.dataset.manifest import Manifest
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.storage import Folder

PACKAGES = ("motion-tokens", "ray", "torch", "numpy", "pyarrow", "fsspec", "s3fs")


class RecordNotes(JobObserver):
    """Writes into a run record what a person should find there later; built by a command for one job."""

    def __init__(self, record: JobRecord) -> None:
        self._record = record

    def on_unknown_ids(self, setting: str, ids: Sequence[str]) -> None:
        """Note ids in a list that no clip has."""
        found = {"count": len(ids), "first": list(ids[:IDS_SHOWN])}
        self._record.notes.setdefault("unknown_ids", {})[setting] = found


def new_run_id() -> str:
    """Return a name that sorts by time and meets no other."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """Return what this machine is: processor, cores, memory, GPUs."""
    facts: dict[str, Any] = {"host": platform.node(), "cores": num_cores(), "processor": _processor()}
    facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    import torch

    facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def write_run_record(output: Folder, run_id: str, record: JobRecord, outcome: Mapping[str, Any]) -> str:
    """Write run.json and return its path below the output."""
    tree = {
        "run_id": run_id,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **outcome,
        "seconds": {name: round(s, 3) for name, s in record.seconds.items()},
        "stage_seconds": {name: round(s, 3) for name, s in sorted(record.stage_seconds.items())},
        "counts": dict(record.counts),
        "drops": dict(record.drops),
        **({"audio": record.audio} if record.audio else {}),
        **({"codes": record.codes} if record.codes else {}),
        "windows_per_s": record.windows_per_s,
        "versions": versions(),
        "hardware": hardware(),
        **record.notes,
    }
    path = f"runs/{run_id}/run.json"
    output.publish(path, (json.dumps(tree, indent=1) + "\n").encode())
    return path


def print_summary(console: Console, output: Folder, manifest: Manifest, record: JobRecord) -> None:
    """Print what now stands, how long it took, and what to do next."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    hours = sum(part.hours for part in manifest.splits.values())
    counts = manifest.counts
    table.add_row("dataset", f"{escape(str(output))}  [dim]({manifest.status}, {manifest.spec_id})[/dim]")
    table.add_row("clips", f"{counts['clips']:,}  [dim]{hours:.2f} h of motion[/dim]")
    table.add_row("windows", f"{counts['windows']:,}  [dim]{_splits_text(manifest)}[/dim]")
    for name, shards in manifest.shards.items():
        size = sum(shard.bytes for shard in shards)
        table.add_row(name, f"{len(shards):,} shards, {size_text(size)}")
    if num_filtered := counts.get("filtered_clips"):
        table.add_row("left out", f"{num_filtered:,} clips  [dim]by the export's selection[/dim]")
    if manifest.drops:
        drops = ", ".join(f"{count} {reason}" for reason, count in manifest.drops.items())
        table.add_row("[yellow]dropped[/yellow]", drops)
    if record.audio:
        drifts = f"{record.audio['drifting_clips']:,.0f} drift by more than a frame"
        largest = f"at most {record.audio['largest_drift_s']:.3f} s"
        table.add_row("audio", f"{record.audio['clips']:,.0f} clips  [dim]{drifts}, {largest}[/dim]")
    if record.counts["windows"]:
        seconds = record.seconds["tokenize"]
        speed = record.counts["windows"] / seconds
        table.add_row("speed", f"{speed:,.1f} windows/s  [dim]{record.counts['windows']:,} in {seconds:.1f} s[/dim]")
    console.print(table)


def _splits_text(manifest: Manifest) -> str:
    return ", ".join(f"{name} {part.windows:,}" for name, part in manifest.splits.items())


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
