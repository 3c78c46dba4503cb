"""Which rows hold the windows of a clip, in order of `start_frame`, from the index beside the shards.

Knows no Ray or torch, and reads no shard.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.manifest import Manifest, read_beside
from pipeline.dataset.paths import WINDOW_INDEX_PATH
from pipeline.errors import InputNotFoundError, VerifyError
from pipeline.storage import Folder
from pipeline.tables import read_table

IntArray = NDArray[np.int64]

NUM_NEAR, MAX_COMPARED = 3, 100_000
"""Similar ids in a message, and ids among which they are looked for."""


class ClipWindows:
    """Built by `TokenDataset` on first use; owns one number a window, and the clip ids.

    Args:
        folder: of the dataset.
        manifest: of the version that is read.
        shards: positions of the shards that are read, in order, among those of the format.

    Raises:
        VerifyError: the index is missing or damaged.
    """

    def __init__(self, folder: Folder, manifest: Manifest, shards: Sequence[int]) -> None:
        self._folder, self._chosen = folder, shards
        windows = np.array([shard.windows for shard in manifest.shards["parquet"]], np.int64)
        self._begin = np.full(len(windows), -1, np.int64)
        self._begin[list(shards)] = np.cumsum(windows[list(shards)]) - windows[list(shards)]
        is_shuffled = manifest.export["shuffle"] != "none"
        path = WINDOW_INDEX_PATH if is_shuffled else "index/clips.parquet"
        try:
            table = read_table(read_beside(folder, manifest, path))
        except pa.ArrowException as error:
            raise VerifyError(f"{folder}/{path} is damaged ({error}): run motion-tokens verify") from error
        self.clip_ids, self.first, self.rows = self._of_windows(table) if is_shuffled else self._of_clips(table)
        """Ids of the clips; (num_clips + 1,) where each begins in `rows`; (num_windows,) rows, clip by clip."""

    def _of_clips(self, clips: pa.Table) -> tuple[list[str], IntArray, IntArray]:
        kept = clips.filter(pc.greater(clips["num_windows"], 0))
        kept = kept.filter(pa.array(self._begin[kept["first_shard"].to_numpy()] >= 0))
        counts = kept["num_windows"].to_numpy().astype(np.int64)
        begins = self._begin[kept["first_shard"].to_numpy()] + kept["first_row"].to_numpy()
        first = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(begins - first[:-1], counts) + np.arange(first[-1])
        return kept["clip_id"].to_pylist(), first, rows

    def _of_windows(self, windows: pa.Table) -> tuple[list[str], IntArray, IntArray]:
        windows = windows.filter(pa.array(self._begin[windows["shard"].to_numpy()] >= 0))
        windows = windows.sort_by([("clip_id", "ascending"), ("start_frame", "ascending")])
        codes = windows["clip_id"].combine_chunks().dictionary_encode()
        counts = np.bincount(codes.indices.to_numpy(), minlength=len(codes.dictionary))
        rows = self._begin[windows["shard"].to_numpy()] + windows["row"].to_numpy()
        return codes.dictionary.to_pylist(), np.concatenate([[0], np.cumsum(counts)]), rows

    def rows_of(self, clip_id: str) -> IntArray:
        """Return the rows of a clip's windows, in order of `start_frame`.

        Raises:
            InputNotFoundError: there are none; the message names similar ids.
        """
        number = self._number.get(clip_id)
        if number is None:
            names = self.clip_ids[:MAX_COMPARED]
            near = difflib.get_close_matches(clip_id, names, n=NUM_NEAR, cutoff=0.5) or names[:NUM_NEAR]
            raise InputNotFoundError(
                f"{self._folder} has no windows of clip {clip_id!r} in what was opened; there are"
                f" {', '.join(map(repr, near))} (index/clips.parquet lists all, with their splits)"
            )
        return self.rows[self.first[number] : self.first[number + 1]]

    def runs(self, num_windows: int, is_gap: NDArray[np.bool_] | None = None) -> IntArray:
        """Return the rows of all runs of consecutive windows of a clip, (num_runs, num_windows), by first row.

        Runs do not overlap; windows left over at a clip's end, or before a gap, are in none.

        Args:
            num_windows: of a run.
            is_gap: (num_windows of all clips - 1,) whether windows of the same clip were left out between two places of
                `rows`; None: nowhere.
        """
        first = self.first
        if is_gap is not None:
            first = np.union1d(first, np.flatnonzero(is_gap) + 1)
        counts = np.diff(first) // num_windows
        total = int(counts.sum())
        inside = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.repeat(first[:-1], counts) + inside * num_windows
        runs: IntArray = self.rows[begins[:, None] + np.arange(num_windows)]
        return runs[np.argsort(runs[:, 0], kind="stable")]

    @cached_property
    def _number(self) -> dict[str, int]:
        return {clip_id: number for number, clip_id in enumerate(self.clip_ids)}
