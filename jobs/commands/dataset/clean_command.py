"""The command clean: what no kept version needs."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from jobs.output.display import size_text
from jobs.output.run_record import new_run_id
from pipeline.dataset.clean import Cleaning, delete_outdated, find_outdated, refuse_active_run
from pipeline.run.ownership import Ownership
from pipeline.settings.job_config import JobConfig
from pipeline.storage import Folder


def run_clean(output: str, keep: int, is_meant: bool, config: JobConfig, console: Console) -> None:
    """Say what no kept version of a dataset needs, and delete it where that is meant.

    Raises:
        InputNotFoundError: there is no dataset.
        ActiveRunError: a run is active.
    """
    folder = Folder(output, config.run.storage_options)
    if is_meant:
        cleaning = delete_outdated(Ownership(folder, new_run_id()), keep)
    else:
        refuse_active_run(folder)
        cleaning = find_outdated(folder, keep)
    _print_cleaning(cleaning, is_meant, console)


def _print_cleaning(cleaning: Cleaning, is_done: bool, console: Console) -> None:
    table = Table(box=None, padding=(0, 2), show_header=False)
    for kind, files in cleaning.outdated.items():
        size = size_text(sum(file.num_bytes for file in files))
        table.add_row(kind, _files_text(len(files)), size)
    if cleaning.outdated:
        console.print(table)
    others = len(cleaning.kept_versions) - 1
    undated = f", {cleaning.num_undated:,} of them of unknown age" if cleaning.num_undated else ""
    console.print(f"kept: the current version and {others:,} older{undated}", highlight=False)
    total = f"{_files_text(cleaning.num_files)}, {size_text(cleaning.num_bytes)}"
    if not cleaning.outdated:
        console.print("nothing to delete: every file is known to be needed", highlight=False)
    elif is_done:
        console.print(f"[green]deleted[/green] {total}", highlight=False)
    else:
        console.print(f"{total} would go; nothing was deleted; add --yes", highlight=False)


def _files_text(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"
