"""TokenDataset: windows of a token dataset by index, or by clip and start frame.

Knows no Ray, and no order: stream.py has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pipeline.contract.specs import CodecSpec, Contract
from pipeline.errors import ConfigError, InputNotFoundError
from pipeline.loader.batches import Batch, batch_of_columns, sample_of
from pipeline.loader.clip_windows import ClipWindows
from pipeline.loader.opening import open_published, require_codec, shards_of_split
from pipeline.loader.row_groups import Reading, RowGroups
from pipeline.settings.where import Where

IntArray = NDArray[np.int64]


class TokenDataset(Dataset[Batch]):
    """Map-style dataset of windows in Parquet shards, on disk or object storage.

    A trainer builds it, for its life. Index i is the i-th window of the split in stored order, or the i-th run of
    consecutive windows of a clip. It pickles, so that workers of a DataLoader can have it, forked or spawned; each
    process then has a cache of its own.

    Args:
        url: folder of the dataset, or ``DATASET/versions/VERSION.json`` for an earlier version.
        split: name of a split; None: all of them.
        columns: to read and to give, everything else stays unread; None: all there are.
        codec: what the tokens have to mean, such as another dataset's `codec`; None: not compared.
        windows_per_sample: windows of a clip that make one sample, consecutive in order of `start_frame`. Samples do
            not overlap, nor reach over windows that the export's filter left out; windows left over at a clip's end
            are in none (`num_left_out`).
        reading: bounds and checks.

    Raises:
        InputNotFoundError: there is no dataset, or no such split.
        OutputMismatchError: it is staged, without Parquet, or dataset.json is not one of ours.
        ContractMismatchError: it is of another codec; the message names the fields.
        ConfigError: a column is unknown, or no clip has as many windows as a sample.
        VerifyError: a shard or index is missing or altered.
        StorageError: storage did not answer after all retries.
    """

    def __init__(
        self,
        url: str,
        split: str | None = "train",
        *,
        columns: Sequence[str] | None = None,
        codec: CodecSpec | None = None,
        windows_per_sample: int = 1,
        reading: Reading | None = None,
    ) -> None:
        reading = reading or Reading()
        if isinstance(columns, str):
            raise ConfigError(f"columns must be a list of names, found {columns!r}: write [{columns!r}]")
        self.folder, self.manifest = open_published(url, reading.storage_options)
        if codec is not None:
            require_codec(self.folder, self.manifest.contract, codec)
        if windows_per_sample < 1:
            raise ConfigError(f"windows_per_sample must be 1 or more, found {windows_per_sample}")
        self.split, self.windows_per_sample = split, windows_per_sample
        self._positions = shards_of_split(self.folder, self.manifest, "parquet", split)
        self.shards = tuple(self.manifest.shards["parquet"][position] for position in self._positions)
        self.row_groups = RowGroups(self.folder, self.shards, self.manifest.contract, columns, reading)
        self._runs = self._all_runs() if windows_per_sample > 1 else None
        if not len(self):
            raise ConfigError(
                f"{self.folder}: no clip of split {split!r} has {windows_per_sample} windows: lower windows_per_sample"
            )

    def __repr__(self) -> str:
        return f"TokenDataset({str(self.folder)!r}, {self.split!r}, {len(self)} samples)"

    @property
    def codec(self) -> CodecSpec:
        """What the tokens mean: schedule, sizes, weights."""
        return self.manifest.contract.codec

    @property
    def contract(self) -> Contract:
        """Codec, corpus and numerics of the dataset."""
        return self.manifest.contract

    @property
    def columns(self) -> list[str]:
        """Names of the columns that samples have."""
        return list(self.row_groups.columns)

    @property
    def num_left_out(self) -> int:
        """Windows that are in no sample, since their clip has none to go with them."""
        return self.row_groups.num_rows - len(self) * self.windows_per_sample

    @cached_property
    def group_sizes(self) -> IntArray:
        """(num_groups,) samples that begin in each row group, as stored."""
        if self._runs is None:
            return self.row_groups.sizes
        return np.bincount(self.row_groups.group_of(self._runs[:, 0]), minlength=len(self.row_groups.sizes))

    @cached_property
    def clip_windows(self) -> ClipWindows:
        """Which rows hold the windows of a clip; read on first use."""
        return ClipWindows(self.folder, self.manifest, self._positions)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.row_groups.num_rows if self._runs is None else len(self._runs)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: Sequence[int] | slice) -> Batch: ...
    def __getitem__(self, index: int | Sequence[int] | slice) -> Batch:
        """Return a sample; or, of several indices, their batch: a BatchSampler with ``batch_size=None`` asks so.

        Raises:
            IndexError: there is no such sample.
        """
        if isinstance(index, int | np.integer):
            return sample_of(self.batch([int(index)]), 0)
        return self.batch(range(*index.indices(len(self))) if isinstance(index, slice) else index)

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Return samples one by one, each row group read once: what a DataLoader asks for."""
        batch = self.batch(indices)
        return [sample_of(batch, number) for number in range(len(indices))]

    def batch(self, indices: Sequence[int] | IntArray) -> Batch:
        """Return samples as one batch.

        Raises:
            IndexError: there is no such sample, or none is asked for.
        """
        wanted = np.asarray(indices, np.int64).reshape(-1)
        if not len(wanted):
            raise IndexError("a batch has at least one sample, found no index")
        if not -len(self) <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"samples are 0 to {len(self) - 1}, found {wanted.min()} to {wanted.max()}")
        return self._batch_of_rows(self.rows_of(np.where(wanted < 0, wanted + len(self), wanted)))

    def rows_of(self, indices: IntArray) -> IntArray:
        """Return the rows of samples, (n,) -> (n, windows_per_sample)."""
        return indices[:, None] if self._runs is None else self._runs[indices]

    def find(self, clip_id: str, start_frame: int) -> int:
        """Return the index of the sample that begins with a window.

        Raises:
            InputNotFoundError: there is none; the message says which there are.
        """
        row = self._row_of(clip_id, start_frame)
        if self._runs is None:
            return row
        found = np.flatnonzero(self._runs[:, 0] == row)
        if not len(found):
            raise InputNotFoundError(
                f"{self.folder}: no sample begins with start_frame {start_frame} of clip {clip_id!r}: samples are"
                f" {self.windows_per_sample} windows that follow each other and do not overlap; window() gives any"
            )
        return int(found[0])

    def window(self, clip_id: str, start_frame: int) -> Batch:
        """Return one window, without the axis of a sample of several.

        Raises:
            InputNotFoundError: there is none; the message says which there are.
        """
        rows = np.array([self._row_of(clip_id, start_frame)])
        return sample_of(batch_of_columns(self.row_groups.gather(rows), is_flac=self._is_flac), 0)

    def style_of(self, indices: IntArray, draws: IntArray) -> Batch:
        """Return for each sample a window of its clip, chosen by number among those whose `prev` is whole.

        Where a clip has none, it is its last one. `prev` bits depend on no other frames, so
        that they stand for the window by themselves.

        Args:
            indices: (n,) samples.
            draws: (n,) numbers from 0 to 2**63 - 1, by chance.

        Returns:
            `style_bits` (n, tokens, code_dim / 8) uint8, `style_start_frame` (n,) of the style window's own first
            frame, `style_valid_frames` (n,) int64: zeros stand before them.
        """
        clip_ids = self.row_groups.gather(self.rows_of(indices)[:, 0], ["clip_id"])["clip_id"]
        lists = [self.clip_windows.rows_of(clip_id) for clip_id in clip_ids.to_pylist()]
        counts = np.array([len(rows) for rows in lists])
        starts: IntArray = np.asarray(self.row_groups.gather(np.concatenate(lists), ["start_frame"])["start_frame"])
        chosen = np.empty(len(lists), np.int64)
        frames = self.codec.window_frames
        for number, (rows, own, draw) in enumerate(
            zip(lists, np.split(starts, np.cumsum(counts)[:-1]), draws, strict=True)
        ):
            whole = np.flatnonzero(own >= frames)
            chosen[number] = rows[whole[draw % len(whole)]] if len(whole) else rows[-1]
        names = ["prev_bits", "start_frame", "prev_valid_frames"]
        found = batch_of_columns(self.row_groups.gather(chosen, names))
        return {
            "style_bits": found["prev_bits"],
            "style_start_frame": (found["start_frame"] - frames).clamp(min=0),
            "style_valid_frames": found["prev_valid_frames"],
        }

    def check(self) -> None:
        """Compare the SHA-256 of every shard now; workers started afterwards do not compare again.

        Raises:
            VerifyError: a shard is missing or altered.
        """
        self.row_groups.check()

    def _all_runs(self) -> IntArray:
        """Return the rows of every sample, (n, windows_per_sample)."""
        clips, is_gap = self.clip_windows, None
        if Where(self.manifest.export.get("where", "")).window_terms:
            starts: IntArray = np.asarray(self.row_groups.gather(clips.rows, ["start_frame"])["start_frame"])
            is_gap = np.diff(starts) > self.contract.corpus.window.stride  # no unfiltered clip steps further
        return clips.runs(self.windows_per_sample, is_gap)

    def _batch_of_rows(self, rows: IntArray) -> Batch:
        columns = self.row_groups.gather(rows.reshape(-1))
        return batch_of_columns(columns, self.windows_per_sample, is_flac=self._is_flac)

    @property
    def _is_flac(self) -> bool:
        audio = self.contract.corpus.audio
        return audio is not None and audio.encoding == "flac"

    def _row_of(self, clip_id: str, start_frame: int) -> int:
        rows = self.clip_windows.rows_of(clip_id)
        is_one_group = len(np.unique(self.row_groups.group_of(rows))) == 1  # then window() needs no second request
        names = ["start_frame", *(self.columns if is_one_group else [])]
        starts: IntArray = np.asarray(self.row_groups.gather(rows, names)["start_frame"])
        place = int(np.searchsorted(starts, start_frame))
        if place == len(starts) or starts[place] != start_frame:
            near = ", ".join(map(str, starts[max(0, place - 2) : place + 2]))
            raise InputNotFoundError(
                f"{self.folder}: clip {clip_id!r} has no window at start_frame {start_frame}; near it are {near}"
            )
        return int(rows[place])
