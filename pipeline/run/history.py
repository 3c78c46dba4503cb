"""The runs of a dataset, from their run.json, and how each differs from the one before.

Knows no Ray, torch or Arrow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.run.code_counts import Drift, code_drift
from pipeline.run.ownership import HEARTBEAT_PATH
from pipeline.storage import Folder

READ_THREADS = 16
NO_RUNS = frozenset({HEARTBEAT_PATH.rpartition("/")[2], ".lock"})
"""Stands beside the folders of runs."""
NOTABLE_KEYS = ("spec_id", "executor")
"""Of run.json: what is said where it differs from the run before, besides versions and hardware."""


@dataclass(frozen=True)
class ComparedRun:
    """A run, and what of it differs from the one before that did the same kind of work."""

    run: Mapping[str, Any]
    """Its run.json."""
    speed_ratio: float | None
    """Windows a second by those of the run before that tokenized; None where there is none."""
    drop_share: float | None
    """Dropped clips by all clips of the run; None where it met none."""
    drop_share_before: float | None
    drift: Drift | None
    """Of the use of bits; None where one of the two did not count it."""
    changes: tuple[str, ...]
    """Settings, versions and hardware that are not those of the run before."""

    def described(self) -> dict[str, Any]:
        """Return it as plain values, for programs."""
        return {**vars(self), "run": dict(self.run), "drift": asdict(self.drift) if self.drift else None}


def read_runs(output: Folder, last: int) -> list[Mapping[str, Any]]:
    """Return run.json of the last runs, oldest first; what cannot be read is left out.

    Args:
        last: how many names are looked at, the newest.
    """
    names = [name for name in output.list_names("runs") if name not in NO_RUNS]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = pool.map(lambda name: _read_run(output, name), names[-last:])
        return [run for run in found if run is not None]


def _read_run(output: Folder, name: str) -> Mapping[str, Any] | None:
    try:
        tree = json.loads(output.read(f"runs/{name}/run.json"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def compare_runs(runs: Sequence[Mapping[str, Any]]) -> list[ComparedRun]:
    """Return each run beside the last one before it that tokenized anything.

    Args:
        runs: oldest first.
    """
    compared = []
    before: Mapping[str, Any] | None = None
    for run in runs:
        compared.append(_compare(run, before))
        if run.get("counts", {}).get("windows"):
            before = run
    return compared


def _compare(run: Mapping[str, Any], before: Mapping[str, Any] | None) -> ComparedRun:
    speeds = [one.get("windows_per_s") if one else None for one in (run, before)]
    return ComparedRun(
        run=run,
        speed_ratio=speeds[0] / speeds[1] if speeds[0] and speeds[1] else None,
        drop_share=_drop_share(run),
        drop_share_before=_drop_share(before) if before else None,
        drift=code_drift(run.get("codes", {}), before.get("codes", {})) if before else None,
        changes=_changes(run, before) if before else (),
    )


def _drop_share(run: Mapping[str, Any]) -> float | None:
    dropped = sum(run.get("drops", {}).values())
    clips = run.get("counts", {}).get("clips", 0) + dropped
    return dropped / clips if clips else None


def _changes(run: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[str, ...]:
    pairs = [(key, run.get(key), before.get(key)) for key in NOTABLE_KEYS]
    for section in ("versions", "hardware"):
        here, there = run.get(section, {}), before.get(section, {})
        pairs += [(f"{section}.{key}", here.get(key), there.get(key)) for key in sorted({*here, *there})]
    return tuple(f"{name}: {_shown(old)} -> {_shown(new)}" for name, new, old in pairs if new != old)


def _shown(value: object) -> str:
    return "none" if value in (None, "", []) else str(value)
