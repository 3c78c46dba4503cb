"""What the builders of an export look like to whoever runs them: this process, or Ray.

Knows no Ray, torch or storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
TaskIn = TypeVar("TaskIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


class Builder(Protocol[TaskIn, ResultOut]):
    """Built by the driver, sent to every task; owns addresses and settings only."""

    def build(self, task: TaskIn) -> Iterator[ResultOut]:
        """Do one task and yield what came of it; it may be done twice, to the same bytes."""


class RunTasks(Protocol):
    """Runs tasks, here or elsewhere, and yields their results in any order."""

    def __call__(self, tasks: Sequence[Task], builder: Builder[Task, Result]) -> Iterator[Result]:
        """Yield the results of all tasks."""
