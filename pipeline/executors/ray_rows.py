"""Rows of a Ray Data graph as both graphs use them: how Ray Data is set up, and how the driver takes what is done.

Knows no stage: a row stands for a run of units, whatever is done with it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray.data import DataContext

READ_AHEAD = 2.0
"""Rows that lie read, times those that tokenizers were handed."""
TICK_S = 0.25
_END = object()


def configure_ray_data() -> None:
    """Set Ray Data up for rows that stand for units: nothing split, nothing printed, no order."""
    context = DataContext.get_current()
    context.downstream_capacity_backpressure_ratio = READ_AHEAD
    context.target_max_block_size = None  # a run of units is never split
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.wait_for_min_actors_s = -1  # they start while the first rows are read
    context.execution_options.preserve_order = False
    context.max_errored_blocks = -1  # a dead process loses its own row only; exceptions reach the driver by the hub
    with suppress(ImportError):  # a part of Ray without promise
        # Every 5 s Ray Data would send an account of all tasks so far to its statistics actor, which grows by that
        # without end (tests/faults/soak.py). No setting turns it off; once, at the end, is enough.
        from ray.data._internal.block_batching.iter_batches import BatchIterator

        BatchIterator.UPDATE_METRICS_INTERVAL_S = float("inf")


def rows_of(dataset: Any, column: str, on_tick: Callable[[], None]) -> Iterator[Any]:
    """Yield a column's values as rows finish, calling `on_tick` every `TICK_S` meanwhile."""
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def follow() -> None:
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for value in batch[column]:
                    arrived.put(value.as_py())
            arrived.put(_END)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
            arrived.put(_Failure(error))

    threading.Thread(target=follow, daemon=True, name="ray-rows").start()
    while True:
        try:
            item = arrived.get(timeout=TICK_S)
        except queue.Empty:
            on_tick()
            continue
        if item is _END:
            return
        if isinstance(item, _Failure):
            raise item.error
        yield item


@dataclass(frozen=True)
class _Failure:
    error: BaseException
