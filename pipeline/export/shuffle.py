"""A shuffle of whole splits in bounded memory: windows are dealt to slots first, then each slot becomes shards.

    fragments --deal--> rows of every slot, one file a task --gather--> shards

A formula says where each window goes (permutation.py), so nobody holds a table of them: a task reads some units, sorts
their rows by slot, a run of a few shards, and writes them to one file. A second kind of task reads what all files have
for its slot, puts it in order and writes its shards. Knows no Ray or torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract.specs import ExportSpec
from pipeline.dataset.paths import DEALT_PATH
from pipeline.errors import IncompleteError
from pipeline.export.build import Fragment, Renames, ShardBuilder, ShardResult, plain_rows, select_rows
from pipeline.export.clips import ClipTable
from pipeline.export.layout import pieces_of_units
from pipeline.export.permutation import Permutation
from pipeline.export.splits import Splits
from pipeline.hashing import digest_of
from pipeline.run.ownership import Ownership
from pipeline.run.tasks import RunTasks
from pipeline.tables import read_stream

Int64s = NDArray[np.int64]


TASK_BYTES = 64 << 20
"""Token rows that a task holds, about; three to four times as much while it sorts or writes them."""

READ_THREADS = 8
_POSITION = "position"
_PLACE = np.dtype([("begin", "<i8"), ("mark", "<u8")])


def _mark(path: str) -> int:
    """Return what every place in a dealt file holds beside where its rows begin."""
    return int(digest_of(path, 16), 16)


@dataclass(frozen=True)
class ShuffledSplit:
    """A split to be shuffled: how many windows, into which shards and slots."""

    split: str
    seed: str
    num_windows: int
    num_shards: int
    first_shard: int
    """Position of its first shard among those of all splits."""
    shards_a_slot: int
    first_slot: int
    """Position of its first slot among those of all splits."""

    @property
    def num_slots(self) -> int:
        """Runs of shards that are gathered together."""
        return -(-self.num_shards // self.shards_a_slot)

    def positions(self, ordinals: Int64s) -> Int64s:
        """Return where windows go: (n,) positions in the split, of windows counted in order of units and rows."""
        return Permutation(self.seed, self.num_windows).places(ordinals)

    def slots(self, positions: Int64s) -> Int64s:
        """Return the slots of positions, among those of all splits."""
        shards = ((positions + 1) * self.num_shards - 1) // self.num_windows
        return self.first_slot + shards // self.shards_a_slot

    def edge(self, shard: int) -> int:
        """Return the first position of a shard of this split."""
        return self.num_windows * shard // self.num_shards


@dataclass(frozen=True)
class DealtPiece:
    """Rows of one fragment that belong to one split, and what number the first of them has there."""

    split: int
    first_ordinal: int
    intervals: Int64s


@dataclass(frozen=True)
class DealTask:
    """Units whose rows are dealt together."""

    index: int
    fragments: tuple[Fragment, ...]
    pieces: tuple[tuple[DealtPiece, ...], ...]
    """By fragment."""
    renames: tuple[Renames, ...]
    """By fragment."""

    whose: str = ""
    """This run, this plan and this export: nobody else's rows stand under such a name."""

    @property
    def path(self) -> str:
        """Where the rows are put, relative to the output."""
        return f"{DEALT_PATH}/{self.whose}-{self.index:06}.bin"


@dataclass(frozen=True)
class Dealer:
    """Deals rows to slots: a task's file begins with the places of the slots in it, then come their Arrow streams.

    With each place stands a mark of whose file it is.
    """

    builder: ShardBuilder
    splits: tuple[ShuffledSplit, ...]

    def build(self, task: DealTask) -> Iterator[str]:
        """Yield the path of a task's file once it stands."""
        rows, slots = self._rows(task)
        order = np.argsort(slots, kind="stable")
        rows, slots = rows.take(pa.array(order)), slots[order]
        num_slots = self.splits[-1].first_slot + self.splits[-1].num_slots
        edges = np.searchsorted(slots, np.arange(num_slots + 1))
        sink = io.BytesIO()
        places = np.zeros(num_slots + 1, _PLACE)
        places["mark"] = _mark(task.path)
        sink.write(places.tobytes())
        for slot in range(num_slots):
            places["begin"][slot] = sink.tell()
            if edges[slot] < edges[slot + 1]:
                with pa.ipc.new_stream(sink, rows.schema) as writer:
                    writer.write_table(rows.slice(edges[slot], edges[slot + 1] - edges[slot]))
        places["begin"][num_slots] = sink.tell()
        del rows
        sink.seek(0)
        sink.write(places.tobytes())
        self.builder.output.publish(task.path, sink.getbuffer())
        yield task.path

    def _rows(self, task: DealTask) -> tuple[pa.Table, Int64s]:
        """Return the rows of a task with their positions, and the slot of each."""
        parts: list[pa.Table] = []
        slots: list[Int64s] = []
        for fragment, pieces, renames in zip(task.fragments, task.pieces, task.renames, strict=True):
            table = self.builder.read_unit(fragment, renames)
            for piece in pieces:
                split = self.splits[piece.split]
                part = select_rows(table, piece.intervals)
                positions = split.positions(piece.first_ordinal + np.arange(part.num_rows))
                parts.append(part.append_column(_POSITION, pa.array(positions)))
                slots.append(split.slots(positions))
        schema = self.builder.schema.append(pa.field(_POSITION, pa.int64()))
        return plain_rows(parts, schema), np.concatenate(slots)


@dataclass(frozen=True)
class GatherTask:
    """A slot whose shards are built."""

    split: int
    first_shard: int
    """Its first shard, counted in the split."""

    def shards(self, split: ShuffledSplit) -> range:
        """Return its shards, counted in the split."""
        return range(self.first_shard, min(self.first_shard + split.shards_a_slot, split.num_shards))


@dataclass(frozen=True)
class Gatherer:
    """Builds the shards of a slot from what every dealt file has for it."""

    builder: ShardBuilder
    splits: tuple[ShuffledSplit, ...]
    paths: tuple[str, ...]

    def build(self, task: GatherTask) -> Iterator[ShardResult]:
        """Yield each shard of a slot once its files stand.

        Raises:
            IncompleteError: a dealt file is gone or holds other rows.
        """
        split = self.splits[task.split]
        shards = task.shards(split)
        rows = self._rows(split.first_slot + task.first_shard // split.shards_a_slot)
        positions = rows[_POSITION].to_numpy()
        order = np.argsort(positions)
        first = split.edge(shards[0])
        if not np.array_equal(positions[order], np.arange(first, split.edge(shards[-1] + 1))):
            raise IncompleteError(
                f"{self.builder.output}/{DEALT_PATH}/.. does not hold each window of split {split.split} once:"
                " run the same command again"
            )
        rows = rows.drop_columns([_POSITION])
        for shard in shards:
            inside = order[split.edge(shard) - first : split.edge(shard + 1) - first]
            tokens = rows.take(pa.array(inside)).cast(self.builder.schema)
            yield self.builder.publish_shard(split.first_shard + shard, split.split, tokens, is_shuffled=True)

    def _rows(self, slot: int) -> pa.Table:
        with ThreadPoolExecutor(READ_THREADS) as pool:
            parts = [part for part in pool.map(lambda path: self._part(path, slot), self.paths) if part is not None]
        return pa.concat_tables(parts).combine_chunks()

    def _part(self, path: str, slot: int) -> pa.Table | None:
        output = self.builder.output
        try:
            size = _PLACE.itemsize
            places = np.frombuffer(output.read_range(path, size * slot, size * (slot + 2)), _PLACE)
            if places["mark"].tolist() != [_mark(path)] * 2:
                raise ValueError("it is of another run")
            data = output.read_range(path, *places["begin"].tolist())
        except (FileNotFoundError, ValueError) as error:
            raise IncompleteError(
                f"{output}/{path} is gone or cut short ({error}): run the same command again"
            ) from error
        if not data:
            return None
        return read_stream(data)


@dataclass(frozen=True)
class Shuffle:
    """A global shuffle to be done; built by `lay_out_shuffle`."""

    splits: tuple[ShuffledSplit, ...]
    deals: tuple[DealTask, ...]
    gathers: tuple[GatherTask, ...]
    digest: str
    """Of the plan and of the export."""

    @property
    def num_shards(self) -> int:
        """Shards of all splits."""
        return sum(split.num_shards for split in self.splits)

    def build(
        self, owner: Ownership, builder: ShardBuilder, run: RunTasks, on_dealt: Callable[[str], None]
    ) -> Iterator[ShardResult]:
        """Yield every shard once its files stand; what was dealt is gone afterwards.

        Args:
            owner: of the builder's output.
            on_dealt: told every file with dealt rows.
        """
        owner.delete(file.path for file in owner.output.list_files(DEALT_PATH))  # of a run that was killed
        deals = [replace(deal, whose=f"{owner.run_id}-{self.digest}") for deal in self.deals]
        try:
            paths: list[str] = []
            for path in run(deals, Dealer(builder, self.splits)):
                paths.append(path)
                on_dealt(path)
            yield from run(self.gathers, Gatherer(builder, self.splits, tuple(sorted(paths))))
        finally:
            with ThreadPoolExecutor(READ_THREADS) as pool:
                list(pool.map(owner.output.delete, [deal.path for deal in deals]))


def lay_out_shuffle(
    clips: ClipTable,
    splits: Splits,
    fragments: Sequence[Fragment],
    renames: Mapping[int, Renames],
    export: ExportSpec,
    task_windows: float,
) -> Shuffle:
    """Return what is to be done: nothing in it grows with the number of windows.

    Args:
        splits: the split of each clip.
        fragments: of each unit that `clips.unit` counts.
        renames: by unit.
        task_windows: what a task takes, about; no byte of the dataset depends on it.
    """
    plan = [[fragment.store, fragment.unit_key, fragment.stamp] for fragment in fragments]
    shuffled: list[ShuffledSplit] = []
    pieces: dict[int, list[DealtPiece]] = {}
    for name in splits.names:
        chosen = np.flatnonzero(splits.holds(name) & (clips.num_windows > 0))
        if not len(chosen):
            continue
        num_windows = 0
        for piece in pieces_of_units(clips, chosen):
            pieces.setdefault(piece.unit, []).append(DealtPiece(len(shuffled), num_windows, piece.intervals))
            num_windows += piece.num_windows
        before = shuffled[-1] if shuffled else None
        num_shards = max(1, round(num_windows / export.windows_per_shard))
        shuffled.append(
            ShuffledSplit(
                split=name,
                seed=digest_of([export.seed, name]),
                num_windows=num_windows,
                num_shards=num_shards,
                first_shard=before.first_shard + before.num_shards if before else 0,
                shards_a_slot=max(1, int(task_windows / (num_windows / num_shards))),
                first_slot=before.first_slot + before.num_slots if before else 0,
            )
        )
    gathers = tuple(
        GatherTask(index, shard)
        for index, split in enumerate(shuffled)
        for shard in range(0, split.num_shards, split.shards_a_slot)
    )
    digest = digest_of([plan, export.described()], 16)
    return Shuffle(tuple(shuffled), tuple(_deals(pieces, fragments, renames, task_windows)), gathers, digest)


def _deals(
    pieces: Mapping[int, Sequence[DealtPiece]],
    fragments: Sequence[Fragment],
    renames: Mapping[int, Renames],
    task_windows: float,
) -> Iterator[DealTask]:
    """Yield units in order, as many in a task as fit."""
    group: list[int] = []
    num_windows = 0
    index = 0
    for unit in [*sorted(pieces), None]:
        size = 0 if unit is None else sum(_num_rows(piece.intervals) for piece in pieces[unit])
        if group and (unit is None or num_windows + size > task_windows):
            yield DealTask(
                index,
                tuple(fragments[member] for member in group),
                tuple(tuple(pieces[member]) for member in group),
                tuple(renames.get(member, ()) for member in group),
            )
            index += 1
            group, num_windows = [], 0
        if unit is not None:
            group.append(unit)
            num_windows += size


def _num_rows(intervals: Int64s) -> int:
    return int((intervals[:, 1] - intervals[:, 0]).sum())
