"""What a job would write, and how long a device would compute for it: from a sample, before anything is written.

Knows no Ray. A few units are read and cut into windows, a few batches of them encoded with each choice of `emit`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from bitwise_vae.checkpoint import read_checkpoint
from bitwise_vae.encode import CPU_BATCH_WINDOWS, WindowEncoder
from bitwise_vae.model import BitwiseVAE
from pipeline.blocks import MotionBlock, TokenBlock
from pipeline.codec import pick_device
from pipeline.config import Contract, CorpusSpec, FlipRule, hash64
from pipeline.emitted import WindowEmitter, WindowSpans
from pipeline.errors import NoClipLeftError
from pipeline.execution import Executor
from pipeline.export.parquet import shard_to_parquet
from pipeline.export.webdataset import shard_to_tar
from pipeline.job_config import EMITTED, Emitted
from pipeline.plan import Plan, Unit
from pipeline.read_units import UnitReader
from pipeline.request import Job
from pipeline.schema import emitted_columns
from pipeline.token_store import missing_units
from pipeline.write_fragments import token_rows

SAMPLE_UNITS, SAMPLE_BYTES = 16, 256 << 20
"""Units that are read at most, and bytes of their input, beyond the first two."""

SIZED_WINDOWS = 64
"""Windows, of whole clips, whose rows are written in memory to see what one takes."""

PROBE_S, MAX_ROUNDS = 1.0, 8
"""Seconds that a choice is measured for, about, and how often at most; at least twice after a first time."""

Int64s = NDArray[np.int64]


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
    num_devices: int
    """Devices that would share the hours: GPUs; on a CPU one, all its cores together."""
    formats: tuple[str, ...]
    windows_per_shard: int
    shard_s: float
    """Seconds that one core takes to build the shards of a window, in all formats together."""
    num_units_done: int
    """Units of the configured choice that have a fragment already."""
    todo_share: float
    """Share of the input, by bytes, whose units have none."""
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

    def described(self) -> dict[str, object]:
        """Return the estimate as plain values, for programs."""
        tree = {**vars(self), "windows": vars(self.windows), "shard_bytes": self.shard_bytes}
        return tree | {"formats": list(self.formats), "choices": [choice.described() for choice in self.choices]}


def estimate_job(job: Job, plan: Plan, executor: Executor) -> JobEstimate:
    """Return what a job would write and compute with each choice of `emit`; writes nothing.

    Args:
        job: prepared, so that it could start.
        plan: of its input.
        executor: says how many GPUs there are; nothing is started.

    Raises:
        NoClipLeftError: the units that were read have no window.
        StorageError: storage did not answer after all retries, or an input changed meanwhile.
    """
    folders = {root.name: root.folder for root in job.roots}
    reader = UnitReader(folders, job.contract.spec, job.clips, job.codec.mean, job.codec.std)
    windows, block = _count_windows(plan, reader)
    missing = missing_units(job.store, plan.units)
    probe = _Probe(job, block)
    configured = job.contract.corpus.emit
    choices = list(dict.fromkeys([(), *((item,) for item in EMITTED), EMITTED, configured]))
    return JobEstimate(
        input_bytes=plan.num_bytes,
        windows=windows,
        device=job.contract.numerics.device,
        num_devices=int(executor.num_gpus) or 1,
        formats=job.export.formats,
        windows_per_shard=job.export.windows_per_shard,
        shard_s=probe.shard_s(),
        num_units_done=len(plan.units) - len(missing),
        todo_share=sum(unit.num_bytes for unit in missing) / max(1, plan.num_bytes),
        choices=probe.estimate(choices, configured, windows.num_windows),
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
        drops.update(reason for reason in block.ledger["drop_reason"].to_pylist() if reason)
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


class _Probe:
    """Measures choices of `emit` on windows of one block. Built and used up by `estimate_job`."""

    def __init__(self, job: Job, block: MotionBlock) -> None:
        corpus, run = job.contract.corpus, job.config.run
        self._windows_per_sample = job.export.windows_per_sample
        self._contract, self._block, self._formats = job.contract, block, job.export.formats
        self._model: BitwiseVAE = read_checkpoint(job.codec.data, "codec.safetensors")
        self._num_threads = run.threads or os.cpu_count() or 1
        self._encoder = WindowEncoder(
            self._model,
            precision=corpus.precision,
            batch_size=corpus.batch_size,
            device=pick_device(),
            num_threads=self._num_threads,
        )
        self._rule = corpus.flips or FlipRule(**job.config.flips.model_dump())
        self._motion = torch.tensor(block.motion)
        self._spans = _spans_of(block)

    def estimate(
        self, choices: Sequence[tuple[Emitted, ...]], configured: tuple[Emitted, ...], num_windows: int
    ) -> tuple[ChoiceEstimate, ...]:
        """Return what each choice costs for so many windows."""
        corpora = [self._corpus(emit) for emit in choices]
        estimates = []
        for emit, corpus, speed in zip(choices, corpora, self._windows_per_s(corpora), strict=True):
            parquet, tar = self._window_bytes(corpus)
            estimate = ChoiceEstimate(
                emit=emit,
                is_configured=emit == configured,
                parquet_window_bytes=parquet,
                tar_window_bytes=tar,
                parquet_bytes=parquet * num_windows,
                tar_bytes=tar * num_windows,
                windows_per_s=speed,
                device_hours=num_windows / speed / 3600,
            )
            estimates.append(estimate)
        return tuple(estimates)

    def _corpus(self, emit: tuple[Emitted, ...]) -> CorpusSpec:
        flips = self._rule if "flips" in emit else None
        return self._contract.corpus.model_copy(update={"emit": emit, "flips": flips})

    def _windows_per_s(self, corpora: Sequence[CorpusSpec]) -> list[float]:
        """Encode full batches with each choice in turn, round after round; the fastest round counts.

        So what else the machine does at a time weighs on all choices alike.
        """
        is_cpu = self._encoder.device.type == "cpu"
        batch = self._num_threads * CPU_BATCH_WINDOWS if is_cpu else self._encoder.batch_size
        spans = _repeated(self._spans, max(batch, self._encoder.batch_size))
        emitters = [WindowEmitter(self._model, self._encoder, corpus) for corpus in corpora]

        def seconds(emitter: WindowEmitter) -> float:
            begin = time.perf_counter()
            emitter.encode(self._motion, spans)
            return time.perf_counter() - begin

        first_s = max(seconds(emitter) for emitter in emitters)
        num_rounds = min(MAX_ROUNDS, max(2, round(PROBE_S / first_s)))
        rounds = [[seconds(emitter) for emitter in emitters] for _ in range(num_rounds)]
        return [len(spans.start_frame) / min(measured) for measured in zip(*rounds, strict=True)]

    def shard_s(self) -> float:
        """Return the seconds that the rows of a window take to become a part of shards, in the formats configured."""
        tokens = _rows_of(self._block, self._contract)
        begin = time.perf_counter()
        if "parquet" in self._formats:
            shard_to_parquet(tokens, self._contract)
        if "webdataset" in self._formats:
            shard_to_tar(tokens, self._contract.codec, self._contract.corpus, self._windows_per_sample)
        return (time.perf_counter() - begin) / int(tokens.num_rows)

    def _window_bytes(self, corpus: CorpusSpec) -> tuple[int, int]:
        """Return what a window takes in Parquet and in a tar, as rows of the sample do; arrays are zeros there."""
        contract = Contract(codec=self._contract.codec, corpus=corpus, numerics=self._contract.numerics)
        tokens = _rows_of(self._block, contract)
        few = tokens.slice(0, 0)

        def each(written: Callable[[pa.Table], bytes | bytearray]) -> int:
            return -((len(written(few)) - len(written(tokens))) // int(tokens.num_rows))

        parquet = each(lambda rows: shard_to_parquet(rows, contract))
        return parquet, each(lambda rows: shard_to_tar(rows, contract.codec, corpus, self._windows_per_sample))


def _rows_of(block: MotionBlock, contract: Contract) -> pa.Table:
    """Return the first token rows that a block gives, with zeros for what would be computed."""
    codec, count = contract.codec, len(block.start_frame)
    arrays = emitted_columns(codec, contract.corpus)
    emitted = {array.name: np.broadcast_to(np.zeros(1, array.dtype), (count, *array.shape)) for array in arrays}
    bits = np.broadcast_to(np.zeros(1, np.uint8), (count, 2, codec.half_bytes))
    tokens = TokenBlock(
        block.units, bits, block.ledger, block.start_frame, clip_columns=block.clip_columns, emitted=emitted
    )
    ledger = block.ledger.drop_columns(["unit"])
    return token_rows(ledger, tokens, slice(0, count), block.clip_columns, contract)


def _spans_of(block: MotionBlock) -> WindowSpans:
    windows = block.ledger["num_windows"].to_numpy()
    kept = windows > 0
    frames = block.ledger["num_frames"].to_numpy()[kept].astype(np.int64)
    clip_of_window = np.repeat(np.arange(len(frames)), windows[kept])
    ends = np.cumsum(frames)
    names = block.ledger["clip_id"].filter(pa.array(kept)).to_pylist()
    ids = [names[clip] for clip in clip_of_window]
    return WindowSpans((ends - frames)[clip_of_window], ends[clip_of_window], block.start_frame, lambda: ids)


def _repeated(spans: WindowSpans, count: int) -> WindowSpans:
    """Return so many windows, those of the sample over and over."""
    rows = np.arange(count) % len(spans.start_frame)
    ids = spans.clip_ids()
    return replace(
        spans,
        clip_begin=spans.clip_begin[rows],
        clip_end=spans.clip_end[rows],
        start_frame=spans.start_frame[rows],
        clip_ids=lambda: [ids[int(row)] for row in rows],
    )
