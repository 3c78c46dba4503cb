"""All shards of a dataset: laid out, taken over where they stand already, and built in whatever order was asked for.

Knows no Ray or torch: who runs the tasks is handed in. The windows of a shuffled export are noted on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from pipeline.contract.specs import ExportSpec
from pipeline.dataset.manifest import ShardFile
from pipeline.export.build import Fragment, Renames, ShardBuilder, ShardResult, ShardTask
from pipeline.export.clips import ClipTable
from pipeline.export.layout import ShardLayout, lay_out_shards
from pipeline.export.reuse import Recipes, StandingShards, recipes_of
from pipeline.export.shuffle import TASK_BYTES, lay_out_shuffle
from pipeline.export.splits import Splits
from pipeline.export.window_index import WindowIndex
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Ownership
from pipeline.run.tasks import RunTasks


@dataclass(frozen=True)
class ClipsToExport:
    """What is to be written: clips with their splits, and where their units' tokens stand."""

    clips: ClipTable
    splits: Splits
    fragments: Sequence[Fragment]
    """By unit."""
    shuffle_bytes: int = TASK_BYTES
    """Token rows that a task of a global shuffle holds, about."""
    standing: StandingShards = field(default_factory=StandingShards)
    """Shards of an earlier version in the same output."""


@dataclass
class BuiltShards:
    """Shards that stand; built by `build_shards`."""

    layouts: Sequence[ShardLayout]
    """Of shards whose clips stand together; none after a global shuffle."""
    recipes: Recipes
    files: dict[str, tuple[ShardFile, ...]] = field(default_factory=dict)
    """Format -> shards in order."""
    window_index: memoryview | None = None
    """The contents of index/windows.parquet, of shuffled exports."""


def build_shards(
    chosen: ClipsToExport,
    owner: Ownership,
    builder: ShardBuilder,
    export: ExportSpec,
    run: RunTasks,
    observer: JobObserver,
) -> BuiltShards:
    """Write every shard that does not stand yet.

    Args:
        owner: of the output.
        run: runs tasks here or with Ray.

    Raises:
        StorageError: storage did not answer after all retries.
    """
    num_windows = int(chosen.clips.num_windows.sum())
    renames = renames_of(chosen.clips)
    if export.shuffle == "global":
        task_windows = chosen.shuffle_bytes / _window_bytes(chosen, builder)
        shuffle = lay_out_shuffle(chosen.clips, chosen.splits, chosen.fragments, renames, export, task_windows)
        built = BuiltShards((), [""] * shuffle.num_shards)
        observer.on_layout(shuffle.num_shards + len(shuffle.deals), num_windows)
        results = shuffle.build(owner, builder, run, observer.on_shard)
    else:
        unit_keys = [fragment.unit_key for fragment in chosen.fragments]
        layouts = lay_out_shards(chosen.clips, chosen.splits, unit_keys, export)
        tasks = _tasks(layouts, chosen.fragments, renames)
        built = BuiltShards(layouts, recipes_of(tasks, chosen.clips, builder.contract))
        observer.on_layout(len(layouts), num_windows)
        results = _reused_and_built(tasks, built.recipes, builder, chosen.standing, run)
    _take(results, built, export, observer)
    return built


def _take(results: Iterator[ShardResult], built: BuiltShards, export: ExportSpec, observer: JobObserver) -> None:
    files: dict[int, Mapping[str, ShardFile]] = {}
    index = WindowIndex() if export.shuffle != "none" else None
    for result in results:
        files[result.index] = result.files
        if index is not None and result.windows is not None:
            index.add(result.index, result.windows)
        for file in result.files.values():
            observer.on_shard(file.path)
    built.files = {name: tuple(files[n][name] for n in range(len(files))) for name in export.formats}
    built.window_index = index.to_parquet() if index is not None else None


def _reused_and_built(
    tasks: Sequence[ShardTask], recipes: Recipes, builder: ShardBuilder, standing: StandingShards, run: RunTasks
) -> Iterator[ShardResult]:
    reused = list(standing.reuse(tasks, recipes, builder.formats, builder.output))
    indices = {result.index for result in reused}
    yield from chain(reused, run([task for task in tasks if task.index not in indices], builder))


def _tasks(
    layouts: Sequence[ShardLayout], fragments: Sequence[Fragment], renames: Mapping[int, Renames]
) -> list[ShardTask]:
    tasks: list[ShardTask] = []
    for index, layout in enumerate(layouts):
        units = [piece.unit for piece in layout.pieces]
        tasks.append(
            ShardTask(
                index=index,
                layout=layout,
                fragments={unit: fragments[unit] for unit in units},
                renames={unit: renames[unit] for unit in units if unit in renames},
            )
        )
    return tasks


def renames_of(clips: ClipTable) -> dict[int, Renames]:
    """Return the clips that are called otherwise than in their fragments, by unit."""
    renames: dict[int, Renames] = {}
    names = clips.table["clip_id"]
    for index in np.flatnonzero(clips.is_renamed):
        unit, start = int(clips.unit[index]), int(clips.first_row[index])
        entry = (start, start + int(clips.num_rows[index]), names[int(index)].as_py())
        renames[unit] = (*renames.get(unit, ()), entry)
    return renames


def _window_bytes(chosen: ClipsToExport, builder: ShardBuilder) -> float:
    """Return what a window takes in memory, about: as much as in the largest fragment, on disk."""
    clips = chosen.clips
    rows = np.bincount(clips.unit, clips.num_rows, minlength=len(chosen.fragments))
    largest = chosen.fragments[int(rows.argmax())]
    store = builder.stores[largest.store]
    file = store.folder.stat(store.fragment_path(largest.unit_key, largest.stamp))
    num_bytes = file.num_bytes if file else 0
    return max(2.0 * builder.contract.codec.half_bytes, num_bytes / float(rows.max()))
