"""The command export: a session, a display, the export, run.json and the summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from jobs.output.display import Display
from jobs.output.run_record import RecordNotes, new_run_id, print_summary, write_run_record
from jobs.session.session import open_session
from pipeline.job.export_job import export_datasets
from pipeline.run.observer import Audience
from pipeline.run.ownership import Ownership
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.run.tasks import Builder, Result, Task
from pipeline.settings.job_config import JobConfig
from pipeline.storage import Folder


def run_export(datasets: Sequence[str], output: str, config: JobConfig, console: Console) -> None:
    """Export and tell about it.

    Raises:
        MotionTokensError: the export cannot start, or no clip is left.
    """
    record, run_id, stop = JobRecord(), new_run_id(), StopSwitch()
    display = Display(console)
    observer = Audience([RecordNotes(record), display])
    folder = Folder(output, config.run.storage_options)
    ownership = Ownership(folder, run_id, config.run.when_active, on_wait=display.on_wait, on_lost=stop.ask)
    with display.shown(), open_session(config.run) as executor:

        def build(tasks: Sequence[Task], builder: Builder[Task, Result]) -> Iterator[Result]:
            for result in executor.build(tasks, builder):
                yield result
                stop.check(is_drained=True)

        executor.start()
        record.lap("start")
        manifest = export_datasets(datasets, ownership, config, build, observer)
        record.lap("export")
        record.notes["executor"] = executor.name
    outcome = {"status": manifest.status, "version": manifest.version, "exit_code": 0}
    write_run_record(folder, run_id, record, outcome)
    print_summary(console, folder, manifest, record)
