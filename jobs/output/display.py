"""What a person sees while a job runs: a live display in a terminal, a line every few seconds elsewhere.

Knows counts and clocks, nothing of data.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from jobs.output.pace import Pace
from pipeline.plan.plan import Plan
from pipeline.run.account import UnitAccount
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Heartbeat

STAGE_WORDS = {
    "session": "starting Ray",
    "plan": "planning",
    "checksums": "reading input",
    "start": "starting",
    "workers": "starting workers",
    "tokenize": "tokenizing",
    "gate": "decoding a sample",
    "export": "exporting",
    "verify": "verifying",
}
LINE_INTERVAL_S = 5.0
IDS_SHOWN = 5


class Display(JobObserver):
    """Built by a command, for one job; owns the terminal while `shown`."""

    def __init__(self, console: Console) -> None:
        """Args: console: where to print."""
        self._console = console
        self._stage = ""
        self._counts: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._pace = Pace()
        self._shards = (0, 0)
        self._last_line = 0.0
        self._progress = stage_bar(console)
        self._bar = self._progress.add_task("starting", total=None)
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the display until the block ends."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True) as live:
            self._live = live
            yield

    def on_stage(self, name: str) -> None:
        """Start the stage's bar."""
        self._stage = name
        self._progress.reset(self._bar, description=STAGE_WORDS[name], total=None)
        if self._live is None:
            self._console.print(STAGE_WORDS[name], highlight=False)

    def on_plan(self, plan: Plan, num_done: int, num_skipped: int) -> None:
        """Show what is to be done."""
        total, num_units = plan.num_bytes, len(plan.units)
        self._pace.plan(plan, num_done)
        done = f", {num_done:,} of them tokenized before" if num_done else ""
        skipped = f"; {num_skipped:,} other files skipped" if num_skipped else ""
        self._console.print(f"  {num_units:,} units, {size_text(total)} of motion{done}{skipped}", highlight=False)

    def on_wait(self, other: Heartbeat) -> None:
        """Say whom this run waits for."""
        where = f"run {other.run_id} on {other.host.partition('/')[0]} (process {other.pid})"
        self._console.print(f"  {where} is active here: waiting until it ends", highlight=False, soft_wrap=True)

    def on_begun(self, num_windows: int, num_bytes: int) -> None:
        """Learn how many windows a byte of input holds, for the bar and the time left."""
        self._pace.begun(num_windows, num_bytes)

    def on_windows(self, num_windows: int) -> None:
        """Count windows, for the speed and the bar."""
        self._pace.encoded(num_windows)
        self._update_bar()
        self._say_line()

    def on_account(self, account: UnitAccount) -> None:
        """Count finished clips and drops."""
        self._counts.update(clips=account.num_clips)
        self._drops.update(account.drops)
        self._update_bar()
        self._say_line()

    def on_unknown_ids(self, setting: str, ids: Sequence[str]) -> None:
        """Warn of ids in a list that no clip has: they may be misspelt."""
        first = list(ids[:IDS_SHOWN])
        shown = escape(", ".join(first)) + (", .." if len(ids) > IDS_SHOWN else "")
        many = f"{len(ids):,} ids" if len(ids) > 1 else "one id"
        text = f"{setting} names {many} that no clip has: {shown}; compare with clip_id in index/clips.parquet"
        self._console.print(f"  [yellow]warning[/yellow]: {text}", highlight=False, soft_wrap=True)

    def on_damaged(self, paths: Sequence[str]) -> None:
        """Warn of damaged fragments: a disk may be failing."""
        shown = escape(", ".join(paths[:IDS_SHOWN])) + (", .." if len(paths) > IDS_SHOWN else "")
        text = f"{len(paths):,} fragments are damaged and are computed again: {shown}; look at the disk"
        self._console.print(f"  [yellow]warning[/yellow]: {text}", highlight=False, soft_wrap=True)

    def on_lost_tokenizers(self, limit_s: float) -> None:
        """Say what the job waits for, and how long."""
        text = f"the nodes of all tokenizers are lost: waiting {limit_s:g} s for a place to start others"
        self._console.print(f"  [yellow]warning[/yellow]: {text}", highlight=False, soft_wrap=True)

    def on_layout(self, num_shards: int, num_windows: int) -> None:
        """Show how many shards are to come."""
        self._shards = (0, num_shards)
        self._progress.update(self._bar, total=max(1, num_shards), completed=0)

    def on_shard(self, path: str) -> None:
        """Count a file."""
        done, total = self._shards
        self._shards = (done + 1, max(total, done + 1))
        self._progress.update(self._bar, completed=self._shards[0], total=max(1, self._shards[1]))
        self._say_line()

    def _update_bar(self) -> None:
        expected = self._pace.expected_windows
        if expected is not None:
            self._progress.update(self._bar, completed=min(self._pace.windows, expected), total=max(1, expected))

    def _facts(self) -> list[tuple[str, str]]:
        if self._stage in ("checksums", "export", "verify"):
            return [("files", f"{self._shards[0]:,} of {self._shards[1]:,}")]
        if self._stage != "tokenize":
            return []
        facts = [
            ("clips", f"{self._counts['clips']:,}"),
            ("windows", f"{self._pace.windows:,}"),
            ("windows/s", f"{self._pace.windows_per_s:,.0f}"),
        ]
        if self._drops:
            facts.append(("dropped", ", ".join(f"{count} {reason}" for reason, count in self._drops.most_common())))
        return facts

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_row(*(f"[dim]{name}[/dim] [bold]{value}[/bold]" for name, value in self._facts()))
        return Group(self._progress, table)

    def _say_line(self) -> None:
        now = time.monotonic()
        if self._live is not None or now - self._last_line < LINE_INTERVAL_S:
            return
        self._last_line = now
        if not self._facts():
            return
        task = self._progress.tasks[0]
        eta = f", {task.time_remaining:.0f} s left" if task.total and task.time_remaining else ""
        facts = "  ".join(f"{name} {value}" for name, value in self._facts())
        self._console.print(f"  {facts}{eta}", highlight=False)


def size_text(num_bytes: int) -> str:
    """Return a size in the unit that suits it."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def stage_bar(console: Console) -> Progress:
    """Return the bar of a stage: its name, how far it is, and the time left."""
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=46),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
    )


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural where it is not one."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
