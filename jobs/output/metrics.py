"""What Prometheus sees of a run: counts, queues, waiting, and when it will be done, through the metrics of Ray.

Knows counts and clocks, nothing of data. Without a Ray that runs, nothing is counted. Ray puts `ray_` before every
name; what a name means stands in docs/operations.md, and jobs/deploy/grafana_dashboard.json draws all of them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.output.pace import Pace
from pipeline.plan.plan import Plan
from pipeline.run.account import UnitAccount
from pipeline.run.flow import STATES, Flow
from pipeline.run.observer import JobObserver

PREFIX = "motion_tokens_"
COUNTERS = {
    "windows_total": ("Windows encoded, those of repeated tasks included.", ()),
    "units_total": ("Units committed.", ()),
    "clips_total": ("Clips of committed units, without those that were dropped.", ()),
    "dropped_clips_total": ("Clips dropped, by reason.", ("reason",)),
    "input_bytes_total": ("Bytes of input of committed units.", ()),
    "stage_seconds_total": ("Seconds that tasks and tokenizers worked, added up: read, tokenize, write.", ("stage",)),
    "tokenizer_wait_seconds_total": ("Seconds that tokenizers, with their GPUs, waited for motion, added up.", ()),
    "retries_total": ("Repetitions: task after a process died, storage after a request failed.", ("kind",)),
    "shards_total": ("Shards and other files written by the export.", ()),
}
GAUGES = {
    "units_remaining": ("Units of the plan that have no fragment yet.", ()),
    "units_in_flight": ("Units between the stages: reading, read, tokenizing, tokenized, writing.", ("state",)),
    "windows_expected": ("Windows of this run in all, by what was read so far.", ()),
    "start_timestamp_seconds": ("When the run began, Unix time.", ()),
    "expected_end_timestamp_seconds": ("When all windows will be encoded at the mean speed so far, Unix time.", ()),
    "deadline_timestamp_seconds": ("When the run stops by itself, Unix time; only where it does.", ()),
    "stage": ("1 for the stage that the run is in, 0 for those it was in.", ("stage",)),
}
"""Name without prefix -> description, and its own label, if any, beside `run_id` and `output`."""
REPEAT_S = 2.0
"""Less than the interval at which Ray reports, 10 s unless it is set otherwise."""


class MetricsObserver(JobObserver):
    """Built by a command, for one job; makes its instruments as soon as Ray runs, which may be after the plan.

    Args:
        run_id: label of every metric.
        output: likewise; where the dataset stands, without secrets.
        seconds_left: until the run stops by itself, None without a limit.
    """

    def __init__(self, run_id: str, output: str, seconds_left: float | None) -> None:
        self._labels = {"run_id": run_id, "output": output}
        self._pace = Pace()
        self._instruments: dict[str, Any] = {}
        self._shown: dict[tuple[str, str], float] = {}
        """Gauge and the value of its own label, empty without one -> what it shows."""
        self._began = time.time()
        self._deadline = None if seconds_left is None else self._began + seconds_left
        self._remaining: int | None = None
        self._stage = ""

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Show every gauge again and again until the block ends: Ray forgets one that is not set for a while."""
        is_over = threading.Event()

        def repeat() -> None:
            while not is_over.wait(REPEAT_S):
                for (name, label), value in list(self._shown.items()):
                    self._instruments[name].set(value, self._tags(name, label))

        thread = threading.Thread(target=repeat, daemon=True, name="gauges")
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def on_stage(self, name: str) -> None:
        """Show the stage; nothing remains in flight, and no end is expected, where tokenizing is over."""
        before, self._stage = self._stage, name
        if not self._is_ready():
            return
        if before:
            self._set("stage", 0, before)
        self._set("stage", 1, name)
        if before == "tokenize":
            self.on_flow(Flow(dict.fromkeys(STATES, 0), {}))

    def on_plan(self, plan: Plan, num_done: int, num_skipped: int) -> None:
        """Learn what is to be done."""
        self._pace.plan(plan, num_done)
        self._remaining = len(plan.units) - num_done

    def on_begun(self, num_windows: int, num_bytes: int) -> None:
        """Show how many windows there will be."""
        self._pace.begun(num_windows, num_bytes)
        if self._pace.expected_windows is not None and self._is_ready():
            self._set("windows_expected", self._pace.expected_windows)

    def on_windows(self, num_windows: int) -> None:
        """Count windows, and show when they will be done."""
        self._pace.encoded(num_windows)
        if not self._is_ready():
            return
        self._add("windows_total", num_windows)
        if (left := self._pace.remaining_s) is not None:
            self._set("expected_end_timestamp_seconds", time.time() + left)

    def on_account(self, account: UnitAccount) -> None:
        """Count what was committed."""
        if self._remaining is not None:
            self._remaining -= account.num_units
        if not self._is_ready():
            return
        self._set("units_remaining", self._remaining or 0)
        self._add("units_total", account.num_units)
        self._add("clips_total", account.num_clips)
        self._add("input_bytes_total", account.num_bytes)
        for reason, count in account.drops.items():
            self._add("dropped_clips_total", count, reason)
        for stage in ("read", "tokenize", "write"):
            self._add("stage_seconds_total", account.seconds.get(stage, 0.0), stage)
        self._add("tokenizer_wait_seconds_total", account.seconds.get("wait", 0.0))

    def on_flow(self, flow: Flow) -> None:
        """Show where units stand, and count repetitions."""
        if not self._is_ready():
            return
        for state, num_units in flow.in_flight.items():
            self._set("units_in_flight", num_units, state)
        for kind, count in flow.retries.items():
            self._add("retries_total", count, kind)

    def on_shard(self, path: str) -> None:
        """Count a file of the export."""
        if self._stage == "export" and self._is_ready():
            self._add("shards_total", 1)

    def _is_ready(self) -> bool:
        """Return whether Ray takes metrics; make the instruments when it begins to."""
        if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
            return False
        if not self._instruments:
            from ray.util import metrics

            self._instruments = {
                name: kind(PREFIX + name, description=description, tag_keys=(*self._labels, *own))
                for table, kind in ((COUNTERS, metrics.Counter), (GAUGES, metrics.Gauge))
                for name, (description, own) in table.items()
            }
            self._set("start_timestamp_seconds", self._began)
            self._set("units_remaining", self._remaining or 0)
            if self._deadline is not None:
                self._set("deadline_timestamp_seconds", self._deadline)
        return True

    def _set(self, name: str, value: float, label: str = "") -> None:
        self._shown[name, label] = value
        self._instruments[name].set(value, self._tags(name, label))

    def _add(self, name: str, value: float, label: str = "") -> None:
        if value > 0:  # Ray refuses 0
            self._instruments[name].inc(value, self._tags(name, label))

    def _tags(self, name: str, label: str) -> dict[str, str]:
        _, own = GAUGES.get(name) or COUNTERS[name]
        return self._labels | dict.fromkeys(own, label)
