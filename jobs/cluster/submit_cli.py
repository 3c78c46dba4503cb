"""The commands around jobs of a Ray cluster: submit, status, logs, stop.

Knows no data and no Ray: what they do stands in jobs/cluster/submit.py.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from jobs.app import app, check_command, console, errors, reported
from jobs.cluster.patience import patiently
from jobs.cluster.submit import JobServer, JobState, Surroundings, check_job_id, meaning_of, new_job_id
from jobs.output.program import program_text
from jobs.session.signals import EXIT_STOPPED
from pipeline.errors import ConfigError
from pipeline.run.stopping import Stopped

ServerAddress = Annotated[
    str | None,
    typer.Option("--address", help="http://HOST:8265; default: RAY_ADDRESS, else the Ray on this machine."),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="What submit printed.")]


@app.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
    epilog="[bold]Examples[/bold]\n\n"
    "  motion-tokens submit --address http://head:8265 tokenize s3://bucket/motion s3://bucket/tokens -c demo\n\n"
    "  motion-tokens submit --no-wait tokenize s3://bucket/motion s3://bucket/tokens --config s3://bucket/run.yaml\n\n"
    "  motion-tokens submit --working-dir . tokenize s3://bucket/motion s3://bucket/tokens -c codec.safetensors\n\n"
    "  motion-tokens submit --id flame-monday tokenize s3://bucket/motion s3://bucket/tokens -c demo\n\n"
    "Paths are those of the cluster's machines. The command's own exit code comes back; Ctrl-C leaves it running.",
)
def submit(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="Any other command, with its options.")],
    address: ServerAddress = None,
    job_id: Annotated[
        str | None, typer.Option("--id", help="Of the job: one that runs or is done is followed, none handed in twice.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")] = False,
    working_dir: Annotated[
        str | None,
        typer.Option(help="Folder to upload, or its URL: the job starts in it. With this project's code, too."),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Container image to run in, where the nodes have podman.")] = None,
) -> None:
    """Run a command as a job of a Ray cluster, follow what it prints, and end as it ends."""
    check_command(command)
    with reported():
        if working_dir is not None and image is not None:
            raise ConfigError("--working-dir and --image exclude each other: put the folder into the image")
        if job_id is not None:
            check_job_id(job_id)
        server = patiently(lambda: JobServer(address), _say)
        chosen, is_known = (
            (new_job_id(), False) if job_id is None else patiently(lambda: server.find(job_id, command), _say)
        )
        known = ", handed in before" if is_known else ""
        errors.print(f"job {chosen} at {server.address}{known}", highlight=False, soft_wrap=True)
        if not is_known:
            with _left_alone(server, chosen, "may have been taken"):
                server.submit(command, Surroundings(working_dir, image), chosen, _say)
        if no_wait:
            sys.stdout.write(f"{chosen}\n")
        else:
            _follow(server, chosen)


@app.command(
    epilog="[bold]Examples[/bold]\n\n  motion-tokens status\n\n  motion-tokens status job-20261123-194114-5f0c12ab"
)
def status(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="What submit printed; without one, all.")] = None,
    address: ServerAddress = None,
) -> None:
    """Say how a job of a Ray cluster stands, and what its exit code means; or list all of them."""
    with reported(only_reads=True):
        server = JobServer(address)
        jobs = [server.job(job_id)] if job_id else server.jobs()
        if not jobs:
            console.print(f"no job was handed in at {server.address}", highlight=False)
        for job in jobs:
            _print_job(job)


@app.command(epilog="[bold]Examples[/bold]\n\n  motion-tokens logs job-20261123-194114-5f0c12ab --follow")
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="To the job's end; then end as it ended.")] = False,
    address: ServerAddress = None,
) -> None:
    """Print what a job of a Ray cluster has printed."""
    with reported(only_reads=True):
        server = JobServer(address)
        server.job(job_id)
        if follow:
            _follow(server, job_id)
        else:
            _emit(server.log(job_id))


@app.command(
    epilog="[bold]Examples[/bold]\n\n  motion-tokens stop job-20261123-194114-5f0c12ab\n\n  motion-tokens stop --all"
)
def stop(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="What submit printed.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every job that runs, before the cluster goes.")] = False,
    address: ServerAddress = None,
) -> None:
    """Stop a job of a Ray cluster, resumably, and wait until it has ended; or all of them."""
    with reported():
        if (job_id is None) != everything:
            raise ConfigError("say which job to stop, by its ID, or --all; motion-tokens status lists them")
        server = patiently(lambda: JobServer(address), _say)
        if job_id is not None:
            patiently(lambda: server.job(job_id), _say)
        stopped = server.stop(None if job_id is None else [job_id], _say)
        if not stopped:
            over = f"job {job_id} was over before" if job_id else f"no job runs at {server.address}"
            console.print(over, highlight=False, soft_wrap=True)
        for job in stopped or ([server.job(job_id)] if job_id else []):
            _print_job(job)


def _follow(server: JobServer, job_id: str) -> None:
    """Print what a job prints and end as it ends; a signal ends this command only."""
    with _left_alone(server, job_id, "goes on"):
        job = server.follow(job_id, _emit)
    if job.exit_code:
        _print_end(job)
    raise typer.Exit(job.exit_code or 0)


@contextmanager
def _left_alone(server: JobServer, job_id: str, what_it_does: str) -> Iterator[None]:
    """Let a signal end this command only, with a word on how to come back to the job."""
    try:
        yield
    except Stopped as stopped:
        where = f"{escape(program_text())} %s {job_id} --address {shlex.quote(server.address)}"
        errors.print(
            f"\n{stopped} ended this command only: job {job_id} {what_it_does}\n"
            f"  come back  {where % 'logs --follow'}\n  stop it    {where % 'stop'}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(EXIT_STOPPED) from stopped


def _say(text: str) -> None:
    errors.print(escape(text), highlight=False, soft_wrap=True)


def _emit(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_end(job: JobState) -> None:
    code = job.exit_code or 0
    errors.print(f"job {job.job_id} ended with exit code {code}: {meaning_of(job)}", highlight=False, soft_wrap=True)
    if job.message and job.status == "failed":
        errors.print(escape(job.message.strip()), highlight=False, soft_wrap=True)


def _print_job(job: JobState) -> None:
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # else the end of a long path is cut off
    table.add_row("job", escape(job.job_id))
    table.add_row("command", escape(job.command))
    ended = "" if job.exit_code is None else f"  [dim]exit code {job.exit_code}, {meaning_of(job)}[/dim]"
    table.add_row("status", job.status + ended)
    table.add_row("started", _time(job.started_at))
    if job.ended_at is not None:
        table.add_row("ended", _time(job.ended_at))
    console.print(table, soft_wrap=True)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not yet"
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
