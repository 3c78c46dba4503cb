"""How fast a job would go here: some of its units through the real stages for a while, and nothing kept of it.

Knows no Ray. Readers read, tokenizers compute and writers build fragments as in a run; only the last step, putting a
fragment into the store, is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.errors import IncompleteError, NoClipLeftError
from pipeline.estimate.window_costs import NO_STORE
from pipeline.estimate.window_count import in_drawn_order
from pipeline.executors.executor import Executor, TokenizeProgress
from pipeline.job.request import Job
from pipeline.job.tokenize_job import runs_and_stages
from pipeline.plan.units import Unit
from pipeline.run.account import UnitAccount
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch

WARM_UP_SHARE = 1 / 3
"""Of the time measured, at its beginning, that does not count: tokenizers do not all begin at once, and the first rows
were read while they started, so that a GPU is faster at first than reading lets it be."""


@dataclass(frozen=True)
class ProbeFigures:
    """What was measured; built by `probe_units`."""

    executor: str
    num_actors: int
    num_gpus: float
    """That these take; 0 on CPUs."""
    workers_s: float
    """Until a first tokenizer stood ready."""
    first_s: float
    """From then to the first windows."""
    measured_s: float
    num_windows: int
    """Encoded in the time measured."""
    windows_per_s: float
    """Of all tokenizers together, once in swing."""
    num_runs: int
    """Tasks that went through all stages."""


def probe_units(
    job: Job, missing: Sequence[Unit], executor: Executor, seconds: float, observer: JobObserver
) -> ProbeFigures:
    """Send units through the stages for so many seconds after the first tokenizer stands ready; write nothing.

    Args:
        job: prepared, so that it could start.
        missing: its units without a fragment, at least one.
        executor: started here.
        observer: told of windows and accounts as in a run.

    Raises:
        NoClipLeftError: none of the units that were probed has a window.
        IncompleteError: storage does not answer, or workers were lost.
    """
    began = time.monotonic()
    executor.start()
    runs, stages = runs_and_stages(job, missing, executor)
    stop = StopSwitch()
    watch = _Watch(seconds, stop, observer)
    progress = _ProbeProgress(watch, JobRecord(), stop)
    drawn = {unit.key: place for place, unit in enumerate(in_drawn_order(missing))}
    runs.sort(key=lambda run: drawn[run[0].key])
    kept_nowhere = replace(
        stages,
        tokenizer=replace(stages.tokenizer, store=NO_STORE),
        writer=replace(stages.writer, store=NO_STORE),
    )
    try:
        for account in executor.tokenize(runs, kept_nowhere, progress):
            progress.committed(account)
    except IncompleteError:
        if not stop.is_set:
            raise
    if not watch.num_windows:
        raise NoClipLeftError(
            f"no window in {watch.num_runs} tasks that were probed: probe for longer, --probe SECONDS"
        )
    num_gpus = job.config.run.gpus_of(stages.num_actors, executor.num_gpus)
    return watch.figures(executor.name, stages.num_actors, num_gpus, began)


class _ProbeProgress(TokenizeProgress):
    """Leaves in the middle of a task, too, once the time is over: nothing of it is to be kept."""

    def encoded(self, num_windows: int) -> None:
        super().encoded(num_windows)
        self.check()


class _Watch(JobObserver):
    """Takes the times of a probe, and ends it."""

    def __init__(self, seconds: float, stop: StopSwitch, observer: JobObserver) -> None:
        self._seconds, self._stop, self._observer = seconds, stop, observer
        self._ready_at: float | None = None
        self._marks: list[tuple[float, int]] = []
        self.num_windows = self.num_runs = 0

    def on_stage(self, name: str) -> None:
        self._observer.on_stage(name)
        if name == "tokenize":
            self._ready_at = time.monotonic()

    def on_begun(self, num_windows: int, num_bytes: int) -> None:
        self._observer.on_begun(num_windows, num_bytes)

    def on_windows(self, num_windows: int) -> None:
        self._observer.on_windows(num_windows)
        self.num_windows += num_windows
        now = time.monotonic()
        if num_windows:
            self._marks.append((now, self.num_windows))
        if self._ready_at is not None and now > self._ready_at + self._seconds and self._marks:
            self._stop.ask("the probe is over")

    def on_account(self, account: UnitAccount) -> None:
        self._observer.on_account(account)
        self.num_runs += 1

    def figures(self, executor: str, num_actors: int, num_gpus: float, began: float) -> ProbeFigures:
        """Return what was measured since `began`, on the monotonic clock."""
        ready_at = self._ready_at or began
        first, last = (self._marks[0], self._marks[-1]) if self._marks else ((ready_at, 0), (time.monotonic(), 0))
        warm = [mark for mark in self._marks if mark[0] >= first[0] + WARM_UP_SHARE * (last[0] - first[0])]
        begin = warm[0] if len(warm) > 1 else (ready_at, 0)
        span = max(last[0] - begin[0], 1e-9)
        return ProbeFigures(
            executor=executor,
            num_actors=num_actors,
            num_gpus=num_gpus,
            workers_s=ready_at - began,
            first_s=first[0] - ready_at,
            measured_s=span,
            num_windows=last[1] - begin[1],
            windows_per_s=(last[1] - begin[1]) / span,
            num_runs=self.num_runs,
        )
