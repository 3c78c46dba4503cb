"""The write stage: tokens of a run of units -> one committed fragment a unit.

Knows no Ray or torch.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.blocks import TokenBlock, UnitAccount
from pipeline.config import Contract
from pipeline.schema import token_schema
from pipeline.token_store import TokenStore, fragment_to_bytes
from pipeline.windows import valid_frames


@dataclass(frozen=True)
class FragmentWriter:
    """Built by the driver, sent to every write task; owns only addresses and the contract."""

    store: TokenStore
    contract: Contract

    def write(self, block: TokenBlock) -> UnitAccount:
        """Commit every unit of a block and return the account of it.

        Raises:
            StorageError: storage did not answer after all retries.
        """
        begin = time.perf_counter()
        unit_of_clip = block.ledger["unit"].to_numpy()
        windows_of_clip = block.ledger["num_windows"].to_numpy()
        first_row = 0
        for index, unit in enumerate(block.units):
            ledger = block.ledger.filter(pa.array(unit_of_clip == index)).drop_columns(["unit"])
            num_rows = int(windows_of_clip[unit_of_clip == index].sum())
            rows = slice(first_row, first_row + num_rows)
            tokens = self._token_rows(ledger, block.start_frame[rows], block.bits[rows])
            self.store.publish_fragment(unit, fragment_to_bytes(tokens, ledger, self.contract))
            first_row += num_rows
        reasons = Counter(reason for reason in block.ledger["drop_reason"].to_pylist() if reason)
        return UnitAccount(
            num_units=len(block.units),
            num_bytes=sum(unit.num_bytes for unit in block.units),
            num_clips=block.ledger.num_rows - reasons.total(),
            num_frames=int(block.ledger["num_frames"].to_numpy()[windows_of_clip > 0].sum()),
            num_windows=first_row,
            drops=dict(reasons),
            seconds={**block.seconds, "write": time.perf_counter() - begin},
        )

    def _token_rows(self, ledger: pa.Table, start_frame: np.ndarray, bits: np.ndarray) -> pa.Table:
        codec = self.contract.codec
        schema = token_schema(codec.half_bytes)
        num_windows = ledger["num_windows"].to_numpy()
        clip_of_row = np.repeat(np.arange(len(num_windows)), num_windows)
        num_frames = ledger["num_frames"].to_numpy()[clip_of_row]
        prev_valid, this_valid = valid_frames(start_frame, num_frames, codec.window_frames)
        columns = [
            ledger["clip_id"].take(pa.array(clip_of_row)).combine_chunks(),
            pa.array(start_frame, pa.int32()),
            pa.array(num_frames, pa.int32()),
            pa.array(prev_valid, pa.int16()),
            pa.array(this_valid, pa.int16()),
            ledger["source"].take(pa.array(clip_of_row)).combine_chunks().dictionary_encode(),
            fixed_binary(bits[:, 0]),
            fixed_binary(bits[:, 1]),
        ]
        return pa.table(columns, schema=schema)


def fixed_binary(rows: np.ndarray) -> pa.Array:
    """Return rows of bytes as one fixed-size binary array.

    Args:
        rows: uint8 (num_rows, num_bytes).
    """
    data = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, data])
