"""The command tokenize: a session, a display or a log, the job, run.json, the summary, and word of how it ended.

Knows no data. Imports torch only once the display is shown: Ray may start meanwhile.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from jobs.commands.run.certain_work import is_work_certain
from jobs.output.display import Display
from jobs.output.json_log import JsonLog
from jobs.output.metrics import MetricsObserver
from jobs.output.notify import notify
from jobs.output.outcome import described_run, outcome_of_dataset, outcome_of_error
from jobs.output.program import program_text
from jobs.output.run_record import RecordNotes, new_run_id, print_summary, write_run_record
from jobs.session.session import are_metrics_taken, open_session
from jobs.session.signals import stop_signals
from pipeline.dataset.manifest import Manifest, read_manifest, read_staged
from pipeline.errors import GateFailedError, MotionTokensError
from pipeline.run.history import read_runs
from pipeline.run.observer import Audience, JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch, stop_time
from pipeline.settings.job_config import TokenizeRequest
from pipeline.settings.run_config import RunConfig
from pipeline.storage import Folder, without_secrets

if TYPE_CHECKING:  # they import torch
    from pipeline.job.gate import GateResult
    from pipeline.job.tokenize_job import Tokenized
    from pipeline.plan.plan import Plan
    from pipeline.plan.units import Unit

RUNS_LOOKED_AT = 20
"""Records in which the version of a dataset that was complete already is looked for, the newest."""


@dataclass(frozen=True)
class _Run:
    """What the steps of one run of the command share; built by `run_tokenize`."""

    run_id: str
    request: TokenizeRequest
    output: Folder
    record: JobRecord
    log: JsonLog | None
    """In the place of text, where the configuration wants it."""
    console: Console
    """Silent beside a log."""
    outcome: dict[str, Any]
    """As in run.json; grows as the run ends."""

    @property
    def config(self) -> RunConfig:
        return self.request.config.run

    @property
    def place(self) -> str:
        """Where the dataset stands, without secrets."""
        return without_secrets(self.request.output)

    def write_record(self) -> None:
        """Write run.json."""
        self.outcome["run_record"] = write_run_record(self.output, self.run_id, self.record, self.outcome)


def run_tokenize(
    request: TokenizeRequest,
    console: Console,
    prepare: Callable[[], None] = lambda: None,
    again: Callable[[Plan], Sequence[Unit]] | None = None,
) -> Tokenized:
    """Run the job and tell about it.

    Args:
        prepare: called before the job; how it ends is told as the job's end is.
        again: returns units that are computed anew although their fragments stand.

    Raises:
        MotionTokensError: the job cannot start, or ended incomplete.
    """
    config = request.config.run
    run_id = new_run_id()
    log = JsonLog(run_id) if config.log_format == "json" else None
    run = _Run(
        run_id=run_id,
        request=request,
        output=Folder(request.output, config.storage_options),
        record=JobRecord(),
        log=log,
        console=console_of(config, console),
        outcome={},
    )
    with _end_told(run):
        prepare()
        done = _tokenize(run, again)
        if done.gate is None:
            run.outcome.update(outcome_of_dataset(done.manifest))
            run.console.print("already complete: every unit is tokenized and published", highlight=False)
            _tell_what_a_killed_run_left_untold(run, done.manifest)
        else:
            _require_passed(run, done.gate)
            _finish(run, done.manifest, done.gate)
    return done


def console_of(config: RunConfig, console: Console) -> Console:
    """Return where text goes: nowhere, in the place of a log."""
    return Console(quiet=True) if config.log_format == "json" else console


def _tokenize(run: _Run, again: Callable[[Plan], Sequence[Unit]] | None) -> Tokenized:
    """Run the job; an error leaves run.json where work was done."""
    config, record = run.config, run.record
    stop_at = stop_time(config.deadline, config.max_runtime)
    stop = StopSwitch(config.grace_s, stop_at)
    with ExitStack() as stack:
        observer = stack.enter_context(_watched(run, stop_at))
        executor = stack.enter_context(open_session(config, partial(is_work_certain, run.request, observer)))
        stack.enter_context(stop_signals(stop))
        from pipeline.job.tokenize_job import JobControl, tokenize_dataset

        record.lap("start")
        record.notes["executor"] = executor.name
        try:
            return tokenize_dataset(run.request, executor, observer, record, JobControl(run.run_id, stop), again)
        except MotionTokensError as error:
            run.outcome.update(outcome_of_error(error))
            if record.counts["units"]:
                run.write_record()
            raise


@contextmanager
def _watched(run: _Run, stop_at: float | None) -> Iterator[JobObserver]:
    """Give those who watch the job: a display or the log, and the metrics where Ray takes any.

    Args:
        stop_at: when the run stops by itself, on the monotonic clock.
    """
    with ExitStack() as stack:
        watching: list[JobObserver] = [RecordNotes(run.record)]
        if run.log is not None:
            watching.append(run.log)
        else:
            display = Display(run.console)
            stack.enter_context(display.shown())
            watching.append(display)
        if are_metrics_taken(run.config):
            seconds_left = None if stop_at is None else stop_at - time.monotonic()
            metrics = MetricsObserver(run.run_id, run.place, seconds_left)
            stack.enter_context(metrics.kept_alive())
            watching.append(metrics)
        yield Audience(watching)


def _finish(run: _Run, manifest: Manifest, gate: GateResult) -> None:
    """Write run.json and the report of a dataset that was published, and tell about it."""
    record, console = run.record, run.console
    run.outcome.update(outcome_of_dataset(manifest))
    run.write_record()
    print_summary(console, run.output, manifest, record)
    console.print(f"  run record {run.outcome['run_record']}", highlight=False)
    from jobs.commands.dataset.report_command import print_gate, report_of_run

    print_gate(gate, manifest, console)
    if run.config.report:
        report_of_run(run.output, manifest, gate, console)
    place = escape(shlex.quote(run.place))
    console.print(f"  prove it   {escape(program_text())} verify {place}", highlight=False, soft_wrap=True)


def _tell_what_a_killed_run_left_untold(run: _Run, manifest: Manifest) -> None:
    """Write run.json and report of a dataset whose run was killed after it had published."""
    if manifest.version in {told.get("version") for told in read_runs(run.output, RUNS_LOOKED_AT)}:
        return
    run.record.notes["version"] = manifest.version
    run.write_record()
    if run.config.report:
        from jobs.commands.dataset.report_command import report_of_run

        report_of_run(run.output, manifest, None, run.console)


def _require_passed(run: _Run, gate: GateResult) -> None:
    """Go on where the gate lets the dataset pass; else leave run.json and a report, which shows what is wrong.

    Raises:
        GateFailedError: the gate failed and is enforced.
    """
    try:
        gate.require_passed(str(run.output))
    except GateFailedError as error:
        run.outcome.update(outcome_of_error(error))
        run.write_record()
        manifest = read_staged(run.output) or read_manifest(run.output)
        if run.config.report and manifest is not None and manifest.status == "staged":
            from jobs.commands.dataset.report_command import report_of_run

            report_of_run(run.output, manifest, gate, run.console)
        raise


@contextmanager
def _end_told(run: _Run) -> Iterator[None]:
    """Tell the log, and whoever is to be notified, how the block ended, whatever ended it."""
    try:
        yield
    except BaseException as error:
        said = str(error).strip()
        run.outcome.update(outcome_of_error(error) | {"message": said})
        _tell_end(run)
        raise
    _tell_end(run)


def _tell_end(run: _Run) -> None:
    end = described_run(run.run_id, run.place, run.record, run.outcome)
    findings = run.record.notes.get("gate", {}).get("findings")
    if findings:
        end["gate_findings"] = findings
    if run.log is not None:
        run.log.say("end", end, "info" if end["exit_code"] == 0 else "error")
    for line in notify(run.config.notify, end):
        if run.log is not None:
            run.log.say("not_told", {"message": line}, "warning")
        run.console.print(f"  [yellow]not told[/yellow]   {escape(line)}", highlight=False, soft_wrap=True)
