"""The Ray Data graph of the statistics pass: units --measure--> statistics, one task a run of units.

One row is one run of units. What is measured stands in stages/measure.py; plain_loop.py does the same without Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import TaskPoolStrategy

from pipeline.executors.ray_errors import raised_as_own
from pipeline.executors.ray_graph import CRASH_RETRIES
from pipeline.executors.ray_hosts import told
from pipeline.executors.ray_hub import start_hub
from pipeline.executors.ray_rows import configure_ray_data, rows_of
from pipeline.plan.units import Unit
from pipeline.stages.blocks import units_from_text, units_to_text
from pipeline.stages.measure import UnitMeasurer, UnitStatistics


def measure_with_ray(
    runs: Sequence[Sequence[Unit]], measurer: UnitMeasurer, num_workers: int | None
) -> Iterator[UnitStatistics]:
    """Measure units in Ray tasks; yield them as they are done. Units whose task died are missing."""
    if not runs:
        return
    configure_ray_data()
    hub = start_hub(b"")
    rows = ray.data.from_items([{"units": units_to_text(run)} for run in runs], override_num_blocks=len(runs))
    measured = rows.map_batches(
        _MeasureTask(measurer, hub),
        num_cpus=1,
        max_retries=CRASH_RETRIES,
        compute=TaskPoolStrategy(num_workers),
        batch_size=1,
        batch_format="pyarrow",
    )
    with raised_as_own(hub):
        for data in rows_of(measured, "statistics", lambda: ray.get(hub.take.remote())):
            yield UnitStatistics.from_bytes(data)
        ray.get(hub.take.remote())


class _MeasureTask:
    """The measuring as a Ray task: one row of units in, one row a unit out."""

    def __init__(self, measurer: UnitMeasurer, hub: Any) -> None:
        self._measurer, self._hub = measurer, hub

    def __call__(self, row: pa.Table) -> pa.Table:
        with told(self._hub):
            units = units_from_text(row["units"][0].as_py())
            found = [self._measurer.measure(unit).to_bytes() for unit in units]
        return pa.table({"statistics": pa.array(found, pa.large_binary())})
