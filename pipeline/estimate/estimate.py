"""What a job would write, and how long a device would compute for it: from a sample, before anything is written.

Knows no Ray. A few units are read and cut into windows; choice_costs.py encodes some of them with each choice of
`emit`, where a tokenizer would.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.contract.specs import FlipRule
from pipeline.dataset.counts import count_drops
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.token_store import missing_units
from pipeline.errors import NoClipLeftError
from pipeline.estimate.choice_costs import ChoiceCost, CostSample, measure_costs
from pipeline.executors.executor import Executor
from pipeline.hashing import hash64
from pipeline.job.request import Job
from pipeline.plan.plan import Plan
from pipeline.plan.units import Unit
from pipeline.settings.job_config import Emitted
from pipeline.stages.blocks import MotionBlock
from pipeline.stages.read import UnitReader

SAMPLE_UNITS, SAMPLE_BYTES = 16, 256 << 20
"""Units that are read at most, and bytes of their input, beyond the first two."""

SIZED_WINDOWS = 64
"""Windows, of whole clips, that are encoded and whose rows are written in memory to see what one takes."""


@dataclass(frozen=True)
class WindowCount:
    """How many windows a job has, by the units that were read."""

    num_windows: int
    margin: int
    """Twice the standard error; 0 where every unit was read."""
    num_units: int
    num_units_read: int
    num_clips_read: int
    num_clips_dropped: int
    """Of these."""
    drops: Mapping[str, int]
    """Of these, by reason."""
    num_clips: int
    """Of the whole job, dropped ones included, by the same reckoning as the windows."""
    hours: float
    """Of motion that is kept, likewise."""
    read_s: float
    """Seconds that reading these units took, one after the other."""
    read_bytes: int
    """Size of these units."""


@dataclass(frozen=True)
class ChoiceEstimate:
    """What one choice of `emit` costs."""

    emit: tuple[Emitted, ...]
    is_configured: bool
    parquet_window_bytes: int
    tar_window_bytes: int
    parquet_bytes: int
    """Of all shards; the token store holds as much once more."""
    tar_bytes: int
    windows_per_s: float
    """Of one device."""
    device_hours: float

    def described(self) -> dict[str, object]:
        """Return the estimate as plain values, for programs."""
        return {**vars(self), "emit": list(self.emit)}


@dataclass(frozen=True)
class JobEstimate:
    """What a job would come to; built by `estimate_job`."""

    input_bytes: int
    windows: WindowCount
    device: str
    num_devices: float
    """Devices that would share the hours: GPUs that the tokenizers take; on CPUs one, all cores of a machine."""
    formats: tuple[str, ...]
    windows_per_shard: int
    shard_s: float
    """Seconds that one core takes to build the shards of a window, in all formats together."""
    num_units_done: int
    """Units of the configured choice that have a fragment already."""
    todo_share: float
    """Share of the input, by bytes, whose units have none."""
    is_extended: bool
    """Whether a dataset stands, whose shards are taken over where their units stay as they are."""
    choices: tuple[ChoiceEstimate, ...]

    @property
    def configured(self) -> ChoiceEstimate:
        """The choice that the job would run with."""
        return next(choice for choice in self.choices if choice.is_configured)

    @property
    def shard_bytes(self) -> dict[str, int]:
        """Format -> size of one shard of the configured choice, about."""
        windows = min(self.windows_per_shard, self.windows.num_windows)
        of_window = {"parquet": self.configured.parquet_window_bytes, "webdataset": self.configured.tar_window_bytes}
        return {name: windows * of_window[name] for name in self.formats}

    @property
    def num_windows_todo(self) -> int:
        """Windows that a run would encode."""
        return round(self.windows.num_windows * self.todo_share)

    @property
    def export_shards(self) -> tuple[int, int]:
        """Shards that a run would build, about, and windows of each."""
        windows = max(1, self.num_windows_todo if self.is_extended else self.windows.num_windows)
        of_shard = min(self.windows_per_shard, windows)
        return math.ceil(windows / of_shard), of_shard

    def described(self) -> dict[str, object]:
        """Return the estimate as plain values, for programs."""
        tree = {**vars(self), "windows": vars(self.windows), "shard_bytes": self.shard_bytes}
        return tree | {"formats": list(self.formats), "choices": [choice.described() for choice in self.choices]}


def estimate_job(job: Job, plan: Plan, executor: Executor) -> JobEstimate:
    """Return what a job would write and compute with each choice of `emit`; writes nothing.

    Args:
        job: prepared, so that it could start.
        plan: of its input.
        executor: says what machines there are, and asks one of its workers; nothing else is started.

    Raises:
        NoClipLeftError: the units that were read have no window.
        StorageError: storage did not answer after all retries, or an input changed meanwhile.
        IncompleteError: the cluster has no place for a worker, or it was lost.
    """
    folders = {root.name: root.folder for root in job.roots}
    reader = UnitReader(folders, job.contract.spec, job.clips, job.codec.mean, job.codec.std)
    windows, block = _count_windows(plan, reader)
    missing = missing_units(job.store, plan.units)
    run, standing = job.config.run, read_manifest(job.output)
    rule = job.contract.corpus.flips or FlipRule(**job.config.flips.model_dump())
    num_threads = run.threads or executor.cores_a_machine
    sample = CostSample(job.codec.data, job.contract, job.export, rule, num_threads, block)
    measured = executor.ask_worker(partial(measure_costs, sample))
    return JobEstimate(
        input_bytes=plan.num_bytes,
        windows=windows,
        device=job.contract.numerics.device,
        num_devices=run.gpus_of(run.workers_on(executor.num_gpus), executor.num_gpus) or 1.0,
        formats=job.export.formats,
        windows_per_shard=job.export.windows_per_shard,
        shard_s=measured.shard_s,
        num_units_done=len(plan.units) - len(missing),
        todo_share=sum(unit.num_bytes for unit in missing) / max(1, plan.num_bytes),
        is_extended=standing is not None and standing.spec_id == job.contract.spec.spec_id,
        choices=tuple(_estimated(cost, job, windows.num_windows) for cost in measured.choices),
    )


def _estimated(cost: ChoiceCost, job: Job, num_windows: int) -> ChoiceEstimate:
    return ChoiceEstimate(
        emit=cost.emit,
        is_configured=cost.emit == job.contract.corpus.emit,
        parquet_window_bytes=cost.parquet_bytes,
        tar_window_bytes=cost.tar_bytes,
        parquet_bytes=cost.parquet_bytes * num_windows,
        tar_bytes=cost.tar_bytes * num_windows,
        windows_per_s=cost.windows_per_s,
        device_hours=num_windows / cost.windows_per_s / 3600,
    )


def _count_windows(plan: Plan, reader: UnitReader) -> tuple[WindowCount, MotionBlock]:
    """Read a sample of units, the same for the same plan; return the count, and the first block with windows."""
    chosen: list[Unit] = []
    for unit in in_drawn_order(plan.units)[:SAMPLE_UNITS]:
        if len(chosen) >= 2 and sum(other.num_bytes for other in chosen) + unit.num_bytes > SAMPLE_BYTES:
            break
        chosen.append(unit)
    counts, num_clips, num_frames, read_s = [], 0, 0, 0.0
    drops = Counter[str]()
    first: MotionBlock | None = None
    for unit in chosen:
        block = reader.read([unit])
        counts.append(len(block.start_frame))
        num_clips += block.ledger.num_rows
        num_frames += len(block.motion)
        read_s += block.seconds["read"]
        drops.update(count_drops(block.ledger["drop_reason"]))
        first = _head(block) if first is None and len(block.start_frame) else first
    if first is None:
        raise NoClipLeftError(
            f"none of {num_clips} clips in {len(chosen)} of {len(plan.units)} units has a window:"
            " tokenize names the reasons in quarantine.parquet"
        )
    num_windows, margin = _extrapolated(counts, [unit.num_bytes for unit in chosen], plan)
    read_bytes = sum(unit.num_bytes for unit in chosen)
    scale = 1.0 if len(chosen) == len(plan.units) else plan.num_bytes / max(1, read_bytes)
    count = WindowCount(
        num_windows=num_windows,
        margin=margin,
        num_units=len(plan.units),
        num_units_read=len(chosen),
        num_clips_read=num_clips,
        num_clips_dropped=drops.total(),
        drops=dict(drops.most_common()),
        num_clips=round(num_clips * scale),
        hours=num_frames * scale / reader.spec.codec.fps / 3600,
        read_s=read_s,
        read_bytes=read_bytes,
    )
    return count, first


def in_drawn_order(units: Sequence[Unit]) -> list[Unit]:
    """Return units in an order that has nothing to do with their place, the same for the same units."""
    return sorted(units, key=lambda unit: hash64(f"estimate\0{unit.key}"))


def _head(block: MotionBlock) -> MotionBlock:
    """Return the first clips of a block, with `SIZED_WINDOWS` windows or as many as there are."""
    windows = block.ledger["num_windows"].to_numpy()
    num_rows = int(np.searchsorted(np.cumsum(windows), SIZED_WINDOWS)) + 1
    ledger = block.ledger.slice(0, num_rows)
    kept = windows[:num_rows] > 0
    num_frames = int(ledger["num_frames"].to_numpy()[kept].sum())
    return MotionBlock(
        block.units,
        block.motion[:num_frames],
        ledger,
        block.start_frame[: int(windows[:num_rows].sum())],
        clip_columns=block.clip_columns.slice(0, int(kept.sum())),
    )


def _extrapolated(counts: Sequence[int], sizes: Sequence[int], plan: Plan) -> tuple[int, int]:
    """Return the windows of a plan, and twice their standard error, by windows a byte of the units that were read."""
    found, num_bytes = np.array(counts, np.float64), np.array(sizes, np.float64)
    if len(found) == len(plan.units):
        return int(found.sum()), 0
    rate = found.sum() / num_bytes.sum()
    total = rate * plan.num_bytes
    spread = float(((found - rate * num_bytes) ** 2).sum() / max(1, len(found) - 1))
    unread = 1 - len(found) / len(plan.units)
    error = len(plan.units) * (spread * unread / len(found)) ** 0.5
    return round(total), round(2 * error)
