"""The command demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.app import (
    Local,
    Workers,
    app,
    console,
    job_config,
    reported,
)


@app.command(epilog="[bold]Example[/bold]\n\n  motion-tokens demo out/demo")
def demo(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder for motion and tokens.")] = "out/demo",
    workers: Workers = None,
    local: Local = False,
) -> None:
    """Make motion, tokenize and verify it, and say what to look at."""
    with reported():
        from jobs.demo.demo import run_demo

        run_demo(Path(output), job_config(None, None, {"run.workers": workers, "run.local": local or None}), console)
