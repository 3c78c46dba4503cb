"""The whole export: committed fragments -> shards, index, card and manifest; publish.py makes them the dataset.

Knows no Ray or torch: who builds the shards is handed in (graph.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Contract, ExportSpec
from pipeline.drop_limit import check_dropped
from pipeline.errors import NoClipLeftError
from pipeline.export.build import Fragment, ShardBuilder, ShardResult, ShardTask
from pipeline.export.card import dataset_card
from pipeline.export.clips import ClipTable, join_ledgers, resolve_duplicates
from pipeline.export.index import clip_index, count_clips, quarantine, table_to_parquet, unit_index, window_index
from pipeline.export.layout import ShardLayout, lay_out_shards
from pipeline.export.publish import WINDOW_INDEX_PATH, Exported
from pipeline.export.reuse import StandingShards, recipes_of
from pipeline.export.splits import assign_splits
from pipeline.manifest import GateRecord, Manifest, OtherFile, ShardFile, Status, shards_txt
from pipeline.observer import JobObserver
from pipeline.plan import units_digest
from pipeline.quarantine import NEXT_STEP, DropReason
from pipeline.storage import Folder
from pipeline.token_store import CONSTANTS_PATH, TokenStore

BuildShards = Callable[[Sequence[ShardTask], ShardBuilder], Iterator[ShardResult]]

GLOBAL_SHARDS_A_TASK = 8
"""Shards built together where each draws from every fragment, so that fragments are read fewer times."""


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


def export_dataset(
    source: ExportSource,
    output: Folder,
    export: ExportSpec,
    listed: Mapping[str, str],
    build: BuildShards,
    observer: JobObserver,
) -> Exported:
    """Write the shards of a token dataset from fragments; `publish_dataset` is the caller's last step.

    Args:
        listed: clip id -> split, for `splits.by: file`.
        build: builds shards here or with Ray.

    Raises:
        NoClipLeftError: every clip was dropped.
        TooManyDroppedError: more were dropped than the source allows; nothing was written.
        StorageError: storage did not answer after all retries.
    """
    fragments = sorted(source.fragments, key=lambda fragment: (fragment.unit_key, fragment.store))
    unit_keys = [fragment.unit_key for fragment in fragments]
    clips = resolve_duplicates(join_ledgers(_ledgers(source, fragments)), export.duplicate_ids)
    if not clips.num_windows.any():
        raise NoClipLeftError(_why_no_clip(clips))
    drops = Counter(reason for reason in clips.table["drop_reason"].to_pylist() if reason)
    kept = int((clips.num_windows > 0).sum())
    check_dropped({"clips": kept, "dropped_clips": drops.total()}, drops, source.max_dropped)
    splits = assign_splits(clips, export, listed)
    layouts = lay_out_shards(clips, splits, unit_keys, export)
    observer.on_layout(len(layouts), int(clips.num_windows.sum()))

    tasks = _tasks(layouts, clips, fragments, export)
    recipes = recipes_of(tasks, clips, source.contract)
    results = {result.index: result for result in source.standing.reuse(tasks, recipes, export.formats, output)}
    builder = ShardBuilder(output, source.stores, source.contract, export.formats)
    built = build([task for task in tasks if task.first_index not in results], builder)
    for result in chain(list(results.values()), built):
        results[result.index] = result
        for file in result.files.values():
            observer.on_shard(file.path)
    ordered = [results[index] for index in range(len(layouts))]
    shards: dict[str, tuple[ShardFile, ...]] = {
        name: tuple(result.files[name] for result in ordered) for name in export.formats
    }

    tables = {
        "index/clips.parquet": clip_index(clips, splits, layouts),
        "index/units.parquet": unit_index(clips, unit_keys),
        "quarantine.parquet": quarantine(clips),
    }
    if export.shuffle != "none":
        tables[WINDOW_INDEX_PATH] = window_index([result.windows for result in ordered])
    contents = {path: table_to_parquet(table) for path, table in tables.items()}
    contents["constants.npz"] = source.stores[0].folder.read(CONSTANTS_PATH)
    for split in sorted({shard.split for shard in shards.get("webdataset", ())}):
        contents[f"webdataset/{split}/shards.txt"] = shards_txt(shards["webdataset"], split)
    manifest = _manifest(source, export, tables["index/clips.parquet"], shards, unit_keys)
    contents["README.md"] = dataset_card(manifest).encode()
    files = tuple(_other_file(path, data) for path, data in sorted(contents.items()))
    return Exported(manifest.model_copy(update={"files": files}), contents, recipes)


def _ledgers(source: ExportSource, fragments: Sequence[Fragment]) -> Iterable[pa.Table]:
    if len(source.stores) == 1:
        return source.stores[0].read_ledgers((fragment.unit_key, fragment.stamp) for fragment in fragments)
    return (source.stores[f.store].read_ledger(f.unit_key, f.stamp) for f in fragments)


def _tasks(
    layouts: Sequence[ShardLayout], clips: ClipTable, fragments: Sequence[Fragment], export: ExportSpec
) -> list[ShardTask]:
    step = GLOBAL_SHARDS_A_TASK if export.shuffle == "global" else 1
    renames = _renames(clips)
    tasks: list[ShardTask] = []
    for first in range(0, len(layouts), step):
        group = tuple(layouts[first : first + step])
        units = {piece.unit for layout in group for piece in layout.pieces}
        tasks.append(
            ShardTask(
                first_index=first,
                layouts=group,
                fragments={unit: fragments[unit] for unit in units},
                renames={unit: renames[unit] for unit in units if unit in renames},
            )
        )
    return tasks


def _renames(clips: ClipTable) -> dict[int, tuple[tuple[int, int, str], ...]]:
    renames: dict[int, tuple[tuple[int, int, str], ...]] = {}
    names, windows = clips.table["clip_id"], clips.num_windows
    for index in np.flatnonzero(clips.is_renamed):
        unit, start = int(clips.unit[index]), int(clips.first_row[index])
        entry = (start, start + int(windows[index]), names[int(index)].as_py())
        renames[unit] = (*renames.get(unit, ()), entry)
    return renames


def _manifest(
    source: ExportSource,
    export: ExportSpec,
    index: pa.Table,
    shards: dict[str, tuple[ShardFile, ...]],
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
        shards=shards,
        files=(),
        counts=counted.counts,
        drops=counted.drops,
    )


def _other_file(path: str, data: bytes) -> OtherFile:
    return OtherFile(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _why_no_clip(clips: ClipTable) -> str:
    """Return what became of every clip: the commonest reason with an example and its next step."""
    total = clips.table.num_rows
    if not total:
        return "no clip was found in the input: check input.clips and the input's files"
    reasons = Counter(clips.table["drop_reason"].to_pylist())
    reason, count = reasons.most_common(1)[0]
    example = clips.table.filter(pc.equal(clips.table["drop_reason"], reason)).slice(0, 1).to_pylist()[0]
    where = f" ({example['where']})" if example["where"] else ""
    return (
        f"no clip is left: {count} of {total} dropped as {reason}, for example {example['source']}{where}:"
        f" {example['drop_detail']}. Next: {NEXT_STEP[DropReason(reason)]}"
    )
