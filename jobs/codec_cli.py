"""The commands of `motion-tokens` about codecs and the motion they are made for; registered on the app of cli.py.

Knows no data: each command calls one function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import (
    EXIT_WRONG_DATA,
    Checkpoint,
    ConfigFile,
    Dataset,
    GivenInputs,
    Inputs,
    Local,
    ModelConfig,
    Preset,
    Settings,
    app,
    console,
    job_config,
    reported,
)
from pipeline.errors import ConfigError


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens stats motion/ --out stats.json\n\n"
    "  motion-tokens stats s3://bucket/motion --out s3://bucket/stats.json --workers 16\n\n"
    "  motion-tokens stats takes/ --out stats.json --fps 25 --set input.resample=linear\n\n"
    "Without --fps every clip counts at its own rate. The numbers do not depend on the number of workers."
)
def stats(
    inputs: Inputs,
    out: Annotated[str, typer.Option("--out", "-o", help="stats.json to write; a picture stands beside it.")],
    fps: Annotated[
        float | None, typer.Option(help="Rate of the codec to be: other clips are resampled or dropped as by tokenize.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Tasks at once; default: every core.")] = None,
    local: Local = False,
) -> None:
    """Measure motion in one pass: mean, deviation, range and histogram of every dimension, rates and lengths."""
    with reported():
        job = job_config(config, settings, {"run.workers": workers, "run.local": local or None})
        from jobs.stats_command import run_stats
        from pipeline.statistics.statistics_job import StatisticsRequest

        run_stats(StatisticsRequest(tuple(inputs), fps, job), out, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens report tokens/ motion/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens report tokens/\n\n"
    "Without inputs and codec nothing is decoded. tokenize writes the same report at its end."
)
def report(
    output: Dataset,
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
        from jobs.report_command import run_report
        from pipeline.verify.deep import DeepRequest

        sources = None
        if inputs and checkpoint:
            sources = DeepRequest(tuple(inputs), checkpoint, preset, model_config, windows, 0)
        run_report(output, sources, job, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens certify tokens/ motion/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens certify tokens/ motion/ -c vae.safetensors --max-flip-rate 1e-5 --json certificate.json\n\n"
    "Exit code 1 where more bits than --max-flip-rate depend on rounding."
)
def certify(
    output: Dataset,
    inputs: GivenInputs,
    checkpoint: Checkpoint,
    windows: Annotated[int, typer.Option(min=1, help="Windows to encode again.")] = 32,
    max_flip_rate: Annotated[float | None, typer.Option(help="Share of bits that may differ, such as 1e-5.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the certificate.")] = None,
    model_config: ModelConfig = None,
    preset: Preset = None,
    settings: Settings = None,
) -> None:
    """Encode a sample again in other orders, batch sizes and precisions and in float64, and count bits that flip."""
    with reported():
        job = job_config(None, settings, {"max_flip_rate": max_flip_rate})
        from jobs.report_command import run_certify
        from pipeline.verify.deep import DeepRequest

        request = DeepRequest(tuple(inputs), checkpoint, preset, model_config, windows, 0)
        if not run_certify(output, request, json_file, job, console):
            raise typer.Exit(EXIT_WRONG_DATA)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens decode tokens/ --clip take1 --checkpoint vae.safetensors --out take1.npz\n\n"
    "  motion-tokens decode s3://bucket/tokens --clips ids.txt -c vae.safetensors --out decoded/\n\n"
    "Each npz holds motion (frames, dims) float32, fps and clip_id. Where windows overlap, a frame is taken from the"
    " first that covers it; frames that none covers are NaN."
)
def decode(
    output: Dataset,
    clip: Annotated[list[str] | None, typer.Option("--clip", help="Id of a clip. Repeatable.")] = None,
    clips: Annotated[str | None, typer.Option("--clips", help="File with one clip id a line.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", "-c", help="The dataset's codec; default: one that stands beside the dataset."),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="An .npz for one clip, else a folder.")] = None,
    model_config: ModelConfig = None,
    preset: Preset = None,
    settings: Settings = None,
) -> None:
    """Decode tokens back to motion, one npz a clip."""
    with reported():
        job = job_config(None, settings, {})
        from jobs.decode_command import DecodeRequest, run_decode

        request = DecodeRequest(output, tuple(clip or ()), clips, checkpoint, preset, model_config, out)
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
    with reported():
        job = job_config(None, settings, {})
        from jobs.inspect_command import InspectRequest, run_inspect

        run_inspect(InspectRequest(path, clip, window, preset, model_config), job, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens train motion/ --out codec/\n\n"
    "  motion-tokens train s3://bucket/motion --out codec/ --stats stats.json --steps 60000\n\n"
    "  motion-tokens train takes/ --out arkit/ --fps 60 --set input.motion_field=values --hidden-dim 128 --depth 4\n\n"
    "The same command again continues a training that was stopped; codec/codec.safetensors is the best codec so far."
)
def train(
    inputs: Inputs,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL: codec, checkpoint, curve, summary.")],
    stats: Annotated[
        str | None, typer.Option(help="stats.json to normalise with; default: measured on the clips to train on.")
    ] = None,
    model_config: ModelConfig = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second of the codec; default 25.")] = None,
    hidden_dim: Annotated[int | None, typer.Option(min=1, help="Width of both transformers; default 512.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Layers of each; default 6.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 20_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows a step, over all workers.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="After the warm-up; it falls along half a cosine.")] = 5e-4,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and windows.")] = 0,
    held_out: Annotated[float, typer.Option(help="Share of clips that only measure, by a hash of their id.")] = 0.05,
    precision: Annotated[
        str | None, typer.Option(help="bfloat16 (default on a GPU; the quantizer stays float32) or float32.")
    ] = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Processes; above 1 they are Ray Train's.")] = 1,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Fit a codec to motion; held-out clips say how good it is."""
    with reported():
        job = job_config(config, settings, {})
        from jobs.train_command import TrainRequest, run_train, settings_of

        given = {"fps": fps, "hidden_dim": hidden_dim, "depth": depth}
        options = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
        request = TrainRequest(
            inputs=tuple(inputs),
            output=out,
            codec={name: value for name, value in given.items() if value is not None},
            model_config=model_config,
            stats=stats,
            held_out_share=held_out,
            settings=settings_of(options, precision),
            num_workers=num_workers,
            config=job,
        )
        run_train(request, console)
