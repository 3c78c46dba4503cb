"""The stages of ray_graph.py in a plain loop in this process: same functions, same order, same bytes.

Knows no Ray. `jobs/session/session.py` chooses which of the two runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.executors.executor import TokenizeProgress, TokenizeStages
from pipeline.plan.units import Unit
from pipeline.run.account import UnitAccount
from pipeline.run.tasks import Builder, Result, Task
from pipeline.stages.measure import UnitMeasurer, UnitStatistics


def tokenize_here(
    runs: Sequence[Sequence[Unit]], stages: TokenizeStages, progress: TokenizeProgress
) -> Iterator[UnitAccount]:
    """Read, tokenize and write in this process, one run after the other."""
    if not runs:
        return
    tokenizer = stages.make_tokenizer(stages.codec, stages.tokenizer, progress)
    progress.ready(0.0)
    for run in runs:
        if progress.is_stopping:
            return
        yield stages.writer.write(tokenizer.tokenize(stages.reader.read(run)))


def build_here(tasks: Sequence[Task], builder: Builder[Task, Result]) -> Iterator[Result]:
    """Do the tasks of an export in this process, one after the other."""
    for task in tasks:
        yield from builder.build(task)


def measure_here(
    runs: Sequence[Sequence[Unit]], measurer: UnitMeasurer, num_workers: int | None
) -> Iterator[UnitStatistics]:
    """Measure units in this process, one after the other."""
    for run in runs:
        for unit in run:
            yield measurer.measure(unit)
