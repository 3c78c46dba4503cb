"""Windows of a dataset encoded again from their source motion, and compared bit by bit.

Knows no Ray. verify.py proves everything that needs no model; this is the part that does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from bitwise_vae.checkpoint import read_checkpoint
from bitwise_vae.encode import WindowEncoder
from pipeline.blocks import MotionBlock
from pipeline.codec import Codec, numerics_here, open_codec, pick_device, require_same_codec
from pipeline.dataset_rows import BitCounts, OpenDataset, packed_bits
from pipeline.errors import InputNotFoundError
from pipeline.job_config import RunConfig
from pipeline.plan import Plan, Unit, make_plan
from pipeline.read_units import UnitReader
from pipeline.request import open_motion
from pipeline.storage import InputRoot

TOLERATED_SHARE = 1e-3
"""Share of differing bits that other numerics explain."""

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class DeepRequest:
    """What a person gave for a deep verification: a dataset does not know where it came from."""

    inputs: tuple[str, ...]
    checkpoint: str
    preset: str | None
    model_config: str | None
    num_windows: int
    seed: int


@dataclass
class DeepVerified:
    """The result: bits that differ by scale, and windows whose motion is not what it was."""

    bits: BitCounts
    differing_numerics: Sequence[str]
    """``field: ours, theirs`` where this machine computes with other numerics than the dataset's."""
    findings: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether all bits are equal; under other numerics, whether few enough differ."""
        allowed = TOLERATED_SHARE if self.differing_numerics else 0.0
        return not self.findings and self.bits.share <= allowed


@dataclass(frozen=True)
class _Chosen:
    """A window to look at: its clip as the index names it, and which of the clip's windows it is."""

    clip_id: str
    num_frames: int
    nth: int


@dataclass(frozen=True)
class DeepJob:
    """A request that can start; built by `prepare_deep`."""

    dataset: OpenDataset
    request: DeepRequest
    codec: Codec
    roots: Sequence[InputRoot]
    plan: Plan


def prepare_deep(dataset: OpenDataset, request: DeepRequest, run: RunConfig) -> DeepJob:
    """Read and check inputs and checkpoint against the dataset's contract.

    Raises:
        RequestError: an input or the checkpoint is missing, or not the one of the dataset.
    """
    contract, options = dataset.manifest.contract, run.storage_options
    codec = open_codec(request.checkpoint, preset=request.preset, model_config=request.model_config, options=options)
    require_same_codec(codec, contract, str(dataset.folder))
    roots = open_motion(request.inputs, dataset.folder, contract.corpus.format)
    return DeepJob(dataset, request, codec, roots, make_plan(roots, contract.corpus))


def deep_verify(job: DeepJob, run: RunConfig) -> DeepVerified:
    """Encode randomly chosen windows again and compare their bits with the dataset's.

    Raises:
        InputNotFoundError: the inputs do not hold a chosen clip.
        StorageError: storage did not answer after all retries.
    """
    contract, device = job.dataset.manifest.contract, pick_device()
    here = contract.model_copy(update={"numerics": numerics_here(device)})
    result = DeepVerified(BitCounts(contract.codec), here.differences(contract))
    encoder = WindowEncoder(
        read_checkpoint(job.codec.data, "codec.safetensors"),
        precision=contract.corpus.precision,
        batch_size=contract.corpus.batch_size,
        device=device,
        num_threads=run.threads or os.cpu_count() or 1,
    )
    reader = UnitReader({root.name: root.folder for root in job.roots}, contract.spec)
    for unit, chosen in _chosen_by_unit(job):
        block = reader.read([unit])
        found = _find(block, chosen, unit, result)
        if not found:
            continue
        windows, begin, end, start = found
        bits = encoder.encode(torch.tensor(block.motion), begin, end, start)
        names = [window.clip_id for window in windows]
        stored, is_stored = _stored_bits(job.dataset, names, start)
        for row in np.flatnonzero(~is_stored):
            result.findings.append(f"clip {names[row]!r} has no window at start_frame {start[row]} in the dataset")
        half_bytes = contract.codec.half_bytes
        result.bits.add(bits.reshape(-1, 2, half_bytes)[is_stored], stored[is_stored])
    return result


def _chosen_by_unit(job: DeepJob) -> Iterator[tuple[Unit, list[_Chosen]]]:
    """Yield units with the windows chosen from them: seeded, each window as likely as any other."""
    clips = job.dataset.clips
    counts = clips["num_windows"].to_numpy().astype(np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1])
    rng = np.random.default_rng(job.request.seed)
    chosen = np.sort(rng.choice(total, min(job.request.num_windows, total), replace=False))
    clip_of = np.searchsorted(ends, chosen, side="right")
    unit_of = np.searchsorted(_unit_ends(job.dataset), clip_of, side="right")
    keys = _unit_keys(job.dataset)
    units = {unit.key: unit for unit in job.plan.units}
    for index in np.unique(unit_of):
        rows = clip_of[unit_of == index]
        unit = units.get(keys[index])
        if unit is None:
            raise InputNotFoundError(
                f"{clips['source'][int(rows[0])]} is not found in the inputs as it was when the dataset was made:"
                " name the same inputs, in the same order and under the same names"
            )
        nth = (chosen - ends[clip_of] + counts[clip_of])[unit_of == index]
        names, frames = clips["clip_id"], clips["num_frames"]
        yield (
            unit,
            [
                _Chosen(names[row].as_py(), frames[row].as_py(), int(n))
                for row, n in zip(rows.tolist(), nth, strict=True)
            ],
        )


def _find(
    block: MotionBlock, chosen: Sequence[_Chosen], unit: Unit, result: DeepVerified
) -> tuple[list[_Chosen], Int64s, Int64s, Int64s] | None:
    """Return the chosen windows that the motion still holds: first and last row of each one's clip, and start."""
    kept = block.ledger.filter(pc.greater(block.ledger["num_windows"], 0))
    frames = kept["num_frames"].to_numpy().astype(np.int64)
    windows = kept["num_windows"].to_numpy().astype(np.int64)
    frame_end, window_end = np.cumsum(frames), np.cumsum(windows)
    found: list[tuple[_Chosen, int, int, int]] = []
    for window in chosen:
        row = _row_of(kept, window.clip_id)
        if row is None or frames[row] != window.num_frames or window.nth >= windows[row]:
            what = "is not there any more" if row is None else "has another length now"
            result.findings.append(f"clip {window.clip_id!r} {what} ({unit.parts[0].source}): the input was changed")
            continue
        end = int(frame_end[row])
        start = int(block.start_frame[window_end[row] - windows[row] + window.nth])
        found.append((window, end - window.num_frames, end, start))
    if not found:
        return None
    columns = [np.array([item[column] for item in found], np.int64) for column in (1, 2, 3)]
    return [item[0] for item in found], columns[0], columns[1], columns[2]


def _row_of(ledger: pa.Table, clip_id: str) -> int | None:
    """Return the row of a clip, also of one that `duplicate_ids: suffix` renamed."""
    names: list[str] = ledger["clip_id"].to_pylist()
    if clip_id in names:
        return names.index(clip_id)
    base, _, suffix = clip_id.rpartition("~")
    digests: list[str] = ledger["motion_digest"].to_pylist()
    rows = (row for row, name in enumerate(names) if name == base and digests[row].startswith(suffix))
    return next(rows, None)


def _stored_bits(
    dataset: OpenDataset, clip_ids: Sequence[str], starts: Int64s
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the dataset's bits of windows, (windows, 2, half_bytes), and which of the windows it has."""
    name = next(iter(dataset.manifest.shards))
    rows = {key: row for row, key in enumerate(zip(clip_ids, starts.tolist(), strict=True))}
    bits = np.zeros((len(starts), 2, dataset.manifest.contract.codec.half_bytes), np.uint8)
    is_found = np.zeros(len(starts), np.bool_)
    wanted = pa.array(sorted(set(clip_ids)))
    for shard in dataset.shards_of(name, wanted):
        table = dataset.read_shard(name, shard)
        table = table.filter(pc.is_in(table["clip_id"], value_set=wanted))
        keys = zip(table["clip_id"].to_pylist(), table["start_frame"].to_pylist(), strict=True)
        there = [(row, rows[key]) for row, key in enumerate(keys) if key in rows]
        if there:
            source, target = (np.array(column) for column in zip(*there, strict=True))
            bits[target] = packed_bits(table)[source]
            is_found[target] = True
    return bits, is_found


def _unit_keys(dataset: OpenDataset) -> list[str]:
    keys: list[str] = _unit_index(dataset)["unit_key"].to_pylist()
    return keys


def _unit_ends(dataset: OpenDataset) -> Int64s:
    return np.cumsum(_unit_index(dataset)["num_clips"].to_numpy(), dtype=np.int64)


def _unit_index(dataset: OpenDataset) -> pa.Table:
    return pq.read_table(pa.BufferReader(dataset.folder.read("index/units.parquet")))
