"""What Ray is to find in the environment, on every way to start it: here alone, or the ways drift apart.

Imports the standard library only. `python -m jobs.session.ray_environment` prints what a shell sets before `ray start`.
"""

from __future__ import annotations

import os
import shlex

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # after 1 s, else: a new worker takes seconds to start
    "RAY_task_events_report_interval_ms": "0",  # else the head keeps the last 100,000 tasks and calls
    # Else a worker gives the memory of every row back to the system, and takes it again page by page.
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MIMALLOC_PURGE_DELAY": "-1",
}
"""Of nodes and workers. What a person set stays."""

DRIVER_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else a driver that uv started has uv start every worker
    # else reading runs ahead of the tokenizers until half of the object store is full
    "RAY_DATA_DOWNSTREAM_CAPACITY_OBJECT_STORE_BUDGET_UTIL_THRESHOLD": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a thread that outlives a stopped job starts another Ray
}
"""Of drivers, beside it: each sets it for itself, so that other jobs of a cluster keep what is theirs."""

SET_HERE: set[str] = set()
"""Names that this process has set for itself, so far."""


def chosen() -> dict[str, str]:
    """Return what nodes and workers are to have: what a person set in this process's environment, else the default."""
    return {name: os.environ.get(name, value) for name, value in RAY_ENVIRONMENT.items()}


def set_for_driver(set_here: set[str] = SET_HERE) -> dict[str, str]:
    """Set in this process what nobody set; to be called before Ray is imported, which reads some of it.

    Args:
        set_here: names that it has set so far; more are added.

    Returns:
        What the workers of a Ray that runs already may lack. Where its nodes, or the job that this process was
        submitted as, have it, this process was started with it.
    """
    for name, value in (RAY_ENVIRONMENT | DRIVER_ENVIRONMENT).items():
        if name not in os.environ:
            os.environ[name] = value
            set_here.add(name)
    return {name: value for name, value in RAY_ENVIRONMENT.items() if name in set_here}


if __name__ == "__main__":
    for name, value in chosen().items():
        print(f"export {name}={shlex.quote(value)}")


TOKEN_HINT = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on the cluster"
