"""Arrow IPC streams -> tables of plain types."""

from __future__ import annotations

import pyarrow as pa

from pipeline.tables.footer import DamagedTableError
from pipeline.tables.plain import plain_message

_CONTINUES = b"\xff\xff\xff\xff"
_WORD = 4


def read_stream(data: bytes | memoryview | pa.Buffer) -> pa.Table:
    """Return the table of an IPC stream; columns of extension types come as their storage.

    Raises:
        pa.ArrowException: it is no such stream.
    """
    view = memoryview(data).cast("B")
    first = 2 * _WORD if view[:_WORD] == _CONTINUES else _WORD
    num_bytes = int.from_bytes(view[first - _WORD : first], "little")
    if not first < first + num_bytes <= len(view):
        raise DamagedTableError(f"no Arrow stream: its first message has {num_bytes} of {len(view)} bytes")
    message = bytes(view[: first + num_bytes])
    plain = plain_message(message)
    if plain == message:
        source = pa.BufferReader(pa.py_buffer(view))
    else:
        source = pa.BufferReader(plain + bytes(view[first + num_bytes :]))
    with pa.ipc.open_stream(source) as reader:
        return reader.read_all()
