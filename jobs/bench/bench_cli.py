"""The command bench."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.app import (
    JsonFile,
    app,
    console,
    reported,
)


@app.command(epilog="[bold]Example[/bold]\n\n  motion-tokens bench pipeline --json bench.json")
def bench(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="control, encode, export, gpus, loader, pipeline, plan or startup.")
    ],
    json_file: JsonFile = None,
    windows: Annotated[int | None, typer.Option(min=1, help="How many; each suite has a size of its own.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved runs of each side.")] = 5,
    precision: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    motion_format: Annotated[str, typer.Option(help="parquet or webdataset: what gpus reads.")] = "parquet",
) -> None:
    """Measure speed here, against what a plain script reaches in the same run."""
    with reported():
        from jobs.bench.suites import make_request, run_bench

        run_bench(suite, make_request(suite, windows, repeats, precision, motion_format), json_file, console)
