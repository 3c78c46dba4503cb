"""index/windows.parquet: where each window of a shuffled export stands, gathered on disk while shards are built.

Knows no Ray or torch. Memory holds the windows of one shard, however many there are.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.schema import WINDOW_INDEX_SCHEMA
from pipeline.dataset.ledger import table_from_ipc, table_to_ipc
from pipeline.storage import Scratch, scratch_named


class WindowIndex:
    """Built by the driver for one export; owns a scratch file with the windows of the shards that stand."""

    def __init__(self) -> None:
        self._gathered = Scratch()
        self._places: dict[int, tuple[int, int]] = {}

    def add(self, shard: int, windows: pa.Table) -> None:
        """Note the windows of a shard; shards come in any order.

        Args:
            shard: its position in `shards.<format>` of dataset.json.
            windows: its `clip_id` and `start_frame`, in order of rows.
        """
        self._places[shard] = self._gathered.append(table_to_ipc(windows))

    def to_parquet(self) -> memoryview:
        """Return the whole index: a row group a shard, shards in order."""
        written = Scratch()
        with scratch_named(), pq.ParquetWriter(written.file, WINDOW_INDEX_SCHEMA, compression="zstd") as writer:
            for shard in sorted(self._places):
                windows = table_from_ipc(self._gathered.read(*self._places[shard]))
                columns = {
                    "clip_id": windows["clip_id"],
                    "start_frame": windows["start_frame"],
                    "shard": np.full(windows.num_rows, shard, np.int32),
                    "row": np.arange(windows.num_rows, dtype=np.int32),
                }
                writer.write_table(pa.table(columns, schema=WINDOW_INDEX_SCHEMA), row_group_size=windows.num_rows)
        return written.view()
