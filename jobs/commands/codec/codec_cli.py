"""The commands that make codecs: stats, of the motion, and train.

Knows no data: each calls one function.
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.app import (
    ConfigFile,
    Inputs,
    Local,
    ModelConfig,
    Settings,
    app,
    console,
    job_config,
    reported,
)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens stats motion/ stats.json\n\n"
    "  motion-tokens stats s3://bucket/motion s3://bucket/stats.json --workers 16\n\n"
    "  motion-tokens stats takes/ stats.json --fps 25 --set input.resample=linear\n\n"
    "Without --fps every clip counts at its own rate. The numbers do not depend on the number of workers."
)
def stats(
    inputs: Inputs,
    out: Annotated[str, typer.Argument(metavar="OUT", help="stats.json to write; a picture stands beside it.")],
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
        from jobs.commands.codec.stats_command import run_stats
        from pipeline.statistics.statistics_job import StatisticsRequest

        run_stats(StatisticsRequest(tuple(inputs), fps, job), out, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens train motion/ codec/\n\n"
    "  motion-tokens train s3://bucket/motion codec/ --stats stats.json --steps 60000\n\n"
    "  motion-tokens train takes/ arkit/ --fps 60 --set input.motion_field=values --hidden-dim 128 --depth 4\n\n"
    "The same command again continues a training that was stopped; codec/codec.safetensors is the best codec so far."
)
def train(
    inputs: Inputs,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL: codec, checkpoint, curve, summary.")],
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
        from jobs.commands.codec.train_command import TrainRequest, run_train, settings_of

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
