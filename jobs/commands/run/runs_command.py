"""The command runs: a table of the runs of a dataset, each compared with the one before.

Knows no data.
"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.commands.run.estimate_table import duration_text
from jobs.output.json_file import write_json
from pipeline.errors import InputNotFoundError
from pipeline.run.history import ComparedRun, compare_runs, read_runs
from pipeline.settings.job_config import JobConfig
from pipeline.storage import Folder

SLOWER, DROPPED_MORE, DRIFTED = 0.8, 2.0, 4.0
"""What is marked: a speed below this share of the last, drops above so many times its share, a drift above so many
times what chance would give."""
FEW_DROPS = 0.001
"""Share of clips below which drops are not marked."""


def run_runs(output: str, last: int, json_file: str | None, config: JobConfig, console: Console) -> list[ComparedRun]:
    """Compare the last runs of a dataset and tell about it.

    Raises:
        InputNotFoundError: no run has left an account there.
    """
    folder = Folder(output, config.run.storage_options)
    compared = compare_runs(read_runs(folder, last + 1))[-last:]
    if not compared:
        raise InputNotFoundError(f"{folder} holds no runs/<run_id>/run.json: name the folder that tokenize wrote")
    if json_file is not None:
        tree = {"runs": [item.described() for item in compared]}
        write_json(json_file, tree, config.run.storage_options)
    console.print(_table(compared))
    for item in compared:
        for line in (*_findings(item), *item.changes):
            console.print(f"  {item.run.get('run_id', '?')}  {escape(line)}", highlight=False, soft_wrap=True)
    return compared


def _table(compared: list[ComparedRun]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    for head in ("windows", "a second", "of\nlast", "took", "clips\ndropped", "codes\nmoved"):
        table.add_column(head, justify="right", no_wrap=True)
    for item in compared:
        table.add_row(*_cells(item))
    return table


def _cells(item: ComparedRun) -> list[str]:
    run, speed, ratio = item.run, item.run.get("windows_per_s"), item.speed_ratio
    return [
        str(run.get("run_id", "?")),
        f"exit {run['exit_code']}" if run.get("exit_code") else str(run.get("status", "?")),
        f"{run.get('counts', {}).get('windows', 0):,}",
        f"{speed:,.1f}" if speed else "",
        _marked(f"{ratio:.2f}", ratio < SLOWER) if ratio else "",
        duration_text(sum(run.get("seconds", {}).values())),
        _drops(item),
        _drift(item),
    ]


def _drops(item: ComparedRun) -> str:
    if item.drop_share is None:
        return ""
    before = item.drop_share_before
    is_more = before is not None and item.drop_share > max(FEW_DROPS, DROPPED_MORE * before)
    return _marked(f"{item.drop_share:.2%}", is_more)


def _drift(item: ComparedRun) -> str:
    return _marked(f"{item.drift.mean:.2%}", _has_drifted(item)) if item.drift is not None else ""


def _has_drifted(item: ComparedRun) -> bool:
    return item.drift is not None and item.drift.mean > DRIFTED * item.drift.noise


def _marked(text: str, is_notable: bool) -> str:
    return f"[yellow]{text}![/yellow]" if is_notable else text


def _findings(item: ComparedRun) -> list[str]:
    """Return what a column cannot say."""
    run, drift, lines = item.run, item.drift, []
    if run.get("error"):
        lines.append(str(run["error"]))
    if drift is not None and _has_drifted(item):
        by_scale = ", ".join(f"{share:.2%}" for share in drift.by_scale)
        lines.append(
            f"codes moved by {drift.mean:.2%} a bit (by chance {drift.noise:.2%}); by scale {by_scale}; most,"
            f" {drift.largest:.1%}, at scale {drift.largest_scale}, bit {drift.largest_bit}"
        )
    error = (run.get("gate") or {}).get("fraction_of_mean")
    if error is not None:
        lines.append(f"decoded motion is {error:.3f} times as far off as keeping the mean")
    return lines
