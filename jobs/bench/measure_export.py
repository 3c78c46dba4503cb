"""The suite export: fragments to shards, and shards verified, against the plain writing and reading of as many bytes.

Knows how to make a token store without a model; counts and JSON are result.py's.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bitwise_vae.config import BitwiseVAEConfig
from jobs.bench.data import clip_lengths
from jobs.bench.result import BenchRequest, BenchResult, Report
from jobs.session.session import open_session
from pipeline.contract.resolve import corpus_spec, export_spec
from pipeline.contract.specs import CodecSpec, Contract, Numerics
from pipeline.contract.windows import window_starts
from pipeline.dataset.manifest import Manifest, ShardFile
from pipeline.dataset.paths import CONSTANTS_PATH
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import DataError
from pipeline.executors.executor import Executor
from pipeline.export.build import Fragment
from pipeline.export.export_dataset import ExportSource, export_dataset
from pipeline.export.publish import publish_dataset
from pipeline.hashing import digest_of
from pipeline.plan.plan import Plan
from pipeline.plan.units import Unit
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Ownership
from pipeline.settings.job_config import JobConfig
from pipeline.sources.clip import Part
from pipeline.stages.blocks import RUN_LEDGER_SCHEMA, TokenBlock
from pipeline.stages.tokenize_stage import constants_to_npz
from pipeline.stages.write import FragmentWriter
from pipeline.storage import Folder
from pipeline.verify.verify_dataset import verify_dataset

SUITE = "export"
UNIT_WINDOWS = 3000
"""Of a unit: 128 MB of motion, about."""
CODEC = BitwiseVAEConfig()
"""Gives the number of tokens and bits; no weights are needed."""
DATA_SEED = 7


@dataclass(frozen=True)
class _Store:
    """Committed fragments and the plan that they fill."""

    output: Folder
    store: TokenStore
    contract: Contract
    plan: Plan


@dataclass(frozen=True)
class _Times:
    """Seconds of one round."""

    export_s: float
    write_s: float
    verify_s: float
    read_s: float
    num_bytes: int


def measure_export(request: BenchRequest, report: Report, *, unit_windows: int = UNIT_WINDOWS) -> list[BenchResult]:
    """Export and verify as the commands do, and write and read as many bytes in files as large, in turn.

    The start of Ray is left out. Every dataset is verified before its time counts. Files are as warm as their making
    left them: read from memory, mostly; written through to the disk, by both sides.

    Args:
        unit_windows: windows of a unit, about.

    Raises:
        DataError: a dataset is not sound, or two exports of the same fragments differ.
    """
    rounds: list[_Times] = []
    versions: set[str] = set()
    num_steps = 4 * request.repeats + 2
    with tempfile.TemporaryDirectory(prefix="motion-tokens-bench-") as place, open_session(request.config.run) as run:
        report("making fragments", 0, num_steps)
        made = make_store(Folder(f"{place}/tokens"), request.windows, request.config, unit_windows)
        run.start()
        for repeat in range(request.repeats):
            name = f"{repeat + 1} of {request.repeats}"
            report(f"export, {name}", 4 * repeat + 1, num_steps)
            begin = time.perf_counter()
            manifest = export_store(made, request.config, run)
            export_s = time.perf_counter() - begin
            report(f"plain writing, {name}", 4 * repeat + 2, num_steps)
            shards = [shard for files in manifest.shards.values() for shard in files]
            write_s = write_plainly(shards, Path(place))
            report(f"verify, {name}", 4 * repeat + 3, num_steps)
            begin = time.perf_counter()
            require_sound(made.output, manifest, request.windows)
            verify_s = time.perf_counter() - begin
            report(f"plain reading, {name}", 4 * repeat + 4, num_steps)
            read_s = read_plainly(made.output, shards)
            rounds.append(_Times(export_s, write_s, verify_s, read_s, sum(shard.bytes for shard in shards)))
            versions.add(manifest.version)
            remove_shards(made.output)
        report("done", num_steps, num_steps)
    if len(versions) != 1:
        raise DataError(f"exports of the same fragments differ: {sorted(versions)}")
    return _results(request, rounds, run)


def make_store(output: Folder, num_windows: int, config: JobConfig, unit_windows: int = UNIT_WINDOWS) -> _Store:
    """Write fragments of random bits, as a job would have left them: windows of clips of 1 to 30 windows each.

    Args:
        unit_windows: windows of a unit: its last clip brings it there.
    """
    codec = _codec_spec()
    contract = Contract(
        codec=codec,
        corpus=corpus_spec(config, codec, batch_size=32),
        numerics=Numerics(device="bench", torch="none", pyarrow=pa.__version__),
    )
    store = TokenStore.of(output, contract.spec.spec_id)
    nothing = np.zeros((codec.num_tokens, codec.code_dim // 8), np.uint8)
    constants = constants_to_npz(nothing, nothing, np.array(codec.patch_nums, np.int32))
    store.folder.publish(CONSTANTS_PATH, constants)
    units: list[Unit] = []
    writer, rng = FragmentWriter(store, contract), np.random.Generator(np.random.PCG64(DATA_SEED))
    lengths = clip_lengths(num_windows, codec.window_frames)
    for number, clips in enumerate(_units_of(lengths, codec.window_frames, unit_windows)):
        path = f"{number:06d}.parquet"
        unit = Unit(digest_of([path], 20), digest_of(["stamp"], 12), 0, (Part("", path, "parquet"),))
        writer.write(_block(unit, clips, contract, rng))
        units.append(unit)
    plan = Plan(tuple(sorted(units, key=lambda unit: unit.key)))
    with Ownership(output, "bench").held() as owner:
        store.publish_contract(owner, contract)
        store.publish_plan(owner, plan)
    return _Store(output, store, contract, plan)


def export_store(made: _Store, config: JobConfig, executor: Executor) -> Manifest:
    """Export a store's fragments and publish the dataset, as the last steps of a job do."""
    fragments = tuple(Fragment(0, unit.key, unit.stamp) for unit in made.plan.units)
    source = ExportSource((made.store,), fragments, made.contract)
    export = export_spec(config, made.contract.spec)
    with Ownership(made.output, "bench").held() as owner:
        exported = export_dataset(source, owner, export, {}, executor.build, JobObserver())
        publish_dataset(owner, exported, made.store, made.plan)
    return exported.manifest


def require_sound(output: Folder, manifest: Manifest, num_windows: int) -> None:
    """Raise DataError unless a dataset is proved to hold every window once."""
    result = verify_dataset(output, manifest, lambda path: None)
    if not result.is_sound or not result.units_proved or result.num_windows != num_windows:
        first = f", first: {result.findings[0]}" if result.findings else ""
        raise DataError(f"{result.num_windows:,} of {num_windows:,} windows, {result.num_findings} findings{first}")


def write_plainly(shards: Sequence[ShardFile], place: Path) -> float:
    """Write and sync a file as large as each shard, one after the other, and return how many seconds that took."""
    noise = os.urandom(max(shard.bytes for shard in shards))
    with tempfile.TemporaryDirectory(dir=place) as folder:
        begin = time.perf_counter()
        for number, shard in enumerate(shards):
            with (Path(folder) / str(number)).open("wb") as file:
                file.write(memoryview(noise)[: shard.bytes])
                file.flush()
                os.fsync(file.fileno())
        return time.perf_counter() - begin


def read_plainly(output: Folder, shards: Sequence[ShardFile]) -> float:
    """Read and hash the shards, one after the other, and return how many seconds that took."""
    begin = time.perf_counter()
    for shard in shards:
        hashlib.sha256(Path(output.url_of(shard.path)).read_bytes())
    return time.perf_counter() - begin


def remove_shards(output: Folder) -> None:
    """Delete what an export wrote, so that the next one writes it again."""
    for file in output.list_files():
        if not file.path.startswith("_store/"):
            output.delete(file.path)


def _units_of(lengths: Sequence[int], window_frames: int, unit_windows: int) -> Iterator[list[tuple[str, int]]]:
    """Yield (clip id, frames) of the clips of one unit after the other."""
    unit: list[tuple[str, int]] = []
    num_windows = 0
    for number, length in enumerate(lengths):
        unit.append((f"clip-{number:07d}", length))
        num_windows += -(-length // window_frames)
        if num_windows >= unit_windows:
            yield unit
            unit, num_windows = [], 0
    if unit:
        yield unit


def _block(unit: Unit, clips: Sequence[tuple[str, int]], contract: Contract, rng: np.random.Generator) -> TokenBlock:
    """Return random bits for every window of a unit's clips, with their ledger."""
    codec, rule = contract.codec, contract.corpus.window
    starts = [window_starts(clip_id, length, codec.window_frames, rule) for clip_id, length in clips]
    num_windows = sum(len(clip) for clip in starts)
    ledger = [
        {
            "clip_id": clip_id,
            "source": unit.parts[0].path,
            "where": f"row {row}",
            "num_frames": length,
            "num_windows": len(clip_starts),
            "motion_digest": digest_of([clip_id], 32),
            "drop_reason": "",
            "drop_detail": "",
            "unit": 0,
        }
        for row, ((clip_id, length), clip_starts) in enumerate(zip(clips, starts, strict=True))
    ]
    bits = rng.integers(0, 256, (num_windows, 2, codec.half_bytes), np.uint8)
    return TokenBlock((unit,), bits, pa.Table.from_pylist(ledger, schema=RUN_LEDGER_SCHEMA), np.concatenate(starts))


def _codec_spec() -> CodecSpec:
    return CodecSpec(
        weights="none",
        statistics="none",
        motion_dim=CODEC.motion_dim,
        code_dim=CODEC.code_dim,
        patch_nums=tuple(CODEC.patch_nums),
        hidden_dim=CODEC.hidden_dim,
        depth=CODEC.depth,
        num_heads=CODEC.num_heads,
        fps=CODEC.fps,
    )


def _results(request: BenchRequest, rounds: Sequence[_Times], executor: Executor) -> list[BenchResult]:
    windows = request.windows
    details = {
        "windows": windows,
        "executor": executor.name,
        "shard_bytes": rounds[0].num_bytes,
        "export_s": [round(times.export_s, 2) for times in rounds],
        "verify_s": [round(times.verify_s, 2) for times in rounds],
    }
    return [
        BenchResult(
            SUITE,
            "export to Parquet and WebDataset",
            "windows/s",
            tuple(windows / times.export_s for times in rounds),
            "plain writing of as many bytes, synced",
            tuple(windows / times.write_s for times in rounds),
            details,
        ),
        BenchResult(
            SUITE,
            "verify",
            "windows/s",
            tuple(windows / times.verify_s for times in rounds),
            "plain reading and hashing of as many bytes",
            tuple(windows / times.read_s for times in rounds),
        ),
    ]
