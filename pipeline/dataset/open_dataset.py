"""A published dataset opened for reading: its clips, which shards hold them, and shards of either format as tables.

Knows no Ray or torch. Holds the clip index in memory, and of shards only what the caller keeps.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.contract.schema import BITS_COLUMNS
from pipeline.contract.specs import CodecSpec
from pipeline.dataset.counts import array_of
from pipeline.dataset.manifest import Manifest, ShardFile, read_beside, require_manifest
from pipeline.dataset.paths import WINDOW_INDEX_PATH
from pipeline.dataset.tar_shard import table_of_tar
from pipeline.errors import InputNotFoundError, VerifyError
from pipeline.storage import Folder
from pipeline.tables import read_table

NUM_NEAR = 3
MAX_COMPARED = 100_000
"""Clip ids among which a similar one is looked for."""

_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


@dataclass(frozen=True)
class OpenDataset:
    """Built by `open_dataset` for one command; owns the clip index."""

    folder: Folder
    manifest: Manifest
    clips: pa.Table
    """index/clips.parquet."""

    @property
    def is_shuffled(self) -> bool:
        """Whether windows of a clip stand apart."""
        return bool(self.manifest.export["shuffle"] != "none")

    @cached_property
    def kept(self) -> pa.Table:
        """The clips that have windows; their ids are unique."""
        return self.clips.filter(pc.greater(self.clips["num_windows"], 0))

    def shards(self, name: str) -> Sequence[ShardFile]:
        """Return the shards of a format, in order."""
        return self.manifest.shards[name]

    def offsets(self, name: str) -> NDArray[np.int64]:
        """Return (num_shards + 1,) where each shard begins, all windows counted through."""
        return np.cumsum([0, *(shard.windows for shard in self.shards(name))], dtype=np.int64)

    def spans(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first and past-the-last window of every kept clip, all windows counted through; unshuffled only."""
        first = self.offsets(name)[self.kept["first_shard"].to_numpy()] + self.kept["first_row"].to_numpy()
        return first, first + self.kept["num_windows"].to_numpy()

    def shards_of(self, name: str, clip_ids: pa.Array) -> list[int]:
        """Return the positions of the shards that hold windows of these clips, rising."""
        if self.is_shuffled:
            inside = pc.is_in(self._windows["clip_id"], value_set=clip_ids)
            return sorted(pc.unique(self._windows["shard"].filter(inside)).to_pylist())
        chosen = pc.is_in(self.kept["clip_id"], value_set=clip_ids).to_numpy()
        first, stop = (ends[chosen] for ends in self.spans(name))
        inner = self.offsets(name)[1:]
        begins, ends = (np.searchsorted(inner, at, side="right") for at in (first, stop - 1))
        return sorted({shard for begin, end in zip(begins, ends, strict=True) for shard in range(begin, end + 1)})

    def read_shard(self, name: str, position: int) -> pa.Table:
        """Return the token rows of a shard.

        Raises:
            VerifyError: it is missing or damaged.
        """
        shard, contract = self.shards(name)[position], self.manifest.contract
        data = _read(self.folder, shard.path)
        try:
            if name == "parquet":
                return read_table(data)
            return table_of_tar(data, contract.codec, contract.corpus, shard.path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise VerifyError(f"{self.folder}/{shard.path} is damaged ({error}): run motion-tokens verify") from error

    @cached_property
    def _windows(self) -> pa.Table:
        return read_table(read_beside(self.folder, self.manifest, WINDOW_INDEX_PATH))


def open_dataset(folder: Folder, version: str | None = None) -> OpenDataset:
    """Return a dataset with its clip index.

    Args:
        version: an earlier one; the current one where it is not given.

    Raises:
        InputNotFoundError: there is no dataset.
        OutputMismatchError: dataset.json is not one of ours.
        VerifyError: the version or its index is missing or damaged.
    """
    manifest = require_manifest(folder, version)
    try:
        clips = read_table(read_beside(folder, manifest, "index/clips.parquet"))
    except pa.ArrowException as error:
        raise VerifyError(f"{folder}/index/clips.parquet is damaged ({error}): run motion-tokens verify") from error
    return OpenDataset(folder, manifest, clips)


def require_clips(dataset: OpenDataset, clip_ids: Sequence[str]) -> None:
    """Make sure that a dataset has windows of clips.

    Raises:
        InputNotFoundError: it has none of one; the message says what it knows of that clip.
    """
    wanted = pa.array(clip_ids, pa.string())
    missing = wanted.filter(pc.invert(pc.is_in(wanted, value_set=dataset.kept["clip_id"].combine_chunks())))
    if len(missing):
        clip_id = missing[0].as_py()
        known = _what_is_known(dataset, clip_id)
        raise InputNotFoundError(f"{dataset.folder} has no windows of clip {clip_id!r}: {known}")


def windows_of_clip(
    dataset: OpenDataset, shard_format: str, clip_id: str, read_shard: Callable[[int], pa.Table] | None = None
) -> pa.Table:
    """Return the token rows of a clip, in order of `start_frame`, from shards of either format.

    Args:
        read_shard: gives a shard by its position; None reads it anew.

    Raises:
        InputNotFoundError: the dataset has no windows of such a clip; the message says what it knows of it.
        VerifyError: a shard is missing or damaged, or lacks windows of the clip.
    """
    require_clips(dataset, [clip_id])
    wanted = dataset.kept.filter(pc.equal(dataset.kept["clip_id"], clip_id))
    num_windows = int(wanted["num_windows"][0].as_py())
    parts = []
    for position in dataset.shards_of(shard_format, pa.array([clip_id])):
        table = read_shard(position) if read_shard else dataset.read_shard(shard_format, position)
        parts.append(table.filter(pc.equal(table["clip_id"], clip_id)))
    rows = pa.concat_tables(parts).sort_by("start_frame")
    if len(rows) != num_windows:
        raise VerifyError(
            f"{dataset.folder}: clip {clip_id!r} should have {num_windows} windows, its shards hold {len(rows)}:"
            " run motion-tokens verify"
        )
    return rows


def _what_is_known(dataset: OpenDataset, clip_id: str) -> str:
    dropped = dataset.clips.filter(pc.equal(dataset.clips["clip_id"], clip_id))
    if len(dropped):
        return f"it was dropped as {dropped['drop_reason'][0].as_py()}, quarantine.parquet says why"
    names = dataset.kept["clip_id"][:MAX_COMPARED].to_pylist()
    near = difflib.get_close_matches(clip_id, names, n=NUM_NEAR, cutoff=0.5)
    found = near or names[:NUM_NEAR]
    return f"{'near it are' if near else 'there are'} {', '.join(map(repr, found))} (index/clips.parquet lists all)"


def packed_bits(tokens: pa.Table) -> NDArray[np.uint8]:
    """Return the bits of token rows: (rows, 2, half_bytes), prev and this."""
    return np.stack([array_of(tokens[name], "|u1") for name in BITS_COLUMNS], axis=1)


@dataclass
class BitCounts:
    """Differing bits by half and scale; grows while pairs of windows are compared."""

    codec: CodecSpec
    num_windows: int = 0
    num_differing: int = 0
    differing: NDArray[np.int64] = field(init=False)
    """(2, scales): differing bits of prev and of this."""

    def __post_init__(self) -> None:
        self.differing = np.zeros((2, len(self.codec.patch_nums)), np.int64)

    def add(self, ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Compare windows in pairs and return the differing bits of each, (windows,).

        Args:
            ours: (windows, 2, half_bytes), packed.
            theirs: the same.
        """
        found = np.zeros(len(ours), np.int64)
        rows = np.flatnonzero((ours != theirs).any(axis=(1, 2)))
        self.num_windows += len(ours)
        self.num_differing += len(rows)
        if len(rows):
            sizes = np.array(self.codec.patch_nums) * self.codec.code_dim // 8
            counts = _BITS_OF_BYTE[ours[rows] ^ theirs[rows]]
            by_scale = np.add.reduceat(counts, np.cumsum(sizes) - sizes, axis=2, dtype=np.int64)
            self.differing += by_scale.sum(axis=0)
            found[rows] = by_scale.sum(axis=(1, 2))
        return found

    def compared(self, scale: int) -> int:
        """Return the bits of one scale of one half that were compared."""
        return self.num_windows * self.codec.patch_nums[scale] * self.codec.code_dim

    @property
    def share(self) -> float:
        """Share of all compared bits that differ."""
        total = 2 * self.num_windows * self.codec.num_tokens * self.codec.code_dim
        return float(self.differing.sum()) / total if total else 0.0

    def described(self) -> dict[str, object]:
        """Return the counts as plain values, for programs."""
        scales = [
            {
                "tokens": tokens,
                "bits": self.compared(scale),
                "differing_prev": int(self.differing[0, scale]),
                "differing_this": int(self.differing[1, scale]),
            }
            for scale, tokens in enumerate(self.codec.patch_nums)
        ]
        return {"windows": self.num_windows, "differing_windows": self.num_differing, "scales": scales}


def _read(folder: Folder, path: str) -> bytes:
    try:
        return folder.read(path)
    except FileNotFoundError as error:
        raise VerifyError(f"{folder}/{path} is missing: run motion-tokens verify") from error
