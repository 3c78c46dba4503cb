"""The commands that look at datasets which stand: verify, diff, clean.

Knows no data: each calls one function of jobs/dataset_commands.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import EXIT_WRONG_DATA, Dataset, ModelConfig, Preset, Settings, app, console, job_config, reported
from pipeline.errors import ConfigError


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens verify tokens/\n\n"
    "  motion-tokens verify tokens/ motion/ --deep 1000 --checkpoint vae.safetensors\n\n"
    "Exit code 1 and a list where anything is wrong."
)
def verify(
    output: Dataset,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="For --deep: the inputs that tokenize was given, in that order."),
    ] = None,
    deep: Annotated[int | None, typer.Option(min=1, help="Encode so many windows again and compare bits.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", "-c", help="For --deep: the codec that tokenize was given.")
    ] = None,
    model_config: ModelConfig = None,
    preset: Preset = None,
    seed: Annotated[int, typer.Option(min=0, help="For --deep: another number chooses other windows.")] = 0,
    settings: Settings = None,
) -> None:
    """Prove that every expected window is there exactly once, in every format, byte for byte."""
    with reported():
        job = job_config(None, settings, {})
        if deep is None and (inputs or checkpoint):
            raise ConfigError("inputs and --checkpoint are for --deep N: verify alone reads the dataset only")
        if deep is not None and not (inputs and checkpoint):
            raise ConfigError(
                "--deep encodes windows again: name inputs and codec, verify OUTPUT INPUT.. --deep N -c CHECKPOINT"
            )
        from jobs import dataset_commands

        if deep is not None and inputs and checkpoint:
            from pipeline.verify.deep import DeepRequest

            request = DeepRequest(tuple(inputs), checkpoint, preset, model_config, deep, seed)
            is_sound = dataset_commands.run_deep_verify(output, request, job, console)
        else:
            is_sound = dataset_commands.run_verify(output, job, console)
        if not is_sound:
            raise typer.Exit(EXIT_WRONG_DATA)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens diff tokens/ tokens-of-other-machine/\n\n"
    "  motion-tokens diff a/ s3://bucket/b --json difference.json\n\n"
    "Exit code 0 where codec, clips, windows and bits are equal, 1 where not."
)
def diff(
    ours: Annotated[str, typer.Argument(metavar="A", help="Folder or URL of a token dataset.")],
    theirs: Annotated[str, typer.Argument(metavar="B", help="Folder or URL of another one.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the difference.")] = None,
    settings: Settings = None,
) -> None:
    """Explain the difference of two datasets: settings, clips, windows, bits by scale."""
    with reported():
        job = job_config(None, settings, {})
        from jobs.dataset_commands import run_diff

        if not run_diff(ours, theirs, json_file, job, console):
            raise typer.Exit(EXIT_WRONG_DATA)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens clean tokens/\n\n"
    "  motion-tokens clean tokens/ --keep 1 --yes\n\n"
    "Without --yes nothing is deleted."
)
def clean(
    output: Dataset,
    keep: Annotated[int, typer.Option(min=1, help="Versions to keep, the current one included.")] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False,
    settings: Settings = None,
) -> None:
    """List old versions and what only they, or nothing at all, needs; delete it with --yes."""
    with reported():
        job = job_config(None, settings, {})
        from jobs.dataset_commands import run_clean

        run_clean(output, keep, yes, job, console)
