"""The command stats: a session, a bar, the pass, stats.json, its picture and a summary.

Knows no data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from rich.console import Console
from rich.markup import escape

from jobs.commands.codec.statistics_summary import print_statistics
from jobs.output.display import counted, size_text, stage_bar
from jobs.session.session import open_session
from pipeline.errors import ConfigError, OutputMismatchError
from pipeline.plan.plan import Plan
from pipeline.stages.measure import UnitStatistics
from pipeline.statistics.picture import picture_of
from pipeline.statistics.statistics_job import StatisticsObserver, StatisticsRequest, measure_motion
from pipeline.storage import parent_and_name, without_secrets

LINE_INTERVAL_S = 5.0


def run_stats(request: StatisticsRequest, out: str, console: Console) -> None:
    """Measure motion, write its statistics and a picture of them, and tell about it.

    Raises:
        MotionTokensError: the request cannot start, or no clip could be measured.
    """
    folder, name = parent_and_name(out, request.config.run.storage_options)
    if not name.endswith(".json"):
        raise ConfigError(f"{without_secrets(out)}: name a file that ends in .json; its picture stands beside it")
    if folder.list_names(name):
        raise OutputMismatchError(f"{without_secrets(out)} is a folder: name a file")
    begin = time.perf_counter()
    bar = _Bar(console)
    with open_session(request.config.run) as executor, bar.shown():
        statistics = measure_motion(request, executor, bar)
    picture = str(PurePosixPath(name).with_suffix(".png"))
    folder.publish(name, statistics.to_bytes())
    folder.publish(picture, picture_of(statistics))
    print_statistics(statistics, console)
    seconds = time.perf_counter() - begin
    console.print(f"  measured   {size_text(bar.num_bytes)} in {seconds:.1f} s", highlight=False)
    for written in (name, picture):
        place = escape(without_secrets(folder.url_of(written)))
        console.print(f"  written    {place}", highlight=False, soft_wrap=True)


class _Bar(StatisticsObserver):
    """Shows how much is measured: a bar in a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self.num_bytes = 0
        self._console = console
        self._total = self._done = 0
        self._last_line = time.monotonic()
        self._progress = stage_bar(console)
        self._task = self._progress.add_task("planning", total=None)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar until the block ends."""
        if not self._console.is_terminal:
            yield
            return
        with self._progress:
            yield

    def on_plan(self, plan: Plan, num_skipped: int) -> None:
        self._total = plan.num_bytes
        self._progress.update(self._task, description="measuring", total=max(1, plan.num_bytes))
        skipped = f"; {num_skipped:,} other files skipped" if num_skipped else ""
        self._console.print(
            f"  {counted(len(plan.units), 'unit')}, {size_text(plan.num_bytes)} of motion{skipped}", highlight=False
        )

    def on_unit(self, unit: UnitStatistics) -> None:
        self.num_bytes += unit.num_bytes
        self._progress.update(self._task, completed=self.num_bytes)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > LINE_INTERVAL_S:
            self._last_line = now
            self._console.print(f"  {size_text(self.num_bytes)} of {size_text(self._total)} measured", highlight=False)
