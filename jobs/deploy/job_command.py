"""What a cluster is asked to run: the words of the command, and the places that they and the configuration name.

Knows no manifest. The command is read as the cluster will read it, so that no option passes a check by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from bitwise_vae.config import PRESETS, PRETRAINED
from jobs.app import TWO_CONFIGURATIONS, check_command
from pipeline.settings.deploy_config import DeployConfig
from pipeline.settings.job_config import JobConfig, all_keys
from pipeline.storage import without_secrets

NAME = "motion-tokens"
RUN_FILE = "/etc/motion-tokens/run.yaml"

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # UsageError, which typer keeps in another module each version
_PLACE = re.compile(r"(?:[A-Za-z0-9_-]+=)?([A-Za-z0-9+.-]+)://.+", re.DOTALL)
_ONE_MACHINE = frozenset({"file", "local", "memory"})
_FREE = frozenset({"preset", "model_config"})
"""Parameters that no key of the configuration stands for."""
_ADVICE = {
    "settings": "write its keys into the configuration",
    "local": "leave it out, for a cluster runs Ray",
    "address": "leave it out, for the job runs on its own cluster",
    "dry_run": "leave it out, and try the command here",
    "json_file": "leave it out, and try the command here",
}


def job_command(deploy: DeployConfig) -> list[str]:
    """Return the words of the job's command."""
    options = ["--config", RUN_FILE, "--checkpoint", deploy.checkpoint, *deploy.arguments]
    return [NAME, "tokenize", *deploy.inputs, deploy.output, *options]


def request_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    """Yield what is wrong with the command, and the places that no pod would find."""
    if job.run.local:
        yield "run.local: true, but a cluster runs Ray; leave it out"
    if job.run.address is not None:
        yield f"run.address: {job.run.address}, but the job runs on its own cluster; leave it out"
    places = _places(job, deploy)
    if {"--help", "-h"}.isdisjoint(deploy.arguments):
        try:
            read = check_command(job_command(deploy)[1:])
        except _USAGE_ERROR as error:
            yield f"deploy.arguments: tokenize refuses the command ({error.format_message()}); correct them"
        else:
            yield from _command_findings(read, deploy)
            places["deploy.arguments, --model-config"] = read.params["model_config"]
    else:
        yield "deploy.arguments: they ask for help, which is no job; ask here: motion-tokens tokenize --help"
    for key, place in places.items():
        found = _PLACE.fullmatch(place or "")
        if place is not None and (found is None or found[1] in _ONE_MACHINE):
            yield (
                f"{key}: {without_secrets(place)} lies on one machine, which the pods do not see; name a place such as"
                " s3://bucket/.."
            )


def _places(job: JobConfig, deploy: DeployConfig) -> dict[str, str | None]:
    """Return every place that the configuration names, by its key."""
    places: dict[str, str | None] = {f"deploy.inputs[{n}]": place for n, place in enumerate(deploy.inputs)}
    places["deploy.output"] = deploy.output
    if deploy.checkpoint not in PRETRAINED:
        places["deploy.checkpoint"] = deploy.checkpoint
    for key, clips in {"input.clips": job.input.clips, "export.clips": job.export.clips}.items():
        places |= {f"{key}.{name}": path for name, path in clips.model_dump().items()}
    return places | {"export.splits.file": job.export.splits.file}


def _command_findings(read: typer.Context, deploy: DeployConfig) -> Iterator[str]:
    """Yield the options that the configuration says, and what is read otherwise than it is written."""
    own = {
        "inputs": list(deploy.inputs), "output": deploy.output, "config": RUN_FILE, "checkpoint": deploy.checkpoint,
    }  # fmt: skip
    found = read.params | {"inputs": list(read.params["inputs"])}  # a tuple in some versions of Typer
    moved = [name for name, value in own.items() if found[name] != value]
    if moved:
        yield (
            f"deploy.arguments: with them the command has other {', '.join(moved)} than deploy.inputs, deploy.output"
            " and deploy.checkpoint say; leave these to their keys, and begin no place with -"
        )
    for parameter in read.command.params:
        name = str(parameter.name)
        is_given = str(read.get_parameter_source(name)).endswith("COMMANDLINE")
        if is_given and name not in own and name not in _FREE:
            key = next((key for key in all_keys(JobConfig) if key.rpartition(".")[2] == name), None)
            advice = _ADVICE.get(name, f"write {key} into the configuration")
            yield f"deploy.arguments: no check would see what {parameter.opts[0]} says; {advice}"
    preset = read.params["preset"]
    if preset is not None and preset not in PRESETS:
        yield f"deploy.arguments: no preset {preset!r}; there is {', '.join(PRESETS)}"
    if preset is not None and read.params["model_config"]:
        yield f"deploy.arguments: {TWO_CONFIGURATIONS}"
