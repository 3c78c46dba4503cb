"""The statistics pass: inputs in, one MotionStatistics out, every clip read once.

Knows no Ray: who measures units is handed in (executors/executor.py). Units are added up in order of their keys,
so that the numbers are the same for any number of workers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline.contract.drop_reasons import NEXT_STEP, DropReason
from pipeline.contract.resolve import codec_to_be, corpus_spec
from pipeline.contract.specs import CorpusSpec, TokenSpec
from pipeline.errors import ConfigError, IncompleteError, NoClipLeftError
from pipeline.executors.executor import Executor
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.units import group_units
from pipeline.run.drop_limit import check_dropped
from pipeline.settings.job_config import JobConfig
from pipeline.settings.run_config import RunConfig
from pipeline.sources.clip_filter import ClipFilter
from pipeline.sources.registry import open_readable
from pipeline.stages.isolation import find_crashing
from pipeline.stages.measure import UnitMeasurer, UnitStatistics
from pipeline.stages.read import UnitReader
from pipeline.statistics.motion_statistics import MotionStatistics, input_settings, statistics_of

MAX_DIMS = 64
"""Different dims in one collection, beyond which it is refused: each takes memory."""


@dataclass(frozen=True)
class StatisticsRequest:
    """What a person asked for.

    Args:
        fps: rate of the codec to be, whose rules for rates then apply; None takes every clip at its own.
    """

    inputs: tuple[str, ...]
    fps: float | None
    config: JobConfig


class StatisticsObserver:
    """Watches silently; a display overrides what it wants to show."""

    def on_plan(self, plan: Plan, num_skipped: int) -> None:
        """The plan stands; `num_skipped` files are of no known kind."""

    def on_unit(self, unit: UnitStatistics) -> None:
        """A unit is measured."""


def measure_motion(request: StatisticsRequest, executor: Executor, observer: StatisticsObserver) -> MotionStatistics:
    """Measure every clip of the inputs once.

    Raises:
        RequestError: the request cannot start.
        NoClipLeftError: no clip could be counted.
        TooManyDroppedError: more clips were dropped than `run.max_dropped` allows.
        IncompleteError: storage or workers failed; run it again.
    """
    config, options = request.config, request.config.run.storage_options
    if request.fps is not None and not (math.isfinite(request.fps) and request.fps > 0):
        raise ConfigError(f"--fps {request.fps:g}: the rate must be a number above 0")
    if config.input.resample == "linear" and request.fps is None:
        raise ConfigError("input.resample=linear needs a rate to convert to: give the codec's with --fps NUMBER")
    roots = open_readable(request.inputs, config.input.format, options)
    clips = ClipFilter.read(config.input.clips, options)
    codec = codec_to_be(config, request.fps)
    corpus = corpus_spec(config, codec, batch_size=1, clips_digest=clips.digest)
    plan = make_plan(roots, corpus)
    observer.on_plan(plan, sum(root.skipped for root in roots))
    folders = {root.name: root.folder for root in roots}
    measurer = UnitMeasurer(UnitReader(folders, TokenSpec(codec=codec, corpus=corpus), clips), request.fps)
    executor.start()
    total = UnitStatistics("", 0)
    for unit in _in_order(plan, _measured(plan, measurer, executor, config.run, observer)):
        total.merge(unit)
        if len(total.by_dims) > MAX_DIMS:
            raise ConfigError(f"the motion has more than {MAX_DIMS} different dims: select with --set input.columns")
    return _statistics(total, corpus, request)


def _measured(
    plan: Plan, measurer: UnitMeasurer, executor: Executor, run: RunConfig, observer: StatisticsObserver
) -> Iterator[UnitStatistics]:
    """Yield every unit of a plan as it is done, those whose task died again without the clips that kill it."""
    missing = {unit.key: unit for unit in plan.units}
    runs = group_units(plan.units, run.workers or max(1, int(executor.num_cpus)), run.row_bytes)
    for unit in executor.measure(runs, measurer, run.workers):
        missing.pop(unit.unit_key)
        observer.on_unit(unit)
        yield unit
    if not missing:
        return
    lost = list(missing.values())
    crashing = {unit.key: find_crashing(unit, measurer.reader, executor.survives) for unit in lost}
    reader = replace(measurer.reader, crashing={key: parts for key, parts in crashing.items() if parts})
    for unit in executor.measure([[unit] for unit in lost], replace(measurer, reader=reader), run.workers):
        missing.pop(unit.unit_key)
        observer.on_unit(unit)
        yield unit
    if missing:
        names = ", ".join(unit.parts[0].path for unit in list(missing.values())[:5])
        raise IncompleteError(f"{len(missing)} units could not be measured ({names}, ..): run the same command again")


def _in_order(plan: Plan, measured: Iterator[UnitStatistics]) -> Iterator[UnitStatistics]:
    """Yield units in order of the plan; those that are done early wait."""
    waiting: dict[str, UnitStatistics] = {}
    keys = iter([unit.key for unit in plan.units])
    wanted = next(keys, None)
    for unit in measured:
        waiting[unit.unit_key] = unit
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted = next(keys, None)


def _statistics(total: UnitStatistics, corpus: CorpusSpec, request: StatisticsRequest) -> MotionStatistics:
    """Return the statistics of the dims that most frames have; clips of others are dropped."""
    drops = Counter(total.drops)
    usable = [dims for dims in total.by_dims if dims > 0]
    chosen = max(usable, key=lambda dims: (total.by_dims[dims].frames, -dims), default=None)
    others = {dims: tally.clips for dims, tally in total.by_dims.items() if dims != chosen}
    if others:
        drops[DropReason.WRONG_DIM.value] += sum(others.values())
    if chosen is None:
        raise NoClipLeftError(f"no clip could be measured: {_reasons(drops)}")
    tally = total.by_dims[chosen]
    check_dropped({"clips": tally.clips, "dropped_clips": drops.total()}, drops, request.config.run.max_dropped)
    settings = {**input_settings(corpus), "target_fps": request.fps}
    return statistics_of(tally, settings, drops, others)


def _reasons(drops: Mapping[str, int]) -> str:
    parts = [f"{count:,} {reason} ({NEXT_STEP[DropReason(reason)]})" for reason, count in sorted(drops.items())]
    return "; ".join(parts) or "the inputs hold none"
