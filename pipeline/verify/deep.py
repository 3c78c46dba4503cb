"""Windows of a dataset encoded again from their source motion, and compared bit by bit, with what is emitted of them.

Knows no Ray. dataset.py proves everything that needs no model; this is the part that does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from bitwise_vae.checkpoints.checkpoint import read_checkpoint
from bitwise_vae.inference.encoder import WindowEncoder
from pipeline.contract.columns import emitted_columns, token_schema
from pipeline.contract.specs import Contract
from pipeline.dataset.counts import array_of
from pipeline.dataset.open_dataset import BitCounts, OpenDataset, packed_bits
from pipeline.errors import InputNotFoundError
from pipeline.export.selection import starts_passing
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.units import Unit
from pipeline.settings.run_config import RunConfig
from pipeline.settings.where import Where
from pipeline.sources.registry import open_motion
from pipeline.stages.blocks import MotionBlock
from pipeline.stages.codec import Codec, numerics_here, open_codec, pick_device, require_same_codec
from pipeline.stages.emit import Arrays, WindowEmitter, WindowSpans
from pipeline.stages.read import UnitReader
from pipeline.storage import InputRoot
from pipeline.tables import read_table

TOLERATED_SHARE = 1e-3
"""Share of differing bits, or of latents that differ by more than rounding, that other numerics explain."""

TOLERATED_DISTANCE = 0.01
"""Difference of two values of a latent, as a share of the larger one or of 1, that rounding explains."""

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
class EmittedCounts:
    """How an emitted column differs from what was encoded again; grows while windows are compared."""

    num_windows: int = 0
    num_differing: int = 0
    """Windows that differ at all."""
    num_values: int = 0
    """Bits, or numbers of a latent."""
    num_off: int = 0
    """Of these, bits that differ, and numbers that differ by more than rounding."""

    def add(self, ours: NDArray[np.generic], stored: NDArray[np.generic]) -> None:
        """Compare windows in pairs, (windows, ..) each: packed bits, or a latent in float16."""
        self.num_windows += len(ours)
        self.num_differing += int((ours != stored).reshape(len(ours), -1).any(axis=1).sum()) if len(ours) else 0
        if ours.dtype == np.uint8:
            self.num_values += 8 * ours.size
            self.num_off += int(np.unpackbits(np.asarray(ours, np.uint8) ^ np.asarray(stored, np.uint8)).sum())
            return
        here, there = np.asarray(ours, np.float64), np.asarray(stored, np.float64)
        self.num_values += here.size
        allowed = TOLERATED_DISTANCE * np.maximum(1.0, np.maximum(np.abs(here), np.abs(there)))
        self.num_off += int((~(np.abs(here - there) <= allowed)).sum())

    @property
    def share_off(self) -> float:
        """Share of values that are off."""
        return self.num_off / self.num_values if self.num_values else 0.0


@dataclass
class DeepVerified:
    """The result: bits that differ by scale, emitted columns that differ, windows whose motion is not what it was."""

    contract: Contract
    bits: BitCounts
    differing_numerics: Sequence[str]
    """``field: ours, theirs`` where this machine computes with other numerics than the dataset's."""
    findings: list[str] = field(default_factory=list)
    emitted: dict[str, EmittedCounts] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """Whether all is equal; under other numerics, whether few enough bits and numbers differ."""
        if self.findings:
            return False
        if self.differing_numerics:
            shares = [self.bits.share, *(counts.share_off for counts in self.emitted.values())]
            return max(shares) <= TOLERATED_SHARE
        return not self.bits.num_differing and not any(counts.num_differing for counts in self.emitted.values())


@dataclass(frozen=True)
class _Chosen:
    """A window to look at: its clip as the index names it, and which of the clip's windows it is."""

    clip_id: str
    num_frames: int
    nth: int


@dataclass(frozen=True)
class _Found:
    """Chosen windows in the motion that was read: clip ids as the index names them, and where they stand.

    The spans' own clip ids are those under which the motion was read.
    """

    clip_ids: Sequence[str]
    spans: WindowSpans


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
    """Encode randomly chosen windows again and compare their bits, and what is emitted, with the dataset's.

    Where latents are stored, flips are drawn from these again and must be equal, whatever the numerics.

    Raises:
        InputNotFoundError: the inputs do not hold a chosen clip.
        StorageError: storage did not answer after all retries.
    """
    contract, device = job.dataset.manifest.contract, pick_device()
    here = contract.model_copy(update={"numerics": numerics_here(device)})
    result = DeepVerified(contract, BitCounts(contract.codec), here.differences(contract))
    model = read_checkpoint(job.codec.data, "codec.safetensors")
    encoder = WindowEncoder(
        model,
        precision=contract.corpus.precision,
        batch_size=contract.corpus.batch_size,
        device=device,
        num_threads=run.threads or os.cpu_count() or 1,
    )
    emitter = WindowEmitter(model, encoder, contract.corpus)
    reader = UnitReader({root.name: root.folder for root in job.roots}, contract.spec)
    for unit, chosen in _chosen_by_unit(job):
        block = reader.read([unit])
        found = _find(block, chosen, unit, result, Where(job.dataset.manifest.export.get("where", "")))
        if not found:
            continue
        bits, emitted = emitter.encode(torch.tensor(block.motion), found.spans)
        rows, stored = _stored_rows(job.dataset, found)
        for row in np.setdiff1d(np.arange(len(bits)), rows):
            where = f"start_frame {found.spans.start_frame[row]}"
            result.findings.append(f"clip {found.clip_ids[row]!r} has no window at {where} in the dataset")
        result.bits.add(bits.reshape(-1, 2, contract.codec.half_bytes)[rows], packed_bits(stored))
        _compare_emitted(emitter, found, rows, stored, emitted, result)
    return result


def _compare_emitted(
    emitter: WindowEmitter, found: _Found, rows: Int64s, stored: pa.Table, emitted: Arrays, result: DeepVerified
) -> None:
    """Compare what is emitted of some windows with what the dataset stores of them."""
    contract = result.contract
    columns = {array.name: array for array in emitted_columns(contract.codec, contract.corpus)}
    there = {name: array_of(stored[name], array.dtype).reshape(-1, *array.shape) for name, array in columns.items()}
    for name in columns:
        result.emitted.setdefault(name, EmittedCounts()).add(emitted[name][rows], there[name])
    rule = contract.corpus.flips
    if rule is None or "this_latent" not in there:
        return
    names = found.spans.clip_ids()
    ids, starts = [names[row] for row in rows], found.spans.start_frame[rows]
    drawn = emitter.draw_flips(there["this_latent"].astype(np.float16), ids, starts, rule)
    for name, again in zip(("flip_targets", "flip_bits"), drawn, strict=True):
        for row in np.flatnonzero((again != there[name]).any(axis=(1, 2, 3))):
            result.findings.append(f"clip {ids[row]!r}, start_frame {starts[row]}: {name} are not those of its latent")


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
    block: MotionBlock, chosen: Sequence[_Chosen], unit: Unit, result: DeepVerified, where: Where
) -> _Found | None:
    """Return the chosen windows that the motion still holds."""
    kept = block.ledger.filter(pc.greater(block.ledger["num_windows"], 0))
    frames = kept["num_frames"].to_numpy().astype(np.int64)
    windows = kept["num_windows"].to_numpy().astype(np.int64)
    frame_end, window_end = np.cumsum(frames), np.cumsum(windows)
    found: list[tuple[_Chosen, int, int, int, str]] = []
    for window in chosen:
        row = _row_of(kept, window.clip_id)
        starts = np.zeros(0, np.int64)
        if row is not None and frames[row] == window.num_frames:
            starts = block.start_frame[window_end[row] - windows[row] : window_end[row]]
            source, window_frames = kept["source"][row].as_py(), result.bits.codec.window_frames
            starts = starts_passing(where, starts, window.num_frames, source, window_frames)
        if row is None or window.nth >= len(starts):
            what = "is not there any more" if row is None else "has another length now"
            result.findings.append(f"clip {window.clip_id!r} {what} ({unit.parts[0].source}): the input was changed")
            continue
        end = int(frame_end[row])
        start, name = int(starts[window.nth]), kept["clip_id"][row].as_py()
        found.append((window, end - window.num_frames, end, start, name))
    if not found:
        return None
    begins, ends, starts = (np.array([item[column] for item in found], np.int64) for column in (1, 2, 3))
    read_as = [item[4] for item in found]
    return _Found([item[0].clip_id for item in found], WindowSpans(begins, ends, starts, lambda: read_as))


def _row_of(ledger: pa.Table, clip_id: str) -> int | None:
    """Return the row of a clip, also of one that `duplicate_ids: suffix` renamed."""
    names: list[str] = ledger["clip_id"].to_pylist()
    if clip_id in names:
        return names.index(clip_id)
    base, _, suffix = clip_id.rpartition("~")
    digests: list[str] = ledger["motion_digest"].to_pylist()
    rows = (row for row, name in enumerate(names) if name == base and digests[row].startswith(suffix))
    return next(rows, None)


def _stored_rows(dataset: OpenDataset, found: _Found) -> tuple[Int64s, pa.Table]:
    """Return which of the windows the dataset has, and its rows of them, in one order."""
    name, contract = next(iter(dataset.manifest.shards)), dataset.manifest.contract
    keys_found = zip(found.clip_ids, found.spans.start_frame.tolist(), strict=True)
    rows = {key: row for row, key in enumerate(keys_found)}
    parts = [token_schema(contract.codec, contract.corpus).empty_table()]
    places: list[int] = []
    wanted = pa.array(sorted(set(found.clip_ids)))
    for shard in dataset.shards_of(name, wanted):
        table = dataset.read_shard(name, shard)
        table = table.filter(pc.is_in(table["clip_id"], value_set=wanted))
        keys = list(zip(table["clip_id"].to_pylist(), table["start_frame"].to_pylist(), strict=True))
        parts.append(table.filter(pa.array([key in rows for key in keys], pa.bool_())))
        places.extend(rows[key] for key in keys if key in rows)
    return np.array(places, np.int64), pa.concat_tables(part.drop_columns(["source"]) for part in parts)


def _unit_keys(dataset: OpenDataset) -> list[str]:
    keys: list[str] = _unit_index(dataset)["unit_key"].to_pylist()
    return keys


def _unit_ends(dataset: OpenDataset) -> Int64s:
    return np.cumsum(_unit_index(dataset)["num_clips"].to_numpy(), dtype=np.int64)


def _unit_index(dataset: OpenDataset) -> pa.Table:
    return read_table(dataset.folder.read("index/units.parquet"))
