"""The command tokenize: a session, a display, the job, run.json, the summary.

Knows no data.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from jobs.display import Display, program_text
from jobs.estimate_table import print_estimate
from jobs.report_command import print_gate, report_of_run
from jobs.run_record import new_run_id, print_summary, write_run_record
from jobs.session import open_session, stop_signals
from pipeline.errors import GateFailedError, MotionTokensError
from pipeline.estimate import estimate_job
from pipeline.execution import JobRecord
from pipeline.job_config import RunConfig
from pipeline.manifest import Manifest, read_manifest, read_staged
from pipeline.plan import make_plan
from pipeline.request import TokenizeRequest, prepare
from pipeline.stopping import StopSwitch, stop_time
from pipeline.storage import Folder, without_secrets
from pipeline.tokenize_job import JobControl, tokenize_dataset


@dataclass(frozen=True)
class Tokenized:
    """What a finished command leaves: the manifest, and the account of the run."""

    manifest: Manifest
    record: JobRecord


def run_tokenize(request: TokenizeRequest, console: Console) -> Tokenized:
    """Run the job and tell about it.

    Raises:
        MotionTokensError: the job cannot start, or ended incomplete.
    """
    output = Folder(request.output, request.config.run.storage_options)
    run_id, record = new_run_id(), JobRecord()
    display = Display(console, record.notes)
    run = request.config.run
    control = JobControl(run_id, StopSwitch(run.grace_s, stop_time(run.deadline, run.max_runtime)))
    with display.shown(), open_session(run) as executor, stop_signals(control.stop):
        record.notes["executor"] = executor.name
        try:
            manifest = tokenize_dataset(request, executor, display, record, control)
        except MotionTokensError as error:
            is_staged = isinstance(error, GateFailedError)
            if record.counts["units"] or is_staged:
                outcome = {"status": "failed", "error": type(error).__name__, "exit_code": error.exit_code}
                write_run_record(output, run_id, record, outcome)
            if is_staged:
                _report_staged(output, record, run, console)
            raise
    if record.already_complete:
        console.print("already complete: every unit is tokenized and published", highlight=False)
    else:
        outcome = {"status": manifest.status, "version": manifest.version, "exit_code": 0}
        path = write_run_record(output, run_id, record, outcome)
        print_summary(console, output, manifest, record)
        console.print(f"  run record {path}", highlight=False)
        if record.gate is not None:
            print_gate(record.gate, manifest, console)
            if run.report:
                report_of_run(output, manifest, record.gate, console)
        place = escape(shlex.quote(without_secrets(request.output)))
        console.print(f"  prove it   {escape(program_text())} verify {place}", highlight=False, soft_wrap=True)
    return Tokenized(manifest, record)


def run_dry(request: TokenizeRequest, json_file: Path | None, console: Console) -> None:
    """Plan the job, say what it would write and compute, and write nothing of it.

    Raises:
        MotionTokensError: the job could not start, or its input has no windows.
    """
    display = Display(console)
    with display.shown(), open_session(request.config.run) as executor:
        display.on_stage("plan")
        job = prepare(request, executor, display)
        plan = make_plan(job.roots, job.contract.corpus)
        display.on_plan(plan, 0, sum(root.skipped for root in job.roots))
        estimate = estimate_job(job, plan, executor)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(estimate.described(), indent=1) + "\n")
    print_estimate(estimate, console)


def _report_staged(output: Folder, record: JobRecord, run: RunConfig, console: Console) -> None:
    """Write the report of a dataset whose gate failed: it shows what is wrong."""
    manifest = read_staged(output) or read_manifest(output)
    if run.report and record.gate is not None and manifest is not None and manifest.status == "staged":
        report_of_run(output, manifest, record.gate, console)
