"""Schemas without extension types: their names stay readable, and no code that is registered for them runs.

Arrow looks for an extension type under one key of a field's metadata. Its class may unpickle what is stored beside it,
as soon as a schema is read. So the key is written differently in the bytes, before Arrow sees them: as long as before,
at any depth, since a schema keeps its texts in one piece.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

_KEY, _PLAIN = b"ARROW:extension:", b"PLAIN:extension:"
_SCHEMA_KEY, _PLAIN_SCHEMA_KEY = b"ARROW:schema", b"PLAIN:schema"
_PICKLED = ("ray.data.arrow_pickled_object", "arrow.py_extension_type")
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Extension:
    """The extension type that a field was written with; its values are those of its storage type."""

    name: str
    metadata: bytes

    @property
    def holds_pickles(self) -> bool:
        """Whether its values, or itself, are pickled Python objects, which are never loaded."""
        return self.name in _PICKLED


def extension_of(field: pa.Field) -> Extension | None:
    """Return the extension type that a field was written with, None where it has a plain one."""
    metadata = field.metadata or {}
    name = metadata.get(_PLAIN + b"name")
    if name is None:
        return None
    return Extension(name.decode("utf-8", "replace"), metadata.get(_PLAIN + b"metadata", b""))


def plain_message(message: bytes) -> bytes:
    """Return an IPC schema message without extension types."""
    return message.replace(_KEY, _PLAIN)


def plain_footer(footer: bytes) -> bytes:
    """Return a Parquet footer, thrift bytes of a FileMetaData, as a file whose schema has no extension types.

    Arrow's own schema, which Parquet files carry in base64, is left out where it is not what Arrow writes.

    Raises:
        pa.ArrowException, OSError: it is no Parquet metadata.
    """
    bare = footer.replace(_SCHEMA_KEY, _PLAIN_SCHEMA_KEY)
    if bare.count(_PLAIN_SCHEMA_KEY) != 1:
        return _as_file(bare)
    stored = (pq.read_metadata(pa.BufferReader(_as_file(bare))).metadata or {}).get(_PLAIN_SCHEMA_KEY, b"")
    try:
        message = base64.b64decode(stored, validate=True)
    except binascii.Error:
        return _as_file(bare)
    plain = base64.b64encode(plain_message(message))
    if len(plain) != len(stored) or bare.count(stored) != 1:
        return _as_file(bare)
    return _as_file(bare.replace(stored, plain).replace(_PLAIN_SCHEMA_KEY, _SCHEMA_KEY))


def _as_file(footer: bytes) -> bytes:
    return b"".join((_MAGIC, footer, len(footer).to_bytes(4, "little"), _MAGIC))
