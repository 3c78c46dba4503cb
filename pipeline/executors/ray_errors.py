"""What Ray's errors, and places that it cannot give, mean for a job.

Knows no stage and no graph.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray

from pipeline.errors import IncompleteError, MotionTokensError, ResourcesError

LOSS_PAUSE_S = 0.5
"""After workers are lost: a signal to the whole process group may reach them before it reaches this process."""


def no_place(num_workers: int, each: Mapping[str, float], waited_s: float, before: str = "") -> ResourcesError:
    """Return what to tell where workers that take so much each did not all stand in time.

    Args:
        before: what happened before, as the beginning of a sentence.
    """
    total, free = ray.cluster_resources(), ray.available_resources()
    wanted = {name: amount for name, amount in each.items() if amount}
    found = ", ".join(f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free now)" for name in wanted or each)
    a_worker = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items()) or "no resources"
    return ResourcesError(
        f"{before}{num_workers} workers of {a_worker} each did not stand within {waited_s:g} s:"
        f" the cluster has {found}."
        " Ask for less (--workers, run.min_workers, run.gpus_per_worker), wait longer (run.wait_for_resources_s)"
        " or add nodes; then run the same command again"
    )


@contextmanager
def raised_as_own(hub: Any = None) -> Iterator[None]:
    """Raise what `own_error` makes of an error; one that says that time is over stays what it is."""
    try:
        yield
    except ray.exceptions.GetTimeoutError:
        raise
    except Exception as error:
        found = own_error(error, hub)
        if found is error:
            raise  # `from` would make it the cause of itself
        raise found from error


def own_error(error: BaseException, hub: Any = None) -> BaseException:
    """Return the error of ours that Ray wrapped, or what a loss of workers means for the job.

    An error of another kind inside a task is a fault of the program and comes back as it is.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ray.exceptions.RayTaskError) and seen.cause is not None:
            seen = seen.cause  # before the next question: Ray's wrapper takes the class of what it wraps
        elif isinstance(seen, MotionTokensError):
            return seen
        else:
            seen = seen.__cause__
    with suppress(ray.exceptions.RayError):
        failure: Exception | None = ray.get(hub.failure.remote(), timeout=1) if hub else None
        if failure is not None:
            return failure
    is_loss = isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)
    if not is_loss:
        return error
    time.sleep(LOSS_PAUSE_S)
    finding = str(error).strip().splitlines()[0]
    return IncompleteError(
        f"Ray lost workers of the job ({type(error).__name__}: {finding}): run the same command again"
    )
