"""The write stage: tokens of a run of units -> one committed fragment a unit.

Knows no Ray or torch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.contract.columns import array_columns, token_schema
from pipeline.contract.specs import Contract
from pipeline.contract.windows import valid_frames
from pipeline.dataset.counts import count_drops
from pipeline.dataset.fragment import fragment_to_bytes
from pipeline.dataset.token_store import TokenStore
from pipeline.run.account import UnitAccount
from pipeline.run.code_counts import count_codes
from pipeline.stages.blocks import TokenBlock
from pipeline.stages.side_columns import audio_account, side_columns


@dataclass(frozen=True)
class FragmentWriter:
    """Built by the driver, sent to every writer; owns only addresses and the contract."""

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
        first_row = first_clip = 0
        for index, unit in enumerate(block.units):
            ledger = block.ledger.filter(pa.array(unit_of_clip == index)).drop_columns(["unit"])
            num_rows = int(windows_of_clip[unit_of_clip == index].sum())
            rows = slice(first_row, first_row + num_rows)
            num_clips = int((windows_of_clip[unit_of_clip == index] > 0).sum())
            clips = block.clip_columns.slice(first_clip, num_clips)
            tokens = token_rows(ledger, block, rows, clips, self.contract)
            self.store.publish_fragment(unit, fragment_to_bytes(tokens, ledger, self.contract))
            first_row += num_rows
            first_clip += num_clips
        reasons = count_drops(block.ledger["drop_reason"])
        return UnitAccount(
            num_units=len(block.units),
            num_bytes=sum(unit.num_bytes for unit in block.units),
            num_clips=block.ledger.num_rows - reasons.total(),
            num_frames=int(block.ledger["num_frames"].to_numpy()[windows_of_clip > 0].sum()),
            num_windows=first_row,
            drops=dict(reasons),
            seconds={**block.seconds, "write": time.perf_counter() - begin},
            audio=audio_account(block.clip_columns, self.contract.codec.fps),
            codes=count_codes(block.bits[:, 1], self.contract.codec.patch_nums),
        )


def token_rows(ledger: pa.Table, block: TokenBlock, rows: slice, clips: pa.Table, contract: Contract) -> pa.Table:
    """Return the token rows of some of a block's clips, which follow each other.

    Args:
        ledger: of these clips, dropped ones included.
        rows: their windows in the block.
        clips: their rows of `block.clip_columns`.
    """
    codec, corpus = contract.codec, contract.corpus
    start_frame = block.start_frame[rows]
    num_windows = ledger["num_windows"].to_numpy()
    clip_of_row = np.repeat(np.arange(len(num_windows)), num_windows)
    num_frames = ledger["num_frames"].to_numpy()[clip_of_row]
    prev_valid, this_valid = valid_frames(start_frame, num_frames, codec.window_frames)
    arrays = {"prev_bits": block.bits[:, 0], "this_bits": block.bits[:, 1], **block.emitted}
    kept_of_row = np.repeat(np.arange(clips.num_rows), num_windows[num_windows > 0]) if clips.num_columns else None
    columns = [
        ledger["clip_id"].take(pa.array(clip_of_row)).combine_chunks(),
        pa.array(start_frame, pa.int32()),
        pa.array(num_frames, pa.int32()),
        pa.array(prev_valid, pa.int16()),
        pa.array(this_valid, pa.int16()),
        ledger["source"].take(pa.array(clip_of_row)).combine_chunks().dictionary_encode(),
        *(fixed_binary(arrays[array.name][rows]) for array in array_columns(codec, corpus)),
        *(side_columns(clips, kept_of_row, start_frame, contract) if kept_of_row is not None else ()),
    ]
    return pa.table(columns, schema=token_schema(codec, corpus))


def fixed_binary(rows: np.ndarray) -> pa.Array:
    """Return arrays as one fixed-size binary array: the bytes of each row, row-major.

    Args:
        rows: (num_rows, ..), of any little-endian type.
    """
    row_bytes = int(np.prod(rows.shape[1:])) * rows.dtype.itemsize
    data = pa.py_buffer(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), len(rows), [None, data])
