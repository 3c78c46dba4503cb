"""What a benchmark is asked and what it answers: requests, results, and their place in the JSON file.

Knows no suite.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitwise_vae.config import BitwiseVAEConfig
from pipeline.settings.job_config import JobConfig

SPREAD = "max - min of the runs"


@dataclass(frozen=True)
class BenchRequest:
    """What to measure, and how often; `config` holds precision and how the job runs, `motion_format` what motion is
    made as where a suite leaves the choice."""

    windows: int
    repeats: int
    config: JobConfig
    codec: BitwiseVAEConfig = field(default_factory=BitwiseVAEConfig)
    motion_format: str = "parquet"


@dataclass(frozen=True)
class BenchResult:
    """One measured quantity with its runs, and the runs of what it is compared with."""

    suite: str
    name: str
    unit: str
    runs: tuple[float, ...]
    baseline_name: str | None = None
    baseline_runs: tuple[float, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median of the runs."""
        return statistics.median(self.runs)

    @property
    def baseline(self) -> float | None:
        """Median of the baseline's runs, None without a baseline."""
        return statistics.median(self.baseline_runs) if self.baseline_runs else None

    @property
    def ratio(self) -> float | None:
        """Median over the baseline's median, None without a baseline."""
        return self.median / self.baseline if self.baseline else None

    @property
    def paired_ratio(self) -> float | None:
        """Median of the ratios of runs that followed each other, None without a baseline."""
        pairs = zip(self.runs, self.baseline_runs, strict=True) if self.baseline_runs else ()
        ratios = [ours / theirs for ours, theirs in pairs]
        return statistics.median(ratios) if ratios else None

    def to_json(self) -> dict[str, Any]:
        """Return the result as the JSON file states it."""
        return {
            "suite": self.suite,
            "name": self.name,
            "unit": self.unit,
            "median": _rounded(self.median),
            "spread": _rounded(_range(self.runs)),
            "runs": [_rounded(value) for value in self.runs],
            "baseline": _rounded(self.baseline),
            "baseline_name": self.baseline_name,
            "baseline_spread": _rounded(_range(self.baseline_runs)) if self.baseline_runs else None,
            "baseline_runs": [_rounded(value) for value in self.baseline_runs],
            "ratio": _rounded(self.ratio),
            "paired_ratio": _rounded(self.paired_ratio),
            **self.details,
        }


Report = Callable[[str, int, int], None]
"""Told what is being done, and how many steps of how many are done."""

Suite = Callable[[BenchRequest, Report], list[BenchResult]]


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
