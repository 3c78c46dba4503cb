"""The command diff: what two datasets differ in, and whether their content is equal."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from jobs.commands.dataset.verify_command import bits_table, open_at
from jobs.output.json_file import write_json
from pipeline.settings.job_config import JobConfig
from pipeline.verify.compare import Difference, compare_datasets


def run_diff(ours: str, theirs: str, json_file: str | None, config: JobConfig, console: Console) -> bool:
    """Compare two datasets, tell what differs, and say whether their content is equal.

    Raises:
        InputNotFoundError: there is no dataset.
        VerifyError: one of them is damaged.
    """
    datasets = [open_at(url, config) for url in (ours, theirs)]
    with console.status("comparing"):
        difference = compare_datasets(datasets[0], datasets[1], lambda path: None)
    if json_file is not None:
        write_json(json_file, difference.described(), config.run.storage_options)
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
        console.print(bits_table(bits))
        _print_examples(difference.examples["bits"], console)
    elif bits.num_windows:
        console.print(f"  bits are equal in {bits.num_windows:,} windows", highlight=False)
    for name, count in difference.columns.differing.items():
        if count:
            console.print(f"  {escape(name)} differs in {count:,} windows", highlight=False)
    verdict = "[green]equal in content[/green]" if difference.is_equal else "[bold red]different[/bold red]"
    console.print(verdict, highlight=False)
    return difference.is_equal


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
