"""The stages of a job as a Ray Data graph, in order, on one page.

    units --read--> motion --tokenize--> bits --write--> fragments

One row is one run of units: tasks read it, actors tokenize and write it. What a stage does stands in stages/; here is
only who calls whom, and on what. plain_loop.py calls the same stages without Ray.
Exactly-once comes from planned units and atomic commits, never from Ray: a row may pass a stage twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ray
from ray.data import ActorPoolStrategy

from pipeline.errors import IncompleteError
from pipeline.executors.executor import (
    WRITER_CPUS,
    TokenizeProgress,
    TokenizeStages,
    num_writers,
    writes_at_once,
)
from pipeline.executors.ray_errors import raised_as_own
from pipeline.executors.ray_hosts import HostedReader, HostedTokenizer, HostedWriter
from pipeline.executors.ray_hub import start_hub
from pipeline.executors.ray_rows import configure_ray_data, rows_of
from pipeline.executors.ray_watch import Watch
from pipeline.plan.units import Unit
from pipeline.run.account import UnitAccount
from pipeline.stages.blocks import units_to_text

UnitRun = Sequence[Unit]
CALLS_AT_ONCE, CALLS_AHEAD = 2, 2
"""Rows that a tokenizer on a GPU has in work at a time; rows that one on a CPU is handed before their turn."""
FEWEST_GPU_CALLS_AHEAD, MOST_GPU_CALLS_AHEAD, GPU_AHEAD_BYTES = 4, 16, 2 << 30
"""Ray Data looks about every 0.1 s for what has finished and hands out more, and later where many rows are under way;
in that time a GPU is through with three rows of 128 MiB or more."""
READER_CPUS, READER_CPUS_BESIDE_GPUS = 0.5, 0.75
"""What a reader reserves. Beside GPUs there is about one a core then: as many processes as Ray starts at once."""
CRASH_RETRIES = 2
"""Tries of a task after its process died; then its units are left to be looked at one by one."""


def tokenize_with_ray(
    runs: Sequence[UnitRun], stages: TokenizeStages, progress: TokenizeProgress
) -> Iterator[UnitAccount]:
    """Read in Ray tasks, tokenize and write in pools of actors; only accounts reach the driver."""
    if not runs:
        return
    configure_ray_data()
    hub = start_hub(stages.codec)
    rows = ray.data.from_items([{"units": units_to_text(run)} for run in runs], override_num_blocks=len(runs))
    one_row = {"batch_size": 1, "batch_format": "pyarrow"}

    reader_cpus = READER_CPUS_BESIDE_GPUS if stages.gpus_per_actor else READER_CPUS
    reader = HostedReader(stages.reader, hub)
    motion = rows.map_batches(reader, num_cpus=reader_cpus, max_retries=CRASH_RETRIES, **one_row)
    tokens = motion.map_batches(
        HostedTokenizer,
        fn_constructor_args=(hub, stages.tokenizer, stages.make_tokenizer),
        compute=_actor_pool(stages, gpu_calls_ahead(runs)),
        num_cpus=stages.cpus_per_actor,
        num_gpus=stages.gpus_per_actor,
        max_restarts=-1,
        max_task_retries=CRASH_RETRIES,
        **one_row,
    )
    accounts = tokens.map_batches(
        HostedWriter,
        fn_constructor_args=(hub, stages.writer),
        compute=_writer_pool(stages, runs),
        num_cpus=WRITER_CPUS,
        max_restarts=-1,
        max_task_retries=CRASH_RETRIES,
        **one_row,
    )

    watch = Watch(hub, progress, stages)
    try:
        with raised_as_own(hub):
            for text in rows_of(accounts, "account", watch.look):
                watch.look()
                yield UnitAccount.from_text(text)
            watch.look()
    except IncompleteError:
        progress.check(is_drained=True)  # a stop took the workers too
        raise


def gpu_calls_ahead(runs: Sequence[UnitRun]) -> int:
    """Return how many rows a tokenizer on a GPU is handed before their turn: fewer where they are large."""
    largest = max(sum(unit.num_bytes for unit in run) for run in runs)
    return max(FEWEST_GPU_CALLS_AHEAD, min(MOST_GPU_CALLS_AHEAD, GPU_AHEAD_BYTES // max(1, largest)))


def _actor_pool(stages: TokenizeStages, gpu_calls: int) -> ActorPoolStrategy:
    """Return how many actors there are, and how they take rows."""
    sizes = {"min_size": stages.min_actors or stages.num_actors, "max_size": stages.num_actors}
    if stages.gpus_per_actor:
        return ActorPoolStrategy(
            **sizes,
            max_tasks_in_flight_per_actor=gpu_calls,
            enable_true_multi_threading=True,
            max_concurrent_calls_per_actor=CALLS_AT_ONCE,
        )
    return ActorPoolStrategy(**sizes, max_tasks_in_flight_per_actor=CALLS_AHEAD)


def _writer_pool(stages: TokenizeStages, runs: Sequence[UnitRun]) -> ActorPoolStrategy:
    """Return how many writers there are, and how they take rows.

    They are no tasks: a task that finds every process busy with reading has Ray start another one, dozens at a time.
    """
    at_once = writes_at_once(runs, stages.writer.contract.spec)
    return ActorPoolStrategy(
        size=num_writers(stages.num_actors),
        max_tasks_in_flight_per_actor=2 * at_once,
        enable_true_multi_threading=True,
        max_concurrent_calls_per_actor=at_once,
    )
