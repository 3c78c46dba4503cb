"""A run as JSON, a line an event, for machines that gather logs.

Knows counts and clocks, nothing of data.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from jobs.output.display import IDS_SHOWN, LINE_INTERVAL_S
from jobs.output.pace import Pace
from pipeline.plan.plan import Plan
from pipeline.run.account import UnitAccount
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Heartbeat


class JsonLog(JobObserver):
    """Built by a command in the place of a display, for one job.

    Args:
        run_id: stands in every line.
        stream: where to write; default: standard output.
    """

    def __init__(self, run_id: str, stream: TextIO | None = None) -> None:
        self._run_id, self._stream = run_id, stream or sys.stdout
        self._pace = Pace()
        self._counts: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._stage = ""
        self._last_line = time.monotonic()

    def say(self, event: str, fields: Mapping[str, Any], level: str = "info") -> None:
        """Write a line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "level": level, "run_id": self._run_id, "event": event, **fields}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def on_stage(self, name: str) -> None:
        """Say that a stage begins."""
        self._stage = name
        self._counts["files"] = 0
        self.say("stage", {"stage": name})

    def on_plan(self, plan: Plan, num_done: int, num_skipped: int) -> None:
        """Say what is to be done."""
        self._pace.plan(plan, num_done)
        counts = {"units": len(plan.units), "units_done": num_done, "skipped_files": num_skipped}
        self.say("plan", {"plan": plan.digest, "input_bytes": plan.num_bytes, **counts})

    def on_wait(self, other: Heartbeat) -> None:
        """Say whom this run waits for."""
        self.say("wait", {"other_run_id": other.run_id, "host": other.host, "pid": other.pid}, "warning")

    def on_begun(self, num_windows: int, num_bytes: int) -> None:
        """Learn how many windows a byte of input holds."""
        self._pace.begun(num_windows, num_bytes)

    def on_windows(self, num_windows: int) -> None:
        """Say now and then how far the run is."""
        self._pace.encoded(num_windows)
        self._say_progress()

    def on_account(self, account: UnitAccount) -> None:
        """Count what was committed."""
        self._counts.update(units=account.num_units, clips=account.num_clips, input_bytes=account.num_bytes)
        self._drops.update(account.drops)
        self._say_progress()

    def on_unknown_ids(self, setting: str, ids: Sequence[str]) -> None:
        """Warn of ids in a list that no clip has."""
        self.say("unknown_ids", {"setting": setting, "count": len(ids), "first": list(ids[:IDS_SHOWN])}, "warning")

    def on_damaged(self, paths: Sequence[str]) -> None:
        """Warn of damaged fragments: a disk may be failing."""
        self.say("damaged_fragments", {"count": len(paths), "first": list(paths[:IDS_SHOWN])}, "warning")

    def on_lost_tokenizers(self, limit_s: float) -> None:
        """Say what the job waits for, and how long."""
        self.say("lost_tokenizers", {"limit_s": limit_s}, "warning")

    def on_shard(self, path: str) -> None:
        """Count files that were written or read."""
        self._counts["files"] += 1
        self._say_progress()

    def _say_progress(self) -> None:
        now = time.monotonic()
        if now - self._last_line < LINE_INTERVAL_S:
            return
        self._last_line = now
        speed, left = round(self._pace.windows_per_s, 1), self._pace.remaining_s
        fields = {
            "stage": self._stage,
            **self._counts,
            "windows": self._pace.windows,
            "windows_per_s": speed,
            "drops": dict(self._drops),
        }
        if self._stage == "tokenize" and left is not None:
            fields["remaining_s"] = round(left, 1)
        self.say("progress", fields)
