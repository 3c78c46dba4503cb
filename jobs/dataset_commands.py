"""The commands on datasets that stand: export and verify.

Knows no data.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from jobs.display import Display
from jobs.run_record import print_summary
from jobs.session import open_session
from pipeline.errors import InputNotFoundError, OutputMismatchError, VerifyError
from pipeline.execution import JobRecord
from pipeline.export_job import export_datasets
from pipeline.job_config import JobConfig
from pipeline.manifest import read_manifest
from pipeline.storage import Folder
from pipeline.verify import verify_dataset


def run_export(datasets: Sequence[str], output: str, config: JobConfig, console: Console) -> None:
    """Export and tell about it.

    Raises:
        MotionTokensError: the export cannot start, or no clip is left.
    """
    display = Display(console)
    with display.shown(), open_session(config.run) as executor:
        executor.start()
        manifest = export_datasets(datasets, output, config, executor.build, display)
    print_summary(console, Folder(output, config.run.storage_options), manifest, JobRecord())


def run_verify(output: str, config: JobConfig, console: Console) -> bool:
    """Verify, tell about it, and say whether the dataset is sound.

    Raises:
        InputNotFoundError: there is no dataset.
    """
    folder = Folder(output, config.run.storage_options)
    try:
        manifest = read_manifest(folder)
    except OutputMismatchError as error:
        raise VerifyError(str(error)) from error
    if manifest is None:
        raise InputNotFoundError(f"{folder} holds no dataset.json: name the folder that tokenize wrote")
    display = Display(console)
    with display.shown():
        display.on_stage("verify")
        shards = [shard for files in manifest.shards.values() for shard in files]
        display.on_layout(len(manifest.files) + len(shards), manifest.num_windows)
        result = verify_dataset(folder, manifest, display.on_shard)
    if result.is_sound:
        formats = " and ".join(manifest.shards)
        console.print(
            f"[green]sound[/green]: {result.num_windows:,} windows, each exactly once in {formats};"
            f" {result.num_files:,} checksums right",
            highlight=False,
            soft_wrap=True,
        )
        if not result.units_proved:
            console.print(
                "units are proved where the token store is: this export has none", highlight=False, soft_wrap=True
            )
        return True
    console.print(f"[bold red]{result.num_findings:,} findings[/bold red]", highlight=False)
    for line in result.findings:
        console.print(f"- {escape(line)}", highlight=False, soft_wrap=True)
    if result.num_findings > len(result.findings):
        console.print(f"- and {result.num_findings - len(result.findings):,} more", highlight=False)
    return False
