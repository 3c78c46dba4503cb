"""The commands about runs: plan, before one, and runs, after some; registered on the app of cli.py.

Knows no data: each command calls one function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import (
    Address,
    BatchSize,
    Checkpoint,
    Checksum,
    Clips,
    ConfigFile,
    Dataset,
    Deadline,
    Exclude,
    Formats,
    Inputs,
    Local,
    MaxRuntime,
    ModelConfig,
    Precision,
    Preset,
    Settings,
    Stride,
    Workers,
    app,
    console,
    job_config,
    limits,
    quoted,
    reported,
    tokenize_options,
    tokenize_request,
)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens plan motion/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens plan s3://bucket/motion -c vae.safetensors --config run.yaml --probe 60 --deadline 06:00\n\n"
    "  motion-tokens plan motion/ -c vae.safetensors --output tokens/ --probe 60 --json plan.json\n\n"
    "Nothing is written but the file of --json. tokenize --dry-run is the same, for its own command line."
)
def plan(
    inputs: Inputs,
    checkpoint: Checkpoint,
    model_config: ModelConfig = None,
    preset: Preset = None,
    config: ConfigFile = None,
    settings: Settings = None,
    output: Annotated[
        str, typer.Option("--output", help="Dataset that the job would write or continue: what it has is not counted.")
    ] = "",
    formats: Formats = None,
    stride: Stride = None,
    precision: Precision = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    local: Local = False,
    address: Address = None,
    checksum: Checksum = False,
    clips: Clips = None,
    exclude: Exclude = None,
    probe: Annotated[
        float | None, typer.Option(min=1, help="Do real work for so many seconds, keep nothing, and foretell the rest.")
    ] = None,
    deadline: Deadline = None,
    max_runtime: MaxRuntime = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write it.")] = None,
) -> None:
    """Say what a job would write and how long it would take, before it runs."""
    options = tokenize_options(formats, stride, precision, batch_size, workers, local, checksum, None) | {
        **limits(deadline, max_runtime),
        **quoted({"run.address": address, "input.clips.include": clips, "input.clips.exclude": exclude}),
    }
    with reported():
        job = job_config(config, settings, options)
        request = tokenize_request(inputs, output, checkpoint, preset, model_config, job)
        from jobs.plan_command import run_plan

        run_plan(request, probe, json_file, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens runs tokens/\n\n"
    "  motion-tokens runs s3://bucket/tokens --last 30 --json runs.json"
)
def runs(
    output: Dataset,
    last: Annotated[int, typer.Option(min=1, help="Runs to show, the newest.")] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write them.")] = None,
    settings: Settings = None,
) -> None:
    """Compare the runs of a dataset, each with the one before: speed, drops, drift of codes, settings."""
    with reported():
        job = job_config(None, settings, {})
        from jobs.runs_command import run_runs

        run_runs(output, last, json_file, job, console)
