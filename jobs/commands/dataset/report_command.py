"""The commands report and certify, and what tokenize says of its gate and report.

Knows no data.
"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.output.json_file import write_json
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.open_dataset import OpenDataset, open_dataset
from pipeline.job.gate import GateResult
from pipeline.quality.certificate import Certificate, certify_sample
from pipeline.settings.job_config import JobConfig
from pipeline.storage import Folder
from pipeline.verify.deep import DeepRequest, prepare_deep


def run_report(output: str, request: DeepRequest | None, config: JobConfig, console: Console) -> None:
    """Write the report of a dataset; without inputs and codec, of its tokens alone.

    Raises:
        RequestError: dataset, inputs or checkpoint are missing, or not those of the dataset.
    """
    from pipeline.report.build import report_dataset, write_report

    dataset = open_dataset(Folder(output, config.run.storage_options))
    with console.status("planning"):
        job = prepare_deep(dataset, request, config.run) if request is not None else None
    with console.status("decoding a sample"):
        path = report_dataset(job, job.request.num_windows) if job is not None else write_report(dataset)
    if job is None:
        console.print(
            "  tokens alone: name inputs and codec to see decoded motion, report OUTPUT INPUT.. -c CHECKPOINT",
            highlight=False,
            soft_wrap=True,
        )
    _print_place(dataset, path, console)


def report_of_run(output: Folder, manifest: Manifest, gate: GateResult | None, console: Console) -> None:
    """Write the report at the end of a run; whatever goes wrong, the dataset stands, and a line says so.

    Args:
        manifest: what the run left.
        gate: what it found; without it nothing is decoded.
    """
    try:
        from pipeline.report.build import REPORT_FOLDER, STAGED_REPORT_FOLDER, write_report

        current = read_manifest(output)
        is_current = current is not None and current.version == manifest.version
        if not is_current and manifest.status != "staged":
            return  # another run has published meanwhile, and writes its own
        dataset, place = open_dataset(output, manifest.version), REPORT_FOLDER if is_current else STAGED_REPORT_FOLDER
        if gate is None:
            path = write_report(dataset, place=place)
        else:
            sample = gate.sample if gate.sample is not None else gate.draw() if gate.draw else None
            path = write_report(dataset, gate.codec, sample, gate.decoded, place)
    except Exception as error:  # noqa: BLE001 - the run is done: nothing that a picture lacks may fail it
        finding = str(error).strip().splitlines() or [""]
        text = escape(f"{type(error).__name__}: {finding[0]}")
        console.print(f"  [yellow]no report[/yellow]  {text}", highlight=False, soft_wrap=True)
        return
    _print_place(dataset, path, console)


def print_gate(gate: GateResult, manifest: Manifest, console: Console) -> None:
    """Print what the gate found against a dataset that is published all the same."""
    for line in gate.findings:
        console.print(f"  [yellow]gate[/yellow]       {escape(line)}", highlight=False, soft_wrap=True)
    if gate.findings:
        console.print(f"  published as {manifest.status} all the same: --gate {gate.record.mode}", highlight=False)


def run_certify(output: str, request: DeepRequest, json_file: str | None, config: JobConfig, console: Console) -> bool:
    """Encode a sample again in several ways, tell what differs, and say whether it stays within the budget.

    Raises:
        RequestError: dataset, inputs or checkpoint are missing, or not those of the dataset.
    """
    from pipeline.report.build import sample_of_dataset

    dataset = open_dataset(Folder(output, config.run.storage_options))
    with console.status("planning"):
        job = prepare_deep(dataset, request, config.run)
    with console.status("encoding in several ways"):
        sample = sample_of_dataset(job, request.num_windows)
        certificate = certify_sample(job.codec.data, dataset.manifest.contract, sample)
    budget = config.max_flip_rate
    over = certificate.over_budget(budget) if budget is not None else []
    if json_file is not None:
        tree = {**certificate.described(), "max_flip_rate": budget, "is_within_budget": not over}
        write_json(json_file, tree, config.run.storage_options)
    console.print(
        f"{certificate.num_windows:,} windows, {certificate.precision} on {certificate.device}: bits that differ from"
        " the usual encoding here, or from float64, by tokens of the scale",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_flips_table(certificate, dataset.manifest.contract.codec.patch_nums))
    for line in over:
        console.print(f"[bold red]over budget[/bold red]: {escape(line)}", highlight=False, soft_wrap=True)
    rate = f"{certificate.flip_rate:.2e} of the bits depend on order, batch size or rounding"
    if budget is not None and not over:
        console.print(f"[green]within budget[/green]: {rate}, {budget:g} may", highlight=False)
    elif budget is None:
        console.print(f"{rate}; --max-flip-rate makes this a test", highlight=False)
    return not over


def _flips_table(certificate: Certificate, patch_nums: tuple[int, ...]) -> Table:
    """Return differing bits of each comparison by scale, coarse to fine."""
    table = Table(box=None, padding=(0, 1))
    table.add_column("encoded", no_wrap=True)
    for head in (*map(str, patch_nums), "share", "first", "|value| to"):
        table.add_column(head, justify="right", no_wrap=True)
    for item in certificate.comparisons:
        by_scale = (f"{count:,}" for count in item.by_scale)
        first = f"{item.first_flips:,}" if item.first_flips is not None else ""
        furthest = f"{item.largest_value:.1e}" if item.largest_value is not None else ""
        name = item.name if item.counts_in_budget else f"[dim]{item.name}[/dim]"
        table.add_row(name, *by_scale, f"{item.share:.2e}" if item.share else "0", first, furthest)
    return table


def _print_place(dataset: OpenDataset, path: str, console: Console) -> None:
    place = dataset.folder.local_path(path) or f"{dataset.folder}/{path}"
    console.print(f"  look at    {escape(place)}", highlight=False, soft_wrap=True)
