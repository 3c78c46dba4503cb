"""The commands on datasets that stand: export, verify, diff, clean and replay.

Knows no data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.display import Display, size_text
from jobs.run_record import RecordNotes, new_run_id, print_summary, write_run_record
from jobs.session import open_session
from jobs.tokenize_command import console_of, run_tokenize
from pipeline.dataset.clean import Cleaning, delete_outdated, find_outdated, refuse_active_run
from pipeline.dataset.manifest import read_manifest, read_version, split_version
from pipeline.dataset.open_dataset import BitCounts, OpenDataset, open_dataset
from pipeline.dataset.replay import give_free, units_to_retry, what_came_back
from pipeline.errors import InputNotFoundError, OutputMismatchError, VerifyError
from pipeline.job.export_job import export_datasets
from pipeline.job.request import prepare
from pipeline.plan.plan import make_plan
from pipeline.run.lease import RunLease
from pipeline.run.observer import Audience
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.run.tasks import Builder, Result, Task
from pipeline.settings.job_config import JobConfig, TokenizeRequest
from pipeline.storage import Folder
from pipeline.verify.compare import Difference, compare_datasets
from pipeline.verify.dataset import verify_dataset
from pipeline.verify.deep import TOLERATED_SHARE, DeepRequest, deep_verify, prepare_deep

CLIPS_SHOWN = 20


def run_export(datasets: Sequence[str], output: str, config: JobConfig, console: Console) -> None:
    """Export and tell about it.

    Raises:
        MotionTokensError: the export cannot start, or no clip is left.
    """
    record, run_id, stop = JobRecord(), new_run_id(), StopSwitch()
    display = Display(console)
    observer = Audience([RecordNotes(record), display])
    folder = Folder(output, config.run.storage_options)
    lease = RunLease(folder, run_id, config.run.when_active, on_wait=display.on_wait, on_lost=stop.ask)
    with display.shown(), open_session(config.run) as executor:

        def build(tasks: Sequence[Task], builder: Builder[Task, Result]) -> Iterator[Result]:
            for result in executor.build(tasks, builder):
                yield result
                stop.check(is_drained=True)

        executor.start()
        record.lap("start")
        manifest = export_datasets(datasets, lease, config, build, observer)
        record.lap("export")
        record.notes["executor"] = executor.name
    outcome = {"status": manifest.status, "version": manifest.version, "exit_code": 0}
    write_run_record(folder, run_id, record, outcome)
    print_summary(console, folder, manifest, record)


def run_verify(output: str, config: JobConfig, console: Console) -> bool:
    """Verify, tell about it, and say whether the dataset is sound.

    Raises:
        InputNotFoundError: there is no dataset.
    """
    place, version = split_version(output)
    folder = Folder(place, config.run.storage_options)
    try:
        manifest = read_manifest(folder) if version is None else read_version(folder, version)
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
        for note in result.notes:
            console.print(f"[yellow]note[/yellow]: {escape(note)}", highlight=False, soft_wrap=True)
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


def run_deep_verify(output: str, request: DeepRequest, config: JobConfig, console: Console) -> bool:
    """Verify, then encode some windows again, tell about it, and say whether all is sound.

    Raises:
        RequestError: inputs or checkpoint are missing, or not those of the dataset.
    """
    with console.status("planning"):
        job = prepare_deep(_open(output, config), request, config.run)
    if not run_verify(output, config, console):
        return False
    with console.status("encoding again"):
        result = deep_verify(job, config.run)
    for line in result.findings:
        console.print(f"- {escape(line)}", highlight=False, soft_wrap=True)
    if result.bits.num_differing:
        console.print(_bits_table(result.bits))
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


def run_diff(ours: str, theirs: str, json_file: Path | None, config: JobConfig, console: Console) -> bool:
    """Compare two datasets, tell what differs, and say whether their content is equal.

    Raises:
        InputNotFoundError: there is no dataset.
        VerifyError: one of them is damaged.
    """
    datasets = [_open(url, config) for url in (ours, theirs)]
    with console.status("comparing"):
        difference = compare_datasets(datasets[0], datasets[1], lambda path: None)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(difference.described(), indent=1, ensure_ascii=False) + "\n")
    for name, dataset in zip("AB", datasets, strict=True):
        version = f"  version {dataset.manifest.version}"
        console.print(f"{name}  {escape(str(dataset.folder))}{version}", highlight=False, soft_wrap=True)
    for item in difference.settings:
        values = f"{json.dumps(item.ours)} in A, {json.dumps(item.theirs)} in B"
        console.print(f"  {escape(f'{item.name}: {values}')}", highlight=False, soft_wrap=True)
    if not difference.settings:
        console.print("  contract and export settings are equal", highlight=False)
    _print_counts(difference, console)
    bits = difference.bits
    if bits is None:
        console.print("  bits cannot be compared: the codecs lay them out differently", highlight=False)
    elif bits.num_differing:
        console.print(f"  bits differ in {bits.num_differing:,} of {bits.num_windows:,} windows", highlight=False)
        console.print(_bits_table(bits))
        _print_examples(difference.examples["bits"], console)
    elif bits.num_windows:
        console.print(f"  bits are equal in {bits.num_windows:,} windows", highlight=False)
    for name, count in difference.columns.differing.items():
        if count:
            console.print(f"  {escape(name)} differs in {count:,} windows", highlight=False)
    verdict = "[green]equal in content[/green]" if difference.is_equal else "[bold red]different[/bold red]"
    console.print(verdict, highlight=False)
    return difference.is_equal


def _open(url: str, config: JobConfig) -> OpenDataset:
    """Return the dataset of a folder, or the version of it that ``DATASET/versions/VERSION.json`` names."""
    place, version = split_version(url)
    return open_dataset(Folder(place, config.run.storage_options), version)


def _print_counts(difference: Difference, console: Console) -> None:
    """Print a line for each kind of clips and windows that differ, with examples."""
    counts, examples = difference.counts, difference.examples
    changed = [name for name in counts if name.startswith("clips_of_other_") and counts[name]]
    for what in ("clips", "windows"):
        console.print(f"  {what}: {counts[f'{what}_in_both']:,} in both", highlight=False)
        for side in "ab":
            only = counts[f"{what}_only_in_{side}"]
            if only:
                console.print(f"    {only:,} only in {side.upper()}", highlight=False)
                _print_examples(examples.get(f"{what}_only_in_{side}", []), console)
        if what == "clips" and changed:
            fields = ", ".join(f"{counts[name]:,} of other {name.removeprefix('clips_of_other_')}" for name in changed)
            console.print(f"    {fields}", highlight=False, soft_wrap=True)
            _print_examples(examples["clips_changed"], console)
    _print_examples(examples["windows"], console)


def _print_examples(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(f"    [dim]{escape(line)}[/dim]", highlight=False, soft_wrap=True)


def _bits_table(bits: BitCounts) -> Table:
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


def run_clean(output: str, keep: int, is_meant: bool, config: JobConfig, console: Console) -> None:
    """Say what no kept version of a dataset needs, and delete it where that is meant.

    Raises:
        InputNotFoundError: there is no dataset.
        ActiveRunError: a run is active.
    """
    folder = Folder(output, config.run.storage_options)
    refuse_active_run(folder)
    if not is_meant:
        cleaning = find_outdated(folder, keep)
    else:
        with RunLease(folder, new_run_id(), "leave", on_wait=lambda other: None, on_lost=lambda why: None).held():
            cleaning = find_outdated(folder, keep)
            delete_outdated(folder, cleaning)
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


def run_replay(request: TokenizeRequest, console: Console) -> None:
    """Read quarantined clips again, and say which came back.

    Raises:
        MotionTokensError: the job cannot start, or ended incomplete.
    """
    config = request.config.run
    folder, text = Folder(request.output, config.storage_options), console_of(config, console)
    standing: list[OpenDataset] = []

    def give_quarantined_free() -> None:
        before = open_dataset(folder)
        refuse_active_run(folder)
        with open_session(config) as executor:
            job = prepare(request, executor)
        units = units_to_retry(before, make_plan(job.roots, job.contract.corpus))
        text.print(f"  {len(units):,} units are read again, beside those whose files changed", highlight=False)
        give_free(before, units)
        standing.append(before)

    run_tokenize(request, console, give_quarantined_free)
    replayed = what_came_back(standing[0], open_dataset(folder))
    text.print(f"  came back  {len(replayed.returned):,} clips", highlight=False)
    _print_examples(replayed.returned[:CLIPS_SHOWN], text)
    if replayed.dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in replayed.dropped.items())
        text.print(f"  still quarantined  {reasons}", highlight=False, soft_wrap=True)
