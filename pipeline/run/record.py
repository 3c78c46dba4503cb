"""What happened in a run, for run.json."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline.run.account import UnitAccount
from pipeline.run.code_counts import add_codes


@dataclass
class JobRecord:
    """What happened, for run.json; grows while the job runs."""

    seconds: dict[str, float] = field(default_factory=dict)
    stage_seconds: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    audio: dict[str, float] = field(default_factory=dict)
    """Clips with audio, those whose audio drifts by more than a frame, and the largest drift; empty without audio."""
    codes: dict[str, Any] = field(default_factory=dict)
    """How often bits are one in some of the windows; empty where none was tokenized."""
    notes: dict[str, Any] = field(default_factory=dict)
    already_complete: bool = False
    _since: float = field(default_factory=time.perf_counter)

    @property
    def windows_per_s(self) -> float | None:
        """Windows of this run by the seconds of its stage `tokenize`, None where nothing was tokenized."""
        seconds = self.seconds.get("tokenize", 0.0)
        return round(self.counts["windows"] / seconds, 2) if seconds else None

    def lap(self, name: str, ended_s_ago: float = 0.0) -> None:
        """Book the time since the last lap under a name."""
        now = time.perf_counter() - ended_s_ago
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def book(self, account: UnitAccount) -> None:
        """Add the account of a run of units."""
        self.counts.update(
            units=account.num_units,
            clips=account.num_clips,
            windows=account.num_windows,
            frames=account.num_frames,
            bytes=account.num_bytes,
        )
        self.drops.update(account.drops)
        self.stage_seconds.update(account.seconds)
        self.codes = add_codes(self.codes, account.codes)
        for name, value in account.audio.items():
            standing = self.audio.get(name, 0)
            self.audio[name] = max(standing, value) if name == "largest_drift_s" else standing + value
