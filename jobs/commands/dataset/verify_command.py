"""The command verify: findings, verdict, and windows encoded again."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.output.display import Display, counted
from pipeline.dataset.manifest import require_manifest, split_version
from pipeline.dataset.open_dataset import BitCounts, OpenDataset, open_dataset
from pipeline.errors import OutputMismatchError, VerifyError
from pipeline.settings.job_config import JobConfig
from pipeline.storage import Folder
from pipeline.verify.deep import TOLERATED_SHARE, DeepRequest, deep_verify, prepare_deep
from pipeline.verify.verify_dataset import verify_dataset


def run_verify(output: str, config: JobConfig, console: Console) -> bool:
    """Verify, tell about it, and say whether the dataset is sound.

    Raises:
        InputNotFoundError: there is no dataset.
    """
    place, version = split_version(output)
    folder = Folder(place, config.run.storage_options)
    try:
        manifest = require_manifest(folder, version)
    except (OutputMismatchError, VerifyError) as error:
        _print_findings([str(error)], 1, console)
        return False
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
        for note in result.notes:
            console.print(f"[yellow]note[/yellow]: {escape(note)}", highlight=False, soft_wrap=True)
        if not result.units_proved:
            console.print(
                "units are proved where the token store is: this export has none", highlight=False, soft_wrap=True
            )
        return True
    _print_findings(result.findings, result.num_findings, console)
    return False


def _print_findings(findings: Sequence[str], count: int, console: Console) -> None:
    console.print(f"[bold red]{counted(count, 'finding')}[/bold red]", highlight=False)
    for line in findings:
        console.print(f"- {escape(line)}", highlight=False, soft_wrap=True)
    if count > len(findings):
        console.print(f"- and {count - len(findings):,} more", highlight=False)


def run_deep_verify(output: str, request: DeepRequest, config: JobConfig, console: Console) -> bool:
    """Verify, then encode some windows again, tell about it, and say whether all is sound.

    Raises:
        RequestError: inputs or checkpoint are missing, or not those of the dataset.
    """
    try:
        dataset = open_at(output, config)
    except (OutputMismatchError, VerifyError) as error:
        _print_findings([str(error)], 1, console)
        return False
    with console.status("planning"):
        job = prepare_deep(dataset, request, config.run)
    if not run_verify(output, config, console):
        return False
    with console.status("encoding again"):
        result = deep_verify(job, config.run)
    for line in result.findings:
        console.print(f"- {escape(line)}", highlight=False, soft_wrap=True)
    if result.bits.num_differing:
        console.print(bits_table(result.bits))
    for name, counts in result.emitted.items():
        many = f"{counts.num_differing:,} of {counts.num_windows:,} windows differ"
        told = f"{many}, {counts.share_off:.2e} of all values beyond rounding"
        console.print(f"  {name}  {told if counts.num_differing else 'equal'}", highlight=False, soft_wrap=True)
    many = f"{result.bits.num_differing:,} of {result.bits.num_windows:,} windows encoded again"
    if result.differing_numerics:
        numerics = escape("; ".join(result.differing_numerics))
        console.print(f"other numerics: {numerics}", highlight=False, soft_wrap=True)
    if result.is_sound and not result.bits.num_differing:
        console.print(f"[green]equal[/green]: {result.bits.num_windows:,} windows encoded again, bit for bit")
    elif result.is_sound:
        console.print(
            f"[green]equal but for rounding[/green]: {many} differ, {result.bits.share:.2e} of their bits;"
            f" other numerics explain up to {TOLERATED_SHARE:g}",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print(
            f"[bold red]not equal[/bold red]: {many} differ, {result.bits.share:.2e} of their bits;"
            f" {len(result.findings):,} could not be compared. Next: was the input changed after tokenizing?",
            highlight=False,
            soft_wrap=True,
        )
    return result.is_sound


def open_at(url: str, config: JobConfig) -> OpenDataset:
    """Return the dataset of a folder, or the version of it that ``DATASET/versions/VERSION.json`` names."""
    place, version = split_version(url)
    return open_dataset(Folder(place, config.run.storage_options), version)


def bits_table(bits: BitCounts) -> Table:
    """Return differing bits of each scale, coarse to fine, of prev and of this."""
    table = Table(box=None, padding=(0, 2))
    for head in ("scale", "tokens", "prev bits", "this bits", "prev share", "this share"):
        table.add_column(head, justify="right")
    for scale, tokens in enumerate(bits.codec.patch_nums):
        compared = bits.compared(scale)
        counts = [int(bits.differing[half, scale]) for half in range(2)]
        shares = [f"{count / compared:.2e}" if count else "0" for count in counts]
        table.add_row(str(scale), str(tokens), *(f"{count:,}" for count in counts), *shares)
    return table
