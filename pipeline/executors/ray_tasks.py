"""What Ray does outside the graph: tasks of an export, a question to a worker, a read that may kill its process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from pipeline.executors.executor import Answer
from pipeline.executors.ray_errors import no_place, raised_as_own
from pipeline.plan.units import Unit
from pipeline.run.tasks import Builder, Result, Task
from pipeline.stages.read import UnitReader


def ask_with_ray(ask: Callable[[], Answer], each: Mapping[str, float], wait_s: float) -> Answer:
    """Call a function in a worker of its own, with a tokenizer's place on the cluster, and return its answer.

    Raises:
        ResourcesError: there is no such place in time.
        IncompleteError: the worker was lost.
    """
    host: Any = ray.remote(_Asked).options(num_gpus=each["GPU"], num_cpus=each["CPU"]).remote()
    try:
        with raised_as_own():
            ray.get(host.__ray_ready__.remote(), timeout=wait_s)
            answer: Answer = ray.get(host.answer.remote(ask))
    except ray.exceptions.GetTimeoutError as error:
        raise no_place(1, each, wait_s) from error
    finally:
        ray.kill(host)
    return answer


def survives_with_ray(reader: UnitReader, unit: Unit) -> bool:
    """Read every clip of a unit in a worker, and say whether the worker lived; an exception is no death."""
    try:
        ray.get(ray.remote(max_retries=0, num_cpus=1)(_touch).remote(reader, unit))
    except ray.exceptions.RayTaskError:
        return True
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return False
    return True


def _touch(reader: UnitReader, unit: Unit) -> None:
    reader.touch(unit)


def build_with_ray(tasks: Sequence[Task], builder: Builder[Task, Result]) -> Iterator[Result]:
    """Do the tasks of an export in Ray tasks, a few ahead of what is taken."""
    build: Any = ray.remote(num_cpus=1)(_build_remotely)
    remote_builder = ray.put(builder)
    ahead = max(2, int(2 * ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    for task in tasks:
        waiting.append(build.remote(remote_builder, task))
        if len(waiting) >= ahead:
            yield from _first_done(waiting)
    while waiting:
        yield from _first_done(waiting)


def _build_remotely(builder: Builder[Task, Result], task: Task) -> list[Result]:
    return list(builder.build(task))


def _first_done(waiting: list[Any]) -> list[Any]:
    done, rest = ray.wait(waiting, num_returns=1)
    waiting[:] = rest
    with raised_as_own():
        results: list[Any] = ray.get(done[0])
    return results


class _Asked:
    """Answers one question where it was placed; built and ended by `ask_with_ray`."""

    def answer(self, ask: Callable[[], Any]) -> Any:
        """Return what a function gives here."""
        return ask()
