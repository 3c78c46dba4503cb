"""Token rows of a tar shard of one window a sample without sound, column by column.

Such a shard is what most exports write. Whatever looks otherwise, or wrong, is left to tar_shard.py, which reads any
tar sample by sample and says what is wrong with it. Knows no storage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.json

from pipeline.contract.columns import ArrayColumn, array_columns, token_schema
from pipeline.contract.specs import CodecSpec, CorpusSpec
from pipeline.dataset.tar_members import Members, plain_members


def plain_table(
    data: bytes, codec: CodecSpec, corpus: CorpusSpec | None, head_of: Callable[[ArrayColumn], bytes]
) -> pa.Table | None:
    """Return the token rows of a plain tar shard, None where it is none.

    Args:
        corpus: says what stands beside the bits, no cut audio; None: nothing.
        head_of: what stands before the bytes of an array in its member.
    """
    arrays, schema = array_columns(codec, corpus), token_schema(codec, corpus)
    suffixes = [*(array.member for array in arrays), "json"]
    members = plain_members(data)
    if members is None or not _are_samples(members.names, suffixes):
        return None
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for number, array in enumerate(arrays):
        found = _array_of(data, _every(members, number, len(suffixes)), head_of(array), array.num_bytes)
        if found is None:
            return None
        columns[array.name] = found
    plain = pa.schema([field for field in schema if field.name not in columns])
    fields = _fields_of(data, _every(members, len(suffixes) - 1, len(suffixes)), plain)
    if fields is None:
        return None
    columns |= dict(zip(fields.column_names, fields.columns, strict=True))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _every(members: Members, first: int, step: int) -> Members:
    return Members(members.names[first::step], members.begins[first::step], members.sizes[first::step])


def _are_samples(names: Sequence[str], suffixes: Sequence[str]) -> bool:
    """Return whether names are those of whole samples, one behind the other."""
    keys = [name.partition(".")[0] for name in names[:: len(suffixes)]]
    return bool(keys) and list(names) == [f"{key}.{suffix}" for key in keys for suffix in suffixes]


def _array_of(data: bytes, members: Members, head: bytes, num_bytes: int) -> pa.Array | None:
    """Return the arrays of members, None where one has another size or head."""
    size = len(head) + num_bytes
    if any(found != size for found in members.sizes):
        return None
    if not all(data.startswith(head, begin) for begin in members.begins):
        return None
    values = b"".join([data[begin + len(head) : begin + size] for begin in members.begins])
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(num_bytes), len(members.begins), [None, pa.py_buffer(values)])


def _fields_of(data: bytes, members: Members, schema: pa.Schema) -> pa.Table | None:
    """Return the fields of JSON members, a row each; None where they are not one object of these fields each."""
    places = zip(members.begins, members.sizes, strict=True)
    texts = [data[begin : begin + size] for begin, size in places]
    if any(b"\n" in text for text in texts):
        return None  # lines part the members below
    read = pa.schema([_as_text(field) for field in schema])
    options = pyarrow.json.ParseOptions(explicit_schema=read, unexpected_field_behavior="error")
    try:
        table = pyarrow.json.read_json(pa.BufferReader(b"\n".join(texts)), parse_options=options)
        is_whole = all(field.nullable or not table[field.name].null_count for field in schema)
        if table.num_rows != len(texts) or not is_whole:
            return None
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError):
        return None


def _as_text(field: pa.Field) -> pa.Field:
    """Return a field as JSON can be read into; columns that may not be null must be looked at afterwards."""
    return pa.field(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type)
