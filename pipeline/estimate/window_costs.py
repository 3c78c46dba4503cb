"""What a window costs, in bytes and seconds: measured where a tokenizer would work, on a few windows.

Knows no Ray. The driver draws the windows (window_count.py), a worker computes with them; nothing is kept.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.contract.specs import Contract, ExportSpec
from pipeline.dataset.token_store import TokenStore
from pipeline.export.build import ShardBuilder
from pipeline.plan.units import Unit
from pipeline.stages.blocks import MotionBlock
from pipeline.stages.tokenize_stage import TokenizerActor, TokenizerSettings
from pipeline.stages.write import token_rows
from pipeline.storage import Folder

SHARD_WINDOWS = 4096
"""Windows of the shard that is built: so many that what a shard costs by itself hardly counts."""

ROUNDS = 3
"""Times that a full batch is encoded after a first time; the fastest counts."""


class NoStore(TokenStore):
    """A store that takes fragments and keeps none; the null codes stay in the memory of the tokenizer's process."""

    def publish_fragment(self, unit: Unit, data: bytes) -> None:
        """Forget the bytes."""


NO_STORE = NoStore(Folder("memory://motion-tokens-nothing"))


@dataclass(frozen=True)
class CostSample:
    """A few windows, and what is to be done with them. Built by the driver, sent to a worker."""

    codec: bytes
    contract: Contract
    export: ExportSpec
    num_threads: int
    """Of a CPU."""
    block: MotionBlock


@dataclass(frozen=True)
class WindowCosts:
    """What a window takes."""

    shard_bytes: dict[str, int]
    """Format -> bytes; the token store holds those of Parquet once more."""
    shard_s: float
    """Seconds that one core takes to build its shards, in all formats together, without storage."""
    windows_per_s: float
    """That one device encodes, when it does nothing else."""


class _Deaf:
    def begun(self, num_windows: int, num_bytes: int) -> None: ...

    def encoded(self, num_windows: int) -> None: ...


def measure_costs(sample: CostSample) -> WindowCosts:
    """Encode a full batch of the windows of a sample, and build a shard of them in memory."""
    contract, export = sample.contract, sample.export
    settings = TokenizerSettings(contract, NO_STORE, sample.num_threads, mixed_numerics=False)
    tokenizer = TokenizerActor(sample.codec, settings, _Deaf())
    block = _repeated(sample.block, contract.corpus.batch_size)
    tokens = tokenizer.tokenize(block)
    windows_per_s = len(block.start_frame) / min(_seconds(tokenizer, block) for _ in range(ROUNDS))
    count = len(block.start_frame)
    rows = token_rows(block.ledger.drop_columns(["unit"]), tokens, slice(0, count), block.clip_columns, contract)
    num_rows = min(SHARD_WINDOWS, max(count, export.windows_per_shard))
    rows = pa.concat_tables([rows] * -(-num_rows // count)).slice(0, num_rows)
    shards = Folder("memory://motion-tokens-sample")
    builder = ShardBuilder(shards, (), contract, export.formats)
    began = time.perf_counter()
    built = builder.publish_shard(0, "train", rows.cast(builder.schema), is_shuffled=False)
    shard_s = (time.perf_counter() - began) / num_rows
    for file in shards.list_files():
        shards.delete(file.path)
    return WindowCosts({name: file.bytes // num_rows for name, file in built.files.items()}, shard_s, windows_per_s)


def _seconds(tokenizer: TokenizerActor, block: MotionBlock) -> float:
    began = time.perf_counter()
    tokenizer.tokenize(block)
    return time.perf_counter() - began


def _repeated(block: MotionBlock, num_windows: int) -> MotionBlock:
    """Return a block of at least so many windows: the clips of a block over and over."""
    times = -(-num_windows // len(block.start_frame))
    return replace(
        block,
        motion=np.tile(block.motion, (times, 1)),
        ledger=pa.concat_tables([block.ledger] * times),
        start_frame=np.tile(block.start_frame, times),
        clip_columns=pa.concat_tables([block.clip_columns] * times),
    )
