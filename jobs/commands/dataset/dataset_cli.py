"""The commands on datasets that stand: verify, report, certify, diff, decode, inspect, export and clean.

Knows no data: each calls one function.
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.app import (
    EXIT_FOUND,
    Address,
    Checkpoint,
    Clips,
    ConfigFile,
    Dataset,
    Exclude,
    Formats,
    GivenInputs,
    JsonFile,
    Local,
    ModelConfig,
    Preset,
    Settings,
    app,
    console,
    job_config,
    quoted,
    reported,
)
from pipeline.errors import ConfigError


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens verify tokens/\n\n"
    "  motion-tokens verify tokens/ motion/ --deep 1000 --checkpoint vae.safetensors\n\n"
    "Exit code 1 and a list where anything is wrong."
)
def verify(
    dataset: Dataset,
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
    with reported(only_reads=True):
        job = job_config(None, settings, {})
        if deep is None and (inputs or checkpoint):
            raise ConfigError("inputs and --checkpoint are for --deep N: verify alone reads the dataset only")
        if deep is not None and not (inputs and checkpoint):
            raise ConfigError(
                "--deep encodes windows again: name inputs and codec, verify OUTPUT INPUT.. --deep N -c CHECKPOINT"
            )
        from jobs.commands.dataset import verify_command

        if deep is not None and inputs and checkpoint:
            from pipeline.verify.deep import DeepRequest

            request = DeepRequest(tuple(inputs), checkpoint, preset, model_config, deep, seed)
            is_sound = verify_command.run_deep_verify(dataset, request, job, console)
        else:
            is_sound = verify_command.run_verify(dataset, job, console)
        if not is_sound:
            raise typer.Exit(EXIT_FOUND)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens report tokens/ motion/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens report tokens/\n\n"
    "Without inputs and codec nothing is decoded. tokenize writes the same report at its end."
)
def report(
    dataset: Dataset,
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT...", help="The inputs that tokenize was given, in that order.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", "-c", help="The codec that tokenize was given.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows to decode.")] = 64,
    model_config: ModelConfig = None,
    preset: Preset = None,
    settings: Settings = None,
) -> None:
    """Write report.html: decoded motion beside the recorded, use of bits, stability, drops, time."""
    with reported():
        job = job_config(None, settings, {})
        if bool(inputs) != bool(checkpoint):
            raise ConfigError("to decode, name both inputs and codec: report OUTPUT INPUT.. -c CHECKPOINT")
        from jobs.commands.dataset.report_command import run_report
        from pipeline.verify.deep import DeepRequest

        sources = None
        if inputs and checkpoint:
            sources = DeepRequest(tuple(inputs), checkpoint, preset, model_config, windows, 0)
        run_report(dataset, sources, job, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens certify tokens/ motion/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens certify tokens/ motion/ -c vae.safetensors --max-flip-rate 1e-5 --json certificate.json\n\n"
    "Exit code 1 where more bits than --max-flip-rate depend on rounding."
)
def certify(
    dataset: Dataset,
    inputs: GivenInputs,
    checkpoint: Checkpoint,
    windows: Annotated[int, typer.Option(min=1, help="Windows to encode again.")] = 32,
    max_flip_rate: Annotated[float | None, typer.Option(help="Share of bits that may differ, such as 1e-5.")] = None,
    json_file: JsonFile = None,
    model_config: ModelConfig = None,
    preset: Preset = None,
    settings: Settings = None,
) -> None:
    """Encode a sample again in other orders, batch sizes and precisions and in float64, and count bits that flip."""
    with reported(only_reads=json_file is None):
        job = job_config(None, settings, {"max_flip_rate": max_flip_rate})
        from jobs.commands.dataset.report_command import run_certify
        from pipeline.verify.deep import DeepRequest

        request = DeepRequest(tuple(inputs), checkpoint, preset, model_config, windows, 0)
        if not run_certify(dataset, request, json_file, job, console):
            raise typer.Exit(EXIT_FOUND)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens diff tokens/ tokens-of-other-machine/\n\n"
    "  motion-tokens diff a/ s3://bucket/b --json difference.json\n\n"
    "Exit code 0 where codec, clips, windows and bits are equal, 1 where not."
)
def diff(
    ours: Annotated[str, typer.Argument(metavar="A", help="Folder or URL of a token dataset.")],
    theirs: Annotated[str, typer.Argument(metavar="B", help="Folder or URL of another one.")],
    json_file: JsonFile = None,
    settings: Settings = None,
) -> None:
    """Explain the difference of two datasets: settings, clips, windows, bits by scale."""
    with reported(only_reads=json_file is None):
        job = job_config(None, settings, {})
        from jobs.commands.dataset.diff_command import run_diff

        if not run_diff(ours, theirs, json_file, job, console):
            raise typer.Exit(EXIT_FOUND)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens decode tokens/ take1.npz --clip take1 --checkpoint vae.safetensors\n\n"
    "  motion-tokens decode s3://bucket/tokens decoded/ --clips ids.txt -c vae.safetensors\n\n"
    "Each npz holds motion (frames, dims) float32, fps and clip_id. Where windows overlap, a frame is taken from the"
    " first that covers it; frames that none covers are NaN."
)
def decode(
    dataset: Dataset,
    out: Annotated[str, typer.Argument(metavar="[OUT]", help="An .npz for one clip, else a folder.")] = ".",
    clip: Annotated[list[str] | None, typer.Option("--clip", help="Id of a clip. Repeatable.")] = None,
    clips: Annotated[str | None, typer.Option("--clips", help="File with one clip id a line.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", "-c", help="The dataset's codec; default: one that stands beside the dataset."),
    ] = None,
    model_config: ModelConfig = None,
    preset: Preset = None,
    settings: Settings = None,
) -> None:
    """Decode tokens back to motion, one npz a clip."""
    with reported():
        job = job_config(None, settings, {})
        from jobs.commands.dataset.decode_command import DecodeRequest, run_decode

        request = DecodeRequest(dataset, tuple(clip or ()), clips, checkpoint, preset, model_config, out)
        run_decode(request, job, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens inspect tokens/\n\n"
    "  motion-tokens inspect tokens/ --clip take1 --window 3\n\n"
    "  motion-tokens inspect vae.safetensors\n\n"
    "  motion-tokens inspect motion/take1.npz"
)
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A dataset, shard, checkpoint, stats.json, or motion; file or URL.")
    ],
    clip: Annotated[str | None, typer.Option(help="Whose bits to draw; default: the first clip.")] = None,
    window: Annotated[int | None, typer.Option(min=0, help="Which of its windows, counted from 0.")] = None,
    model_config: ModelConfig = None,
    preset: Preset = None,
    settings: Settings = None,
) -> None:
    """Say what a path holds; of tokens, draw the bits of one window scale by scale."""
    with reported(only_reads=True):
        job = job_config(None, settings, {})
        from jobs.commands.dataset.inspect_command import InspectRequest, run_inspect

        run_inspect(InspectRequest(path, clip, window, preset, model_config), job, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens export tokens/ tars/ --format webdataset --set export.windows_per_shard=4096\n\n"
    "  motion-tokens export tokens/ mixed/ --set export.shuffle=global --set export.splits.salt=b\n\n"
    "  motion-tokens export tokens/ by-list/ --set export.splits.by=file --set export.splits.file=metadata.json\n\n"
    "  motion-tokens export a/ b/ anna/ --where \"speaker == 'anna' and num_frames > 500\"\n\n"
    "  motion-tokens export tokens/ some/ --clips ids.txt --set export.splits.by=speaker"
)
def export(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="Token datasets that tokenize wrote.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL of the new dataset.")],
    config: ConfigFile = None,
    settings: Settings = None,
    formats: Formats = None,
    where: Annotated[str | None, typer.Option(help='Only what passes: "num_frames > 500 and start_frame > 0".')] = None,
    clips: Clips = None,
    exclude: Exclude = None,
    local: Local = False,
    address: Address = None,
) -> None:
    """Write other formats, selections, shard sizes, splits or shuffles from tokens that stand, without the model."""
    texts = {"export.where": where, "export.clips.include": clips, "export.clips.exclude": exclude}
    options = quoted({"run.address": address, **texts})
    with reported():
        job = job_config(config, settings, {"export.formats": formats, "run.local": local or None} | options)
        from jobs.commands.dataset.export_command import run_export

        run_export(datasets, output, job, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens clean tokens/\n\n"
    "  motion-tokens clean tokens/ --keep 1 --yes\n\n"
    "Without --yes nothing is deleted."
)
def clean(
    dataset: Dataset,
    keep: Annotated[int, typer.Option(min=1, help="Versions to keep, the current one included.")] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False,
    settings: Settings = None,
) -> None:
    """List old versions and what only they, or nothing at all, needs; delete it with --yes."""
    with reported():
        job = job_config(None, settings, {})
        from jobs.commands.dataset.clean_command import run_clean

        run_clean(dataset, keep, yes, job, console)
