"""The options that tokenize, plan and replay share, each written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any

import typer

from jobs.app import (
    TWO_CONFIGURATIONS,
    Address,
    Clips,
    ConfigFile,
    Exclude,
    Formats,
    Local,
    ModelConfig,
    Preset,
    Settings,
    Workers,
    job_config,
    quoted,
)
from pipeline.errors import ConfigError
from pipeline.settings.job_config import TokenizeRequest


@dataclass(frozen=True)
class JobOptions:
    """What a command line says of a job, beside its inputs, output and checkpoint; each field is an option."""

    model_config: ModelConfig = None
    preset: Preset = None
    config: ConfigFile = None
    settings: Settings = None
    formats: Formats = None
    stride: Annotated[int | None, typer.Option(min=1, help="Frames between windows; default: one window.")] = None
    precision: Annotated[str | None, typer.Option(help="float32 (default), float16 or bfloat16.")] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows a batch; part of the dataset's identity.")] = (
        None
    )
    workers: Workers = None
    local: Local = False
    address: Address = None
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Tell changed files by their content instead of size and time.")
    ] = False
    gate: Annotated[
        str | None,
        typer.Option(help="Where decoded motion is too far off: enforce (default) stages, warn says so, off."),
    ] = None
    clips: Clips = None
    exclude: Exclude = None
    deadline: Annotated[str | None, typer.Option(help="Stop at this time, resumable: 06:00.")] = None
    max_runtime: Annotated[str | None, typer.Option(help="Stop after this time, resumable: 90m, 1h30m.")] = None

    def request(
        self, inputs: list[str], output: str, checkpoint: str, more: Mapping[str, Any] | None = None
    ) -> TokenizeRequest:
        """Return what the pipeline is asked for.

        Args:
            more: configuration key -> value of what only one command offers; None where not given.

        Raises:
            RequestError: a file is missing, a key unknown or a value wrong.
        """
        if self.preset and self.model_config:
            raise ConfigError(TWO_CONFIGURATIONS)
        options = {
            "export.formats": self.formats,
            "window.stride": self.stride,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "run.workers": self.workers,
            "run.local": self.local or None,
            "input.checksum": self.checksum or None,
            "gate": self.gate,
            **(more or {}),
        }
        options |= quoted(
            {
                "run.address": self.address,
                "input.clips.include": self.clips,
                "input.clips.exclude": self.exclude,
                "run.deadline": self.deadline or None,
                "run.max_runtime": self.max_runtime or None,
            }
        )
        job = job_config(self.config, self.settings, options)
        return TokenizeRequest(tuple(inputs), output, checkpoint, self.preset, self.model_config, job)


def with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a Typer command the fields of `JobOptions` as options, in the place of its parameter `options`."""
    names = [field.name for field in fields(JobOptions)]

    @wraps(command)
    def spread(**given: Any) -> None:
        options = JobOptions(**{name: given.pop(name) for name in names})
        command(**given, options=options)

    shown: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        taken = inspect.signature(JobOptions, eval_str=True).parameters if name == "options" else {name: parameter}
        shown |= {one: what.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one, what in taken.items()}
    spread.__annotations__ = {name: parameter.annotation for name, parameter in shown.items()}
    spread.__signature__ = inspect.Signature(list(shown.values()))  # type: ignore[attr-defined]
    return spread
