"""What each choice of `emit` costs, and building shards: measured where a tokenizer would work, on a few windows.

Knows no Ray. The driver draws the windows (estimate.py), a worker computes with them; nothing is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from bitwise_vae.checkpoints.checkpoint import read_checkpoint
from bitwise_vae.inference.encoder import CPU_BATCH_WINDOWS, WindowEncoder
from pipeline.contract.columns import emitted_columns
from pipeline.contract.specs import Contract, CorpusSpec, ExportSpec, FlipRule
from pipeline.dataset.parquet_shard import shard_to_parquet
from pipeline.dataset.tar_shard import shard_to_tar
from pipeline.dataset.token_store import TokenStore, fragment_to_bytes
from pipeline.export.build import Fragment, ShardBuilder, ShardTask
from pipeline.export.layout import Piece, ShardLayout
from pipeline.settings.job_config import EMITTED, Emitted
from pipeline.stages.blocks import MotionBlock, TokenBlock
from pipeline.stages.codec import pick_device
from pipeline.stages.emit import WindowEmitter, WindowSpans
from pipeline.stages.tokenize_stage import spans_of
from pipeline.stages.write import token_rows
from pipeline.storage import Folder

SHARD_WINDOWS = 4096
"""Windows of the shard that is built: so many that what a shard costs by itself hardly counts."""

PROBE_S, MAX_ROUNDS = 1.0, 8
"""Seconds that a choice is measured for, about, and how often at most; at least twice after a first time."""


@dataclass(frozen=True)
class CostSample:
    """A few windows, and what is to be done with them. Built by the driver, sent to a worker."""

    codec: bytes
    contract: Contract
    export: ExportSpec
    rule: FlipRule
    """By which flips are drawn, where they are."""
    num_threads: int
    """Of a CPU."""
    block: MotionBlock

    @property
    def choices(self) -> list[tuple[Emitted, ...]]:
        """What is measured: bits alone, each column, all of them, and what is configured."""
        choices: list[tuple[Emitted, ...]] = [(), *((item,) for item in EMITTED), EMITTED]
        return list(dict.fromkeys([*choices, self.contract.corpus.emit]))

    def contract_of(self, emit: tuple[Emitted, ...]) -> Contract:
        """Return the contract of a job with another choice."""
        flips = self.rule if "flips" in emit else None
        corpus = self.contract.corpus.model_copy(update={"emit": emit, "flips": flips})
        return Contract(codec=self.contract.codec, corpus=corpus, numerics=self.contract.numerics)


@dataclass(frozen=True)
class ChoiceCost:
    """What a window of one choice takes."""

    emit: tuple[Emitted, ...]
    parquet_bytes: int
    tar_bytes: int
    windows_per_s: float
    """Of one device."""


@dataclass(frozen=True)
class MeasuredCosts:
    """What a worker found; built by `measure_costs`."""

    choices: tuple[ChoiceCost, ...]
    shard_s: float
    """Seconds that one core takes to build the shards of a window, in all formats together, without storage."""


def measure_costs(sample: CostSample) -> MeasuredCosts:
    """Encode the windows of a sample with each choice of `emit`, and build shards of the one configured."""
    corpora = [sample.contract_of(emit).corpus for emit in sample.choices]
    costs = [
        ChoiceCost(emit, *_window_bytes(sample, emit), speed)
        for emit, speed in zip(sample.choices, _windows_per_s(sample, corpora), strict=True)
    ]
    return MeasuredCosts(tuple(costs), _shard_s(sample))


def _windows_per_s(sample: CostSample, corpora: Sequence[CorpusSpec]) -> list[float]:
    """Encode full batches with each choice in turn, round after round; the fastest round counts.

    So what else the machine does at a time weighs on all choices alike.
    """
    corpus, device = sample.contract.corpus, pick_device()
    model = read_checkpoint(sample.codec, "codec.safetensors")
    encoder = WindowEncoder(
        model,
        precision=corpus.precision,
        batch_size=corpus.batch_size,
        device=device,
        num_threads=sample.num_threads,
    )
    batch = sample.num_threads * CPU_BATCH_WINDOWS if device.type == "cpu" else encoder.batch_size
    motion, spans = torch.tensor(sample.block.motion), _repeated(spans_of(sample.block), max(batch, corpus.batch_size))
    emitters = [WindowEmitter(model, encoder, each) for each in corpora]

    def seconds(emitter: WindowEmitter) -> float:
        begin = time.perf_counter()
        emitter.encode(motion, spans)
        return time.perf_counter() - begin

    first_s = max(seconds(emitter) for emitter in emitters)
    num_rounds = min(MAX_ROUNDS, max(2, round(PROBE_S / first_s)))
    rounds = [[seconds(emitter) for emitter in emitters] for _ in range(num_rounds)]
    return [len(spans.start_frame) / min(measured) for measured in zip(*rounds, strict=True)]


def _shard_s(sample: CostSample) -> float:
    """Return the seconds that a window takes from its fragment to the shards configured, in memory."""
    rows = _rows_of(sample.block, sample.contract)
    num_rows = min(SHARD_WINDOWS, max(int(rows.num_rows), sample.export.windows_per_shard))
    rows = pa.concat_tables([rows] * -(-num_rows // int(rows.num_rows))).slice(0, num_rows)
    ledger = sample.block.ledger.drop_columns(["unit"])
    store = TokenStore(Folder("memory://motion-tokens-sample"))
    fragment = Fragment(0, "sample", "0")
    store.folder.publish(store.fragment_path("sample", "0"), fragment_to_bytes(rows, ledger, sample.contract))
    layout = ShardLayout("train", (Piece(0, np.array([[0, num_rows]])),))
    export = sample.export
    builder = ShardBuilder(store.folder, (store,), sample.contract, export.formats, export.windows_per_sample)
    begin = time.perf_counter()
    list(builder.build(ShardTask(0, layout, {0: fragment}, {})))
    seconds = time.perf_counter() - begin
    for file in store.folder.list_files():
        store.folder.delete(file.path)
    return seconds / num_rows


def _window_bytes(sample: CostSample, emit: tuple[Emitted, ...]) -> tuple[int, int]:
    """Return what a window takes in Parquet and in a tar, as rows of the sample do; arrays are zeros there."""
    contract = sample.contract_of(emit)
    tokens = _rows_of(sample.block, contract)
    few = tokens.slice(0, 0)

    def each(written: Callable[[pa.Table], bytes | bytearray]) -> int:
        return -((len(written(few)) - len(written(tokens))) // int(tokens.num_rows))

    parquet = each(lambda rows: shard_to_parquet(rows, contract))
    per_sample = sample.export.windows_per_sample
    return parquet, each(lambda rows: shard_to_tar(rows, contract.codec, contract.corpus, per_sample))


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
