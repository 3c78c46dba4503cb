"""The command `motion-tokens`: options to requests, errors to messages and exit codes.

Knows no data: each command calls one function of the pipeline.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from jobs.supervision import EXIT_INCOMPLETE, EXIT_STOPPED, is_to_supervise, run_supervised
from pipeline.errors import ConfigError, MotionTokensError
from pipeline.settings.job_config import JobConfig, load_config

if TYPE_CHECKING:
    from pipeline.run.stopping import Stopped
    from pipeline.settings.job_config import TokenizeRequest

EXIT_WRONG_DATA, EXIT_INTERNAL = 1, 70
TWO_CONFIGURATIONS = "--preset and --model-config say the same thing: give one of them"

app = typer.Typer(
    name="motion-tokens",
    help="Turns collections of face motion into token shards for autoregressive models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
errors = Console(stderr=True)

Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders or globs; NAME=PATH names one.")]
GivenInputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help="The inputs that tokenize was given.")]
Dataset = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL of a token dataset.")]
Checkpoint = Annotated[
    str, typer.Option("--checkpoint", "-c", help="Codec: .safetensors, .pt or .pth, file or URL; demo or demo-arkit.")
]
ConfigFile = Annotated[str | None, typer.Option("--config", help="run.yaml; options on the command line win over it.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, for example window.stride=50. Repeatable.")
]
Formats = Annotated[str | None, typer.Option("--format", help="parquet, webdataset, or both with a comma (default).")]
Local = Annotated[bool, typer.Option("--local", help="A plain loop in this process, without Ray.")]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster: auto or HOST:PORT; default: RAY_ADDRESS, else none.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Tokenizer actors; default: one a GPU, else one.")
]
ModelConfig = Annotated[str | None, typer.Option(help="JSON with what the weights' shapes do not say.")]
Preset = Annotated[str | None, typer.Option(help="Known model configuration: artalk.")]
Stride = Annotated[int | None, typer.Option(min=1, help="Frames between windows; default: one window.")]
Precision = Annotated[str | None, typer.Option(help="float32 (default), float16 or bfloat16.")]
Gate = Annotated[
    str | None, typer.Option(help="Where decoded motion is too far off: enforce (default) stages, warn says so, off.")
]
Clips = Annotated[str | None, typer.Option(help="File with one clip id a line: only these.")]
Exclude = Annotated[str | None, typer.Option(help="File with one clip id a line: never these.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Windows a batch; part of the dataset's identity.")]
Deadline = Annotated[str | None, typer.Option(help="Stop at this time, resumable: 06:00.")]
MaxRuntime = Annotated[str | None, typer.Option(help="Stop after this time, resumable: 90m, 1h30m.")]
Checksum = Annotated[
    bool, typer.Option("--checksum", help="Tell changed files by their content instead of size and time.")
]


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens tokenize motion/ tokens/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens tokenize s3://bucket/motion s3://bucket/tokens -c vae.pt --preset artalk --set input.fps=25\n\n"
    "  motion-tokens tokenize talk=a/*.tar sing=b/ tokens/ -c vae.safetensors --stride 50 --precision float16\n\n"
    "  motion-tokens tokenize motion/ tokens/ -c vae.safetensors --set emit=latent --dry-run\n\n"
    "The same command again continues a run that was stopped."
)
def tokenize(
    inputs: Inputs,
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL of the token dataset.")],
    checkpoint: Checkpoint,
    model_config: ModelConfig = None,
    preset: Preset = None,
    config: ConfigFile = None,
    settings: Settings = None,
    formats: Formats = None,
    stride: Stride = None,
    precision: Precision = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    local: Local = False,
    address: Address = None,
    checksum: Checksum = False,
    gate: Gate = None,
    clips: Clips = None,
    exclude: Exclude = None,
    deadline: Deadline = None,
    max_runtime: MaxRuntime = None,
    log_format: Annotated[str | None, typer.Option(help="text (default), or json: a line an event.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Put a dataset of other settings in this one's place.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would write and how long it would compute.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="With --dry-run: where to write it.")] = None,
) -> None:
    """Tokenize motion files into a verified token dataset."""
    options = tokenize_options(formats, stride, precision, batch_size, workers, local, checksum, gate) | {
        **limits(deadline, max_runtime),
        "run.log_format": log_format,
        "run.restart": restart or None,
    }
    options |= quoted({"run.address": address, "input.clips.include": clips, "input.clips.exclude": exclude})
    with reported():
        job = job_config(config, settings, options)
        request = tokenize_request(inputs, output, checkpoint, preset, model_config, job)
        if json_file is not None and not dry_run:
            raise ConfigError("--json is for --dry-run: a run writes runs/<run_id>/run.json")
        if dry_run:
            from jobs.plan_command import run_plan

            run_plan(request, None, json_file, console)
        else:
            from jobs.tokenize_command import run_tokenize

            run_tokenize(request, console)


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
        from jobs.dataset_commands import run_export

        run_export(datasets, output, job, console)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens replay tokens/ motion/ --checkpoint vae.safetensors\n\n"
    "  motion-tokens replay tokens/ motion/ -c vae.safetensors --config run.yaml --stride 50\n\n"
    "Give it the settings that tokenize was given."
)
def replay(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL of the token dataset.")],
    inputs: GivenInputs,
    checkpoint: Checkpoint,
    model_config: ModelConfig = None,
    preset: Preset = None,
    config: ConfigFile = None,
    settings: Settings = None,
    formats: Formats = None,
    stride: Stride = None,
    precision: Precision = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    local: Local = False,
    address: Address = None,
    checksum: Checksum = False,
    gate: Gate = None,
) -> None:
    """Try quarantined clips again, after files were mended or could not be read, and leave the others as they are."""
    options = tokenize_options(formats, stride, precision, batch_size, workers, local, checksum, gate)
    options |= quoted({"run.address": address})
    with reported():
        job = job_config(config, settings, options)
        request = tokenize_request(inputs, output, checkpoint, preset, model_config, job)
        from jobs.dataset_commands import run_replay

        run_replay(request, console)


@app.command(epilog="[bold]Example[/bold]\n\n  motion-tokens demo out/demo")
def demo(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder for motion and tokens.")] = "out/demo",
    workers: Workers = None,
    local: Local = False,
) -> None:
    """Make motion, tokenize and verify it, and say what to look at."""
    with reported():
        from jobs.demo import run_demo

        run_demo(Path(output), job_config(None, None, {"run.workers": workers, "run.local": local or None}), console)


@app.command(epilog="[bold]Example[/bold]\n\n  motion-tokens bench pipeline --json bench.json")
def bench(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="control, encode, export, gpus, loader, pipeline, plan or startup.")
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the results.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="How many; each suite has a size of its own.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved runs of each side.")] = 5,
    precision: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    motion_format: Annotated[str, typer.Option(help="parquet or webdataset: what gpus reads.")] = "parquet",
) -> None:
    """Measure speed here, against what a plain script reaches in the same run."""
    with reported():
        from jobs.bench import make_request, run_bench

        run_bench(suite, make_request(suite, windows, repeats, precision, motion_format), json_file, console)


def tokenize_options(
    formats: str | None,
    stride: int | None,
    precision: str | None,
    batch_size: int | None,
    workers: int | None,
    local: bool,
    checksum: bool,
    gate: str | None,
) -> dict[str, Any]:
    """Return configuration key -> value of the options that tokenize and replay share; None where not given."""
    return {
        "export.formats": formats,
        "window.stride": stride,
        "precision": precision,
        "batch_size": batch_size,
        "run.workers": workers,
        "run.local": local or None,
        "input.checksum": checksum or None,
        "gate": gate,
    }


def quoted(texts: Mapping[str, str | None]) -> dict[str, str]:
    """Return configuration key -> value for texts that were given, whatever characters they hold."""
    return {key: json.dumps(text) for key, text in texts.items() if text is not None}


def limits(deadline: str | None, max_runtime: str | None) -> dict[str, Any]:
    """Return configuration key -> value of the options that say when a run stops by itself."""
    return {
        "run.deadline": f"'{deadline}'" if deadline else None,
        "run.max_runtime": f"'{max_runtime}'" if max_runtime else None,
    }


def tokenize_request(
    inputs: list[str], output: str, checkpoint: str, preset: str | None, model_config: str | None, job: JobConfig
) -> TokenizeRequest:
    """Return what tokenize and replay ask the pipeline for.

    Raises:
        ConfigError: the codec's configuration is given twice.
    """
    from pipeline.settings.job_config import TokenizeRequest

    if preset and model_config:
        raise ConfigError(TWO_CONFIGURATIONS)
    return TokenizeRequest(tuple(inputs), output, checkpoint, preset, model_config, job)


def job_config(config: str | None, settings: list[str] | None, options: dict[str, Any]) -> JobConfig:
    """Return the configuration of a file, `--set` items and options, the later winning.

    Raises:
        RequestError: a file is missing, a key unknown or a value wrong.
    """
    text = None
    if config is not None:
        from pipeline.storage import read_text

        text = read_text(config)
    chosen = [f"{key}={value}" for key, value in options.items() if value is not None]
    return load_config(text, [*(settings or []), *chosen], config or "options")


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors into one message and the exit code that says what to do."""
    from jobs.session import is_loss_of_ray, native_noise_aside, stop_behind, stop_signals
    from pipeline.run.stopping import Stopped

    try:
        with stop_signals(), native_noise_aside():
            yield
    except MotionTokensError as error:
        errors.print(f"[bold red]error:[/bold red] {_plain(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
    except Stopped as stopped:
        raise _stopped(stopped) from stopped
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if (wrapped := stop_behind(error)) is not None:
            raise _stopped(wrapped) from error
        if is_loss_of_ray(error):
            errors.print(f"error: Ray was lost ({type(error).__name__}): run the same command again", highlight=False)
            raise typer.Exit(EXIT_INCOMPLETE) from error
        traceback.print_exc()
        errors.print("[bold red]internal error[/bold red]: please report the lines above", highlight=False)
        raise typer.Exit(EXIT_INTERNAL) from error


def _stopped(stopped: Stopped) -> typer.Exit:
    errors.print(f"stopped by {stopped}: run the same command again, what is committed stays", highlight=False)
    return typer.Exit(EXIT_STOPPED)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def main() -> None:
    """Entry point of the console script; a command that runs Ray gets a parent that outlives it."""
    # while no command has handlers, before and at the end
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_STOPPED))
    # when all is done and Python takes its handlers back: how the command ended is settled
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    command = partial(app, prog_name="motion-tokens")
    if is_to_supervise(sys.argv[1:]):
        run_supervised(command)
    else:
        command()


from jobs import codec_cli, dataset_cli, deploy_cli, run_cli, submit_cli  # noqa: E402, F401 - their commands stand on the app above

if __name__ == "__main__":
    from jobs.cli import main as entry  # this module, as those two import it

    entry()
