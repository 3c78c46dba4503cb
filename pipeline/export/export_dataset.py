"""The whole export: committed fragments -> shards, index, card and manifest; publish.py makes them the dataset.

Knows no Ray or torch: who builds the shards is handed in (executors/).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.contract.drop_reasons import NEXT_STEP, DropReason
from pipeline.contract.specs import Contract, ExportSpec
from pipeline.dataset.counts import count_drops
from pipeline.dataset.manifest import GateRecord, Manifest, OtherFile, ShardFile, Status, shards_txt
from pipeline.dataset.paths import CONSTANTS_PATH, WINDOW_INDEX_PATH
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import NoClipLeftError
from pipeline.export.build import Fragment, ShardBuilder
from pipeline.export.card import dataset_card
from pipeline.export.clips import ClipTable, content_of_clips, join_ledgers, resolve_duplicates
from pipeline.export.index import clip_index, count_clips, quarantine, table_to_parquet, unit_index
from pipeline.export.publish import Exported
from pipeline.export.reuse import StandingShards
from pipeline.export.selection import check_columns, judge_clips, keep_passing, unknown_ids
from pipeline.export.shards import ClipsToExport, build_shards
from pipeline.export.shuffle import TASK_BYTES
from pipeline.export.splits import assign_splits
from pipeline.hashing import digest_of
from pipeline.plan.plan import units_digest
from pipeline.run.drop_limit import check_dropped
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Ownership
from pipeline.run.tasks import RunTasks
from pipeline.sources.clip_filter import ClipFilter


@dataclass(frozen=True)
class ExportSource:
    """Committed fragments to export: stores, and the units of each in any order."""

    stores: tuple[TokenStore, ...]
    fragments: tuple[Fragment, ...]
    contract: Contract
    max_dropped: int | float | None = None
    """Dropped clips that are allowed: a count, or a share of all."""
    standing: StandingShards = field(default_factory=StandingShards)
    """Shards of an earlier version in the same output, taken over where they would come out the same."""
    status: Status = "unrated"
    gate: GateRecord | None = None
    clips: ClipFilter = field(default_factory=ClipFilter)
    """Clips that are taken and left out by name."""
    read_clips: ClipFilter = field(default_factory=ClipFilter)
    """Clips that were wanted of the input by name; those left out there leave no trace in ledgers."""
    shuffle_bytes: int = TASK_BYTES
    """Token rows that a task of a global shuffle holds, about; no byte of the dataset depends on it."""


def export_dataset(
    source: ExportSource,
    owner: Ownership,
    export: ExportSpec,
    listed: Mapping[str, str],
    run: RunTasks,
    observer: JobObserver,
) -> Exported:
    """Write the shards of a token dataset from fragments; `publish_dataset` is the caller's last step.

    Args:
        owner: of the output.
        listed: clip id -> split, for `splits.by: file`.
        run: runs tasks here or with Ray.

    Raises:
        ConfigError: filter or splits ask for a column that there is not.
        NoClipLeftError: every clip was dropped, or none passes.
        TooManyDroppedError: more were dropped than the source allows; nothing was written.
        StorageError: storage did not answer after all retries.
    """
    check_columns(export, source.contract.corpus)
    fragments = _in_order(source)
    unit_keys = [fragment.unit_key for fragment in fragments]
    clips, shares = _chosen_clips(source, fragments, export, observer)
    splits = assign_splits(clips, export, listed, shares)
    builder = ShardBuilder(owner.output, source.stores, source.contract, export.formats)
    chosen = ClipsToExport(clips, splits, fragments, source.shuffle_bytes, source.standing)
    built = build_shards(chosen, owner, builder, export, run, observer)

    index = clip_index(clips, splits, built.layouts)
    contents: dict[str, bytes | memoryview] = {
        "index/clips.parquet": table_to_parquet(index),
        "index/units.parquet": table_to_parquet(unit_index(clips, unit_keys)),
        "quarantine.parquet": table_to_parquet(quarantine(clips)),
        "constants.npz": source.stores[0].folder.read(CONSTANTS_PATH),
    }
    if built.window_index is not None:
        contents[WINDOW_INDEX_PATH] = built.window_index
    tars = built.files.get("webdataset", ())
    for split in sorted({shard.split for shard in tars}):
        contents[f"webdataset/{split}/shards.txt"] = shards_txt(tars, split)
    manifest = _manifest(source, export, index, built.files, unit_keys)
    contents["README.md"] = dataset_card(manifest).encode()
    files = tuple(_other_file(path, data) for path, data in sorted(contents.items()))
    return Exported(manifest.model_copy(update={"files": files}), contents, built.recipes)


def _in_order(source: ExportSource) -> list[Fragment]:
    """Return the fragments in order of unit keys; of one key in several stores, in order of what their clips are.

    So the order in which merged datasets are named means nothing.
    """
    copies = Counter(fragment.unit_key for fragment in source.fragments)

    def rank(fragment: Fragment) -> tuple[str, str, int]:
        if copies[fragment.unit_key] == 1:
            return fragment.unit_key, "", 0
        ledger = source.stores[fragment.store].read_ledger(fragment.unit_key, fragment.stamp)
        return fragment.unit_key, digest_of(ledger.to_pydict()), fragment.store

    return sorted(source.fragments, key=rank)


def _chosen_clips(
    source: ExportSource, fragments: Sequence[Fragment], export: ExportSpec, observer: JobObserver
) -> tuple[ClipTable, NDArray[np.float64] | None]:
    """Return the clips with what the dataset holds of each, and where a carried column puts them among the splits.

    What the lists and the filter leave out counts for nothing afterwards: not as a duplicate either.
    """
    clips = join_ledgers(_ledgers(source, fragments))
    num_kept = int((clips.num_windows > 0).sum())
    for setting, lists in (("input.clips", source.read_clips), ("export.clips", source.clips)):
        if ids := unknown_ids(clips, lists):
            observer.on_unknown_ids(setting, ids)

    def read(unit: int, names: Sequence[str]) -> pa.Table:
        fragment = fragments[unit]
        return source.stores[fragment.store].read_columns(fragment.unit_key, fragment.stamp, names)

    judged = judge_clips(clips, source.clips, export, source.contract, read)
    chosen = keep_passing(clips, judged.passes, export, source.contract)
    if num_kept and not chosen.num_windows.any():
        raise NoClipLeftError(_why_none_passes(source, export, num_kept))
    num_filtered = num_kept - int((chosen.num_windows > 0).sum())
    chosen = resolve_duplicates(chosen, export.duplicate_ids, content_of_clips(source.contract.corpus))
    if not chosen.num_windows.any():
        raise NoClipLeftError(_why_no_clip(chosen))
    drops = count_drops(chosen.table["drop_reason"])
    num_left = int((chosen.num_windows > 0).sum()) + num_filtered
    check_dropped({"clips": num_left, "dropped_clips": drops.total()}, drops, source.max_dropped)
    return chosen, judged.split_shares


def _ledgers(source: ExportSource, fragments: Sequence[Fragment]) -> Iterable[pa.Table]:
    if len(source.stores) == 1:
        return source.stores[0].read_ledgers((fragment.unit_key, fragment.stamp) for fragment in fragments)
    return (source.stores[f.store].read_ledger(f.unit_key, f.stamp) for f in fragments)


def _manifest(
    source: ExportSource,
    export: ExportSpec,
    index: pa.Table,
    shards: Mapping[str, tuple[ShardFile, ...]],
    unit_keys: Sequence[str],
) -> Manifest:
    contract = source.contract
    counted = count_clips(index, contract.codec.fps, len(unit_keys))
    return Manifest(
        status=source.status,
        gate=source.gate,
        spec_id=contract.spec.spec_id,
        export_id=export.export_id,
        plan=units_digest(unit_keys),
        contract=contract,
        export=export.described(),
        splits=counted.splits,
        shards=dict(shards),
        files=(),
        counts=counted.counts,
        drops=counted.drops,
    )


def _other_file(path: str, data: bytes | memoryview) -> OtherFile:
    return OtherFile(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _why_none_passes(source: ExportSource, export: ExportSpec, num_clips: int) -> str:
    """Return which filters there are."""
    filters = [f"export.where: {export.where}"] if export.where else []
    if source.clips.digest:
        listed = len(source.clips.include or ()), len(source.clips.exclude)
        filters.append(f"export.clips: {listed[0]:,} listed to be taken, {listed[1]:,} to be left out")
    return (
        f"no clip is left: none of {num_clips:,} passes ({'; '.join(filters)}). Next: compare with the columns of"
        " index/clips.parquet and of a token shard"
    )


def _why_no_clip(clips: ClipTable) -> str:
    """Return what became of every clip: the commonest reason with an example and its next step."""
    total = clips.table.num_rows
    if not total:
        return "no clip was found in the input: check input.clips and the input's files"
    reason, count = count_drops(clips.table["drop_reason"]).most_common(1)[0]
    example = clips.table.filter(pc.equal(clips.table["drop_reason"], reason)).slice(0, 1).to_pylist()[0]
    where = f" ({example['where']})" if example["where"] else ""
    return (
        f"no clip is left: {count} of {total} dropped as {reason}, for example {example['source']}{where}:"
        f" {example['drop_detail']}. Next: {NEXT_STEP[DropReason(reason)]}"
    )
