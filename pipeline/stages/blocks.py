"""What travels between the stages: motion of a run of units, then its tokens.

Knows no Ray, torch or storage. Large arrays cross as single Arrow values, so that they are never copied.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract.schema import LEDGER_SCHEMA
from pipeline.dataset.ledger import table_from_ipc, table_to_ipc
from pipeline.hashing import canonical_json
from pipeline.plan.units import Unit, unit_from_json, unit_to_json

# A run's ledger says of each clip which of the run's units it belongs to.
RUN_LEDGER_SCHEMA = LEDGER_SCHEMA.append(pa.field("unit", pa.int32(), nullable=False))


def _no_columns() -> pa.Table:
    return pa.table({})


@dataclass(frozen=True)
class MotionBlock:
    """Motion of a run of units: built by the read stage, used up by the tokenizer."""

    units: tuple[Unit, ...]
    motion: NDArray[np.float32]
    """(num_frames, motion_dim), the kept clips one behind the other in ledger order."""
    ledger: pa.Table
    start_frame: NDArray[np.int64]
    """(num_windows,), clip by clip in ledger order."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    clip_columns: pa.Table = field(default_factory=_no_columns)
    """Rows of `clip_schema`, one a kept clip in ledger order; no columns where nothing is carried along."""

    def to_table(self) -> pa.Table:
        """Return the block as one Arrow row."""
        return pa.table(
            {
                "motion": _one_value(self.motion),
                "motion_dim": [self.motion.shape[1]],
                **_columns_of(self),
            }
        )

    @classmethod
    def from_table(cls, row: pa.Table) -> MotionBlock:
        """Return the block of one Arrow row; arrays are views of its buffers."""
        dim = row["motion_dim"][0].as_py()
        motion = np.frombuffer(_value_of(row, "motion"), np.float32).reshape(-1, dim)
        return cls(motion=motion, **_fields_of(row, "tokenize_queue"))


@dataclass(frozen=True)
class TokenBlock:
    """Tokens of a run of units: built by the tokenizer, used up by the write stage."""

    units: tuple[Unit, ...]
    bits: NDArray[np.uint8]
    """(num_windows, 2, half_bytes): packed bits of prev and this."""
    ledger: pa.Table
    start_frame: NDArray[np.int64]
    seconds: Mapping[str, float] = field(default_factory=dict)
    clip_columns: pa.Table = field(default_factory=_no_columns)
    """As the motion block had them."""
    emitted: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Column -> (num_windows, ..), shapes and types as `emitted_columns` says."""

    def to_table(self) -> pa.Table:
        """Return the block as one Arrow row."""
        emitted = {f"emitted.{name}": _one_value(array) for name, array in self.emitted.items()}
        shapes = [[name, array.dtype.str, array.shape[1:]] for name, array in self.emitted.items()]
        return pa.table(
            {
                "bits": _one_value(self.bits),
                "half_bytes": [self.bits.shape[2]],
                **emitted,
                "emitted_shapes": [json.dumps(shapes)],
                **_columns_of(self),
            }
        )

    @classmethod
    def from_table(cls, row: pa.Table) -> TokenBlock:
        """Return the block of one Arrow row; arrays are views of its buffers."""
        half_bytes = row["half_bytes"][0].as_py()
        bits = np.frombuffer(_value_of(row, "bits"), np.uint8).reshape(-1, 2, half_bytes)
        emitted = {
            name: np.frombuffer(_value_of(row, f"emitted.{name}"), dtype).reshape(-1, *shape)
            for name, dtype, shape in json.loads(row["emitted_shapes"][0].as_py())
        }
        return cls(bits=bits, emitted=emitted, **_fields_of(row, "write_queue"))


def units_to_text(units: Sequence[Unit]) -> str:
    """Return units as JSON."""
    return canonical_json([unit_to_json(unit) for unit in units])


def units_from_text(text: str) -> tuple[Unit, ...]:
    """Return the units that `units_to_text` wrote."""
    return tuple(unit_from_json(item) for item in json.loads(text))


def _columns_of(block: MotionBlock | TokenBlock) -> dict[str, Any]:
    """Return what both blocks carry beside their large array, as columns of one row."""
    return {
        "units": [units_to_text(block.units)],
        "ledger": _one_value(np.frombuffer(table_to_ipc(block.ledger), np.uint8)),
        "start_frame": _one_value(block.start_frame),
        "seconds": [canonical_json(block.seconds)],
        "sent_at": [time.time()],  # for the account of time alone
        "clip_columns": _one_value(np.frombuffer(_plain_ipc(block.clip_columns), np.uint8)),
    }


def _fields_of(row: pa.Table, queue: str) -> dict[str, Any]:
    """Return the fields of a block that came from another process; the time on its way is booked as `queue`."""
    waited_s = max(0.0, time.time() - row["sent_at"][0].as_py())
    return {
        "units": units_from_text(row["units"][0].as_py()),
        "ledger": table_from_ipc(_value_of(row, "ledger")),
        "start_frame": np.frombuffer(_value_of(row, "start_frame"), np.int64),
        "seconds": {**json.loads(row["seconds"][0].as_py()), queue: waited_s},
        "clip_columns": table_from_ipc(_value_of(row, "clip_columns")),
    }


def _plain_ipc(table: pa.Table) -> pa.Buffer:
    """Return a table as an Arrow IPC stream that is not compressed: audio would only cost time."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _one_value(array: NDArray[np.generic]) -> pa.Array:
    data = pa.py_buffer(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _value_of(row: pa.Table, name: str) -> pa.Buffer:
    """Return a view of the bytes of a row's only value; as a scalar, Arrow would copy them, and hold the GIL."""
    array = row[name].combine_chunks() if row[name].num_chunks != 1 else row[name].chunk(0)
    _, offsets, data = array.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[array.offset : array.offset + 2].tolist()
    return data.slice(start, stop - start) if stop > start else pa.py_buffer(b"")
