"""The difference of two datasets: settings, clips, windows, bits by scale.

Knows no Ray or torch. Shards are read a few at a time; memory holds the clip indexes and one group of shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.contract.columns import token_schema
from pipeline.dataset.counts import ColumnCounts, common_columns
from pipeline.dataset.open_dataset import BitCounts, OpenDataset, packed_bits
from pipeline.export.build import SUFFIX

MAX_EXAMPLES = 20
STARTS_SHOWN = 5
GROUP_BYTES = 256 << 20
"""Shards of the first dataset that are held at once."""

COMPARED_FIELDS = ("source", "split", "num_frames", "num_windows", "drop_reason", "copies")
"""Of clips that both hold; `copies` counts the rows of one id: dropped duplicates have the id of the kept clip."""

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class FieldDifference:
    """A setting whose values differ; None where one has no such setting."""

    name: str
    ours: Any
    theirs: Any


@dataclass
class Difference:
    """What differs, with up to twenty examples of each kind; grows while the datasets are read."""

    settings: list[FieldDifference] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Clips and windows in both and in one only, and clips that differ by field."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    bits: BitCounts | None = None
    """None where the codecs' bits are laid out differently."""
    columns: ColumnCounts = field(default_factory=lambda: ColumnCounts(()))
    """Of columns beside the bits that both have."""

    @property
    def is_equal(self) -> bool:
        """Whether tokens mean the same, and clips, windows and bits are the same; other settings may differ."""
        is_codec_equal = not any(item.name.startswith("codec.") for item in self.settings)
        is_each_there = not any(count for name, count in self.counts.items() if not name.endswith("_in_both"))
        are_bits_equal = self.bits is not None and not self.bits.num_differing
        return is_codec_equal and is_each_there and are_bits_equal and self.columns.is_equal

    def described(self) -> dict[str, object]:
        """Return the difference as plain values, for programs."""
        return {
            "equal": self.is_equal,
            "settings": [{"field": item.name, "a": item.ours, "b": item.theirs} for item in self.settings],
            "counts": self.counts,
            "examples": self.examples,
            "bits": self.bits.described() if self.bits else None,
            "columns": self.columns.differing,
        }


def compare_datasets(
    ours: OpenDataset, theirs: OpenDataset, on_shard: Callable[[str], None], group_bytes: int = GROUP_BYTES
) -> Difference:
    """Return what differs between two datasets.

    Args:
        on_shard: told the path of every shard that was read.
        group_bytes: shards of `ours` that are held at once, or one shard.

    Raises:
        VerifyError: a shard or index is missing or damaged.
    """
    difference = Difference(settings=compare_settings(_settings(ours), _settings(theirs)))
    common = _compare_clips(ours, theirs, difference)
    codecs = ours.manifest.contract.codec, theirs.manifest.contract.codec
    schemas = [token_schema(data.manifest.contract.codec, data.manifest.contract.corpus) for data in (ours, theirs)]
    difference.columns = ColumnCounts(common_columns(*schemas))
    if (codecs[0].patch_nums, codecs[0].code_dim) == (codecs[1].patch_nums, codecs[1].code_dim):
        difference.bits = BitCounts(codecs[0])
    _Windows(ours, theirs, common, difference).compare(on_shard, group_bytes)
    return difference


def compare_settings(ours: dict[str, Any], theirs: dict[str, Any]) -> list[FieldDifference]:
    """Return the fields of two trees whose values differ, ours first, under dotted names."""
    flat, other = dict(_leaves(ours, "")), dict(_leaves(theirs, ""))
    names = [*flat, *(name for name in other if name not in flat)]
    pairs = ((name, flat.get(name), other.get(name)) for name in names)
    return [FieldDifference(name, here, there) for name, here, there in pairs if here != there]


def _settings(dataset: OpenDataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {**manifest.contract.model_dump(mode="json"), "export": manifest.export, "status": manifest.status}


def _leaves(tree: dict[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


@dataclass(frozen=True)
class _Common:
    """Clips with windows in both: ids, and the number of windows here and there."""

    clip_ids: pa.Array
    ours: Int64s
    theirs: Int64s


def _compare_clips(ours: OpenDataset, theirs: OpenDataset, difference: Difference) -> _Common:
    here, there = _one_row_a_clip(ours.clips), _one_row_a_clip(theirs.clips)
    found = pc.fill_null(pc.index_in(here["clip_id"], value_set=there["clip_id"].combine_chunks()), -1).to_numpy()
    only_there = np.setdiff1d(np.arange(there.num_rows), found)
    for name, ids in (
        ("clips_only_in_a", here["clip_id"].filter(pa.array(found < 0))),
        ("clips_only_in_b", there["clip_id"].take(pa.array(only_there))),
    ):
        difference.counts[name] = len(ids)
        difference.examples[name] = ids[:MAX_EXAMPLES].to_pylist()
    left, right = here.filter(pa.array(found >= 0)), there.take(pa.array(found[found >= 0]))
    difference.counts["clips_in_both"] = left.num_rows
    is_other = {name: pc.not_equal(left[name], right[name]).to_numpy() for name in COMPARED_FIELDS}
    for name, differs in is_other.items():
        difference.counts[f"clips_of_other_{name}"] = int(differs.sum())
    changed = np.flatnonzero(np.any(list(is_other.values()), axis=0))[:MAX_EXAMPLES]
    difference.examples["clips_changed"] = [
        f"{left['clip_id'][row]}: "
        + ", ".join(
            f"{name} {_shown(left[name][row])} and {_shown(right[name][row])}"
            for name, differs in is_other.items()
            if differs[row]
        )
        for row in changed.tolist()
    ]
    kept = (left["num_windows"].to_numpy() > 0) & (right["num_windows"].to_numpy() > 0)
    counts = [table["num_windows"].to_numpy()[kept].astype(np.int64) for table in (left, right)]
    return _Common(left["clip_id"].filter(pa.array(kept)).combine_chunks(), *counts)


def _one_row_a_clip(clips: pa.Table) -> pa.Table:
    """Return the clips sorted by id: of several rows of one id the kept one, with their number as `copies`."""
    keys = [("clip_id", "ascending"), ("num_windows", "descending"), ("drop_reason", "ascending")]
    ordered = clips.take(pc.sort_indices(clips, keys))
    codes = ordered["clip_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, copies = np.unique(codes, return_index=True, return_counts=True)
    return ordered.take(pa.array(first)).append_column("copies", pa.array(copies))


def _shown(value: pa.Scalar) -> str:
    return str(value.as_py()) if value.as_py() != "" else "none"


class _Windows:
    """Compares the windows of common clips; built and used up by `compare_datasets`."""

    def __init__(self, ours: OpenDataset, theirs: OpenDataset, common: _Common, difference: Difference) -> None:
        self._ours, self._theirs, self._common, self._difference = ours, theirs, common, difference
        both = [name for name in SUFFIX if name in ours.manifest.shards and name in theirs.manifest.shards]
        self._names = [both[0] if both else next(iter(data.manifest.shards)) for data in (ours, theirs)]
        self._matched = np.zeros(len(common.clip_ids), np.int64)
        self._shared: set[str] = set()
        if both and not ours.is_shuffled and not theirs.is_shuffled:
            hashes = [{shard.sha256 for shard in data.shards(both[0])} for data in (ours, theirs)]
            self._shared = hashes[0] & hashes[1]

    def compare(self, on_shard: Callable[[str], None], group_bytes: int) -> None:
        """Read all shards but those that both datasets hold, and note what differs."""
        shared = self._shared_windows(self._ours, self._names[0])
        if self._difference.bits:
            self._difference.bits.num_windows += int(shared.sum())
        self._difference.examples["bits"] = []
        for group in self._groups(group_bytes):
            self._compare_group(group, on_shard)
        only_ours = self._common.ours - shared - self._matched
        only_theirs = self._common.theirs - self._shared_windows(self._theirs, self._names[1]) - self._matched
        self._difference.counts["windows_in_both"] = int((self._matched + shared).sum())
        self._difference.counts["windows_only_in_a"] = int(only_ours.sum())
        self._difference.counts["windows_only_in_b"] = int(only_theirs.sum())
        chosen = np.flatnonzero(only_ours + only_theirs)[:MAX_EXAMPLES]
        self._difference.examples["windows"] = self._examples(self._common.clip_ids.take(pa.array(chosen)))

    def _compare_group(self, group: list[int], on_shard: Callable[[str], None]) -> None:
        """Find the windows of a group of our shards in those of theirs that hold the same clips."""
        tables = [self._read(self._ours, 0, shard, on_shard) for shard in group]
        keys = np.concatenate([self._keys(table) for table in tables])
        order = np.argsort(keys)
        keys, tokens = keys[order], pa.concat_tables(tables).take(pa.array(order))
        if not len(keys):
            return
        bits = packed_bits(tokens)
        present = self._common.clip_ids.take(pa.array(np.unique(keys >> 32)))
        for shard in self._theirs.shards_of(self._names[1], present):
            if self._theirs.shards(self._names[1])[shard].sha256 in self._shared:
                continue
            table = self._read(self._theirs, 1, shard, on_shard)
            their_keys = self._keys(table)
            at = np.minimum(np.searchsorted(keys, their_keys), len(keys) - 1)
            is_same = keys[at] == their_keys
            np.add.at(self._matched, their_keys[is_same] >> 32, 1)
            if self._difference.bits:
                found = self._difference.bits.add(bits[at[is_same]], packed_bits(table)[is_same])
                self._note_bits(their_keys[is_same], found)
            if self._difference.columns.names:
                self._difference.columns.add(tokens.take(pa.array(at[is_same])), table.filter(pa.array(is_same)))

    def _note_bits(self, keys: Int64s, found: Int64s) -> None:
        examples = self._difference.examples["bits"]
        for row in np.flatnonzero(found)[: MAX_EXAMPLES - len(examples)]:
            clip_id, start = self._common.clip_ids[int(keys[row] >> 32)], int(keys[row] & 0xFFFFFFFF)
            examples.append(f"{clip_id}, start_frame {start}: {int(found[row])} bits")

    def _groups(self, group_bytes: int) -> Iterator[list[int]]:
        group: list[int] = []
        num_bytes = 0
        for position, shard in enumerate(self._ours.shards(self._names[0])):
            if shard.sha256 in self._shared:
                continue
            if group and num_bytes + shard.bytes > group_bytes:
                yield group
                group, num_bytes = [], 0
            group.append(position)
            num_bytes += shard.bytes
        if group:
            yield group

    def _read(self, dataset: OpenDataset, side: int, shard: int, on_shard: Callable[[str], None]) -> pa.Table:
        """Return a shard's rows of common clips."""
        name = self._names[side]
        table = dataset.read_shard(name, shard)
        on_shard(dataset.shards(name)[shard].path)
        return table.filter(pc.is_in(table["clip_id"], value_set=self._common.clip_ids))

    def _keys(self, table: pa.Table) -> Int64s:
        """Return one number a row: position of its clip among the common ones, then the start frame."""
        clips = pc.index_in(table["clip_id"], value_set=self._common.clip_ids).to_numpy().astype(np.int64)
        keys: Int64s = (clips << 32) | table["start_frame"].to_numpy().astype(np.int64)
        return keys

    def _shared_windows(self, dataset: OpenDataset, name: str) -> Int64s:
        """Return how many windows of each common clip stand in shards that both datasets hold."""
        if not self._shared:
            return np.zeros(len(self._matched), np.int64)
        held = [shard.windows if shard.sha256 in self._shared else 0 for shard in dataset.shards(name)]
        before = np.cumsum([0, *held])
        first, stop = (np.interp(ends, dataset.offsets(name), before) for ends in dataset.spans(name))
        at = pc.index_in(self._common.clip_ids, value_set=dataset.kept["clip_id"].combine_chunks()).to_numpy()
        shared: Int64s = np.rint(stop - first).astype(np.int64)[at]
        return shared

    def _examples(self, clip_ids: pa.Array) -> list[str]:
        """Return what windows of some clips one dataset has and the other has not."""
        ours, theirs = self._starts(self._ours, 0, clip_ids), self._starts(self._theirs, 1, clip_ids)
        lines = []
        for clip_id in clip_ids.to_pylist():
            sides = (("A", ours[clip_id] - theirs[clip_id]), ("B", theirs[clip_id] - ours[clip_id]))
            parts = [f"only in {side} {_shown_starts(starts)}" for side, starts in sides if starts]
            lines.append(f"{clip_id}: start_frame {'; '.join(parts)}")
        return lines

    def _starts(self, dataset: OpenDataset, side: int, clip_ids: pa.Array) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {clip_id: set() for clip_id in clip_ids.to_pylist()}
        for shard in dataset.shards_of(self._names[side], clip_ids) if len(clip_ids) else ():
            table = dataset.read_shard(self._names[side], shard)
            mine = table.filter(pc.is_in(table["clip_id"], value_set=clip_ids))
            for clip_id, start in zip(mine["clip_id"].to_pylist(), mine["start_frame"].to_pylist(), strict=True):
                found[clip_id].add(start)
        return found


def _shown_starts(starts: set[int]) -> str:
    shown = ", ".join(str(start) for start in sorted(starts)[:STARTS_SHOWN])
    return f"{shown}, .. ({len(starts)} in all)" if len(starts) > STARTS_SHOWN else shown
