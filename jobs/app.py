"""The app that commands register on: shared options, configurations made of them, errors as messages and codes.

Knows no command: cli.py imports them all.
"""

from __future__ import annotations

import difflib
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from jobs.session.ray_start import is_loss_of_ray, native_noise_aside
from jobs.session.signals import EXIT_STOPPED, stop_behind, stop_signals
from jobs.session.streams import go_on_without_reader
from pipeline.errors import IncompleteError, MotionTokensError
from pipeline.run.stopping import Stopped
from pipeline.settings.job_config import JobConfig, load_config

EXIT_FOUND = 1
"""Of verify, diff and certify: something was found. No other command ends so by itself."""
TWO_CONFIGURATIONS = "--preset and --model-config say the same thing: give one of them"
ORDER = (
    *("demo", "inspect", "stats", "train", "plan", "tokenize", "replay", "runs"),
    *("verify", "report", "certify", "diff", "decode", "export", "clean"),
    *("submit", "status", "logs", "stop", "deploy", "bench"),
)
"""Commands as help lists them: from the first try to a cluster."""
NOT_HANDED_IN = frozenset({"submit", "status", "logs", "stop"})
"""Commands about jobs of a cluster, which run here."""


class _Group(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    name="motion-tokens",
    cls=_Group,
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
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Folder or URL of a token dataset.")]
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
JsonFile = Annotated[str | None, typer.Option("--json", help="File for the same, for programs; path or URL.")]
Clips = Annotated[str | None, typer.Option(help="File with one clip id a line: only these.")]
Exclude = Annotated[str | None, typer.Option(help="File with one clip id a line: never these.")]


def quoted(texts: Mapping[str, str | None]) -> dict[str, str]:
    """Return configuration key -> value for texts that were given, whatever characters they hold."""
    return {key: json.dumps(text) for key, text in texts.items() if text is not None}


def job_config(config: str | None, settings: list[str] | None, options: Mapping[str, Any]) -> JobConfig:
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


def check_command(command: Sequence[str]) -> typer.Context:
    """Read a command line as it will be read on the cluster, and return what was read.

    Raises:
        BadParameter: it is none of this program's, or could not be handed in.
        UsageError: an option or argument of it is wrong.
    """
    commands = cast(TyperGroup, typer.main.get_command(app)).commands
    name, *arguments = command
    known = sorted(set(commands) - NOT_HANDED_IN)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
        raise typer.BadParameter(f"{name!r} cannot be handed in; {hint}")
    return cast(typer.Context, commands[name].make_context(f"motion-tokens {name}", list(arguments)))


@contextmanager
def reported(only_reads: bool = False) -> Iterator[None]:
    """Turn errors into one message and the exit code that says what to do.

    Args:
        only_reads: the command has nothing left to do when nobody reads its output.
    """
    if not only_reads:
        go_on_without_reader()
    try:
        with stop_signals(), native_noise_aside():
            yield
    except MotionTokensError as error:
        errors.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
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
            raise typer.Exit(IncompleteError.exit_code) from error
        traceback.print_exc()
        errors.print("[bold red]internal error[/bold red]: please report the lines above", highlight=False)
        raise typer.Exit(MotionTokensError.exit_code) from error


def _stopped(stopped: Stopped) -> typer.Exit:
    errors.print(f"stopped by {stopped}: run the same command again, what is committed stays", highlight=False)
    return typer.Exit(EXIT_STOPPED)
