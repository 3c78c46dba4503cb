"""How a run ended, as plain values: for the log, and for whoever is to be told.

Knows no data.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from jobs.session.ray_start import is_loss_of_ray
from jobs.session.signals import EXIT_STOPPED, stop_behind
from pipeline.dataset.manifest import Manifest
from pipeline.errors import IncompleteError, MotionTokensError
from pipeline.run.record import JobRecord


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that an error ends."""
    if isinstance(error, MotionTokensError):
        return error.exit_code
    if stop_behind(error) is not None:
        return EXIT_STOPPED
    is_lost = isinstance(error, Exception) and is_loss_of_ray(error)
    return IncompleteError.exit_code if is_lost else MotionTokensError.exit_code


def outcome_of_error(error: BaseException) -> dict[str, Any]:
    """Return what run.json says of an error that ended a run."""
    stopped = stop_behind(error)
    found = stopped or error
    status = "stopped" if stopped else "failed"
    return {"status": status, "error": type(found).__name__, "exit_code": exit_code_of(error)}


def outcome_of_dataset(manifest: Manifest) -> dict[str, Any]:
    """Return what run.json says of a run that left a dataset."""
    return {"status": manifest.status, "version": manifest.version, "exit_code": 0}


def described_run(run_id: str, output: str, record: JobRecord, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of a run that has ended.

    Args:
        output: where the dataset stands, without secrets.
        outcome: as in run.json, with `message` after an error and `run_record` where one was written.
    """
    return {
        "run_id": run_id,
        "output": output,
        "host": platform.node(),
        **outcome,
        "already_complete": record.already_complete,
        "counts": dict(record.counts),
        "drops": dict(record.drops),
        "seconds": {name: round(s, 3) for name, s in record.seconds.items()},
        "windows_per_s": record.windows_per_s,
    }
