"""The commands `deploy ..`: what a cluster needs to run the job.

Knows no manifest: each calls one function of jobs/deploy/.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from jobs.app import ConfigFile, Settings, app, console, job_config, reported

deploy = typer.Typer(name="deploy", help="Prepare a cluster for the job.", no_args_is_help=True)
app.add_typer(deploy)


@deploy.callback()
def _group() -> None:
    """Prepare a cluster for the job."""


@deploy.command(
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens deploy render cluster/ --config run.yaml\n\n"
    "  motion-tokens deploy render cluster/ --config run.yaml --set deploy.overlay=gpu\n\n"
    "Then have the cluster check it, kubectl apply --dry-run=server -k cluster/; kubectl apply -k cluster/ starts it."
)
def render(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write manifests for Kustomize.")],
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Fill the manifests for Kubernetes from the job's own configuration, after checking that both fit together."""
    with reported():
        from jobs.deploy.checks import check_deployment
        from jobs.deploy.render import render_deployment

        checked = check_deployment(job_config(config, settings, {}))
        render_deployment(checked, folder)
        place = escape(shlex.quote(str(folder)))
        console.print(f"  manifests  {place}  ({checked.deploy.overlay}, {checked.deploy.start})", highlight=False)
        console.print(f"  check it   kubectl apply --dry-run=server -k {place}", highlight=False, soft_wrap=True)
        console.print(f"  start it   kubectl apply -k {place}", highlight=False, soft_wrap=True)
