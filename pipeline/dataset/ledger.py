"""Tables such as ledgers as bytes: Arrow IPC streams, in fragments and between the stages."""

from __future__ import annotations

import io

import pyarrow as pa

from pipeline.tables import read_stream


def table_to_ipc(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def table_from_ipc(data: bytes | pa.Buffer) -> pa.Table:
    """Return the table that `table_to_ipc` wrote."""
    return read_stream(data)
