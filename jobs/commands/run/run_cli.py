"""The commands that run a job or tell of its runs: tokenize, plan, replay and runs.

Knows no data: each calls one function.
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.app import (
    Checkpoint,
    Dataset,
    GivenInputs,
    Inputs,
    JsonFile,
    Settings,
    app,
    console,
    job_config,
    reported,
)
from jobs.commands.run.job_options import JobOptions, with_job_options
from pipeline.errors import ConfigError


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens tokenize motion/ tokens/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens tokenize s3://bucket/motion s3://bucket/tokens -c vae.pt --preset artalk --set input.fps=25\n\n"
    "  motion-tokens tokenize talk=a/*.tar sing=b/ tokens/ -c vae.safetensors --stride 50 --precision float16\n\n"
    "  motion-tokens tokenize motion/ tokens/ -c vae.safetensors --set emit=latent --dry-run\n\n"
    "The same command again continues a run that was stopped."
)
@with_job_options
def tokenize(
    inputs: Inputs,
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL of the token dataset.")],
    checkpoint: Checkpoint,
    options: JobOptions,
    log_format: Annotated[str | None, typer.Option(help="text (default), or json: a line an event.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Put a dataset of other settings in this one's place.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would write and how long it would compute.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Tokenize motion files into a verified token dataset."""
    with reported():
        more = {"run.log_format": log_format, "run.restart": restart or None}
        request = options.request(inputs, output, checkpoint, more)
        if json_file is not None and not dry_run:
            raise ConfigError("--json is for --dry-run: a run writes runs/<run_id>/run.json")
        if dry_run:
            from jobs.commands.run.plan_command import run_plan

            run_plan(request, None, json_file, console)
        else:
            from jobs.commands.run.tokenize_command import run_tokenize

            run_tokenize(request, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens plan motion/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens plan s3://bucket/motion -c vae.safetensors --config run.yaml --probe 60 --deadline 06:00\n\n"
    "  motion-tokens plan motion/ -c vae.safetensors --dataset tokens/ --probe 60 --json plan.json\n\n"
    "Nothing is written but the file of --json. tokenize --dry-run is the same, for its own command line."
)
@with_job_options
def plan(
    inputs: Inputs,
    checkpoint: Checkpoint,
    options: JobOptions,
    dataset: Annotated[
        str, typer.Option("--dataset", help="Dataset that the job would write or continue: what it has is not counted.")
    ] = "",
    probe: Annotated[
        float | None, typer.Option(min=1, help="Do real work for so many seconds, keep nothing, and foretell the rest.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Say what a job would write and how long it would take, before it runs."""
    with reported(only_reads=json_file is None):
        request = options.request(inputs, dataset, checkpoint)
        from jobs.commands.run.plan_command import run_plan

        run_plan(request, probe, json_file, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens replay tokens/ motion/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens replay tokens/ motion/ -c vae.safetensors --config run.yaml --stride 50\n\n"
    "Give it the settings that tokenize was given."
)
@with_job_options
def replay(
    dataset: Dataset,
    inputs: GivenInputs,
    checkpoint: Checkpoint,
    options: JobOptions,
) -> None:
    """Try quarantined clips again, after files were mended or could not be read, and leave the others as they are."""
    with reported():
        request = options.request(inputs, dataset, checkpoint)
        from jobs.commands.run.replay_command import run_replay

        run_replay(request, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens runs tokens/\n\n"
    "  motion-tokens runs s3://bucket/tokens --last 30 --json runs.json"
)
def runs(
    dataset: Dataset,
    last: Annotated[int, typer.Option(min=1, help="Runs to show, the newest.")] = 10,
    json_file: JsonFile = None,
    settings: Settings = None,
) -> None:
    """Compare the runs of a dataset, each with the one before: speed, drops, drift of codes, settings."""
    with reported(only_reads=json_file is None):
        job = job_config(None, settings, {})
        from jobs.commands.run.runs_command import run_runs

        run_runs(dataset, last, json_file, job, console)
