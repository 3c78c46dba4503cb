"""Types that a process has registered do not touch what is read."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.tables import extension_of, open_parquet, read_stream, read_table

RAN: list[str] = []


class Hostile(pa.ExtensionType):
    """Notes that it ran, where another would unpickle."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "test.hostile")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"a pickle"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Hostile:
        RAN.append(f"{storage} {serialized!r}")
        return cls(storage)


@pytest.fixture
def hostile() -> Iterator[Any]:
    """Return what makes an array one of the hostile type, which this process has registered."""
    pa.register_extension_type(Hostile(pa.float32()))
    RAN.clear()
    yield lambda array: pa.ExtensionArray.from_storage(Hostile(array.type), array)
    pa.unregister_extension_type("test.hostile")


def hostile_table(hostile: Any) -> pa.Table:
    numbers = pa.array([1.0, 2.0], pa.float32())
    text = hostile(pa.array(["a", "b"]))
    return pa.table(
        {
            "plain": [1, 2],
            "top": hostile(numbers),
            "text": text,
            "list": pa.ListArray.from_arrays([0, 1, 2], hostile(numbers)),
            "deep": pa.StructArray.from_arrays([pa.StructArray.from_arrays([text], ["b"])], ["a"]),
        }
    )


def parquet_of(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def stream_of(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize("write", [parquet_of, stream_of])
def test_a_registered_type_never_runs(hostile: Any, write: Any) -> None:
    data = write(hostile_table(hostile))
    RAN.clear()
    table = read_table(data) if write is parquet_of else read_stream(pa.py_buffer(data))
    assert RAN == []
    assert table.schema.types == [
        pa.int64(),
        pa.float32(),
        pa.string(),
        pa.list_(pa.float32()),
        pa.struct({"a": pa.struct({"b": pa.string()})}),
    ]
    assert table["deep"].to_pylist() == [{"a": {"b": "a"}}, {"a": {"b": "b"}}]
    assert extension_of(table.schema.field("plain")) is None
    found = extension_of(table.schema.field("top"))
    assert (found.name, found.metadata, found.holds_pickles) == ("test.hostile", b"a pickle", False)
    assert extension_of(table.schema.field("list").type.value_field).name == "test.hostile"
    assert extension_of(table.schema.field("deep").type.field("a").type.field("b")).name == "test.hostile"


def test_arrows_own_types_are_plain_too(hostile: Any) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.float32).reshape(2, 3, 2))
    columns = {"t": tensors, "j": pa.array(["{}", "1"], pa.json_()), "u": pa.array([b"0" * 16] * 2, pa.uuid())}
    for data in (parquet_of(pa.table(columns)), parquet_of(pa.table(columns), store_schema=False)):
        table = read_table(data)
        assert not any(isinstance(kind, pa.BaseExtensionType) for kind in table.schema.types)
    found = extension_of(read_table(parquet_of(pa.table(columns))).schema.field("t"))
    assert found.name == "arrow.fixed_shape_tensor"
    assert b'"shape":[3,2]' in found.metadata


def test_other_types_stay_as_they_were_written() -> None:
    columns = {
        "large": pa.array(["a"], pa.large_string()),
        "coded": pa.array(["a"]).dictionary_encode(),
        "fixed": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        "when": pa.array([0], pa.timestamp("us", "Europe/Berlin")),
    }
    table = pa.table(columns)
    assert read_table(parquet_of(table)).schema.equals(table.schema)
    assert read_stream(stream_of(table)).equals(table)


def test_a_schema_that_arrow_would_read_otherwise_is_left_out(hostile: Any) -> None:
    """White space in base64, or a second copy under the key: what is not written by Arrow is not believed."""
    data = parquet_of(hostile_table(hostile))
    stored = pq.read_metadata(io.BytesIO(data)).metadata[b"ARROW:schema"]
    spaced = data.replace(stored, b"\n" + stored[:-1])
    schema = pa.schema([("a", pa.int64())], metadata={"x": b"ARROW:schema", "y": stored})
    twice = parquet_of(pa.table({"a": [1]}, schema=schema))
    RAN.clear()
    assert read_table(spaced)["plain"].to_pylist() == [1, 2]
    assert read_table(twice)["a"].to_pylist() == [1]
    assert RAN == []


def test_bytes_that_look_like_the_key_stay_in_values() -> None:
    table = pa.table({"text": ["ARROW:extension:name", "ARROW:schema"]})
    assert read_stream(stream_of(table)).equals(table)
    assert read_table(parquet_of(table)).equals(table)


def test_rays_pickled_objects_are_bytes() -> None:
    kind = pytest.importorskip("ray.data._internal.object_extensions.arrow")
    array = kind.ArrowPythonObjectArray.from_objects([Unpickled(), Unpickled()])
    table = read_table(parquet_of(pa.table({"o": array})))
    assert table.schema.field("o").type == pa.large_binary()
    assert extension_of(table.schema.field("o")).holds_pickles
    assert isinstance(table["o"][0].as_py(), bytes)


class Unpickled:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


def test_open_parquet_reads_columns_of_plain_types(hostile: Any) -> None:
    data = parquet_of(hostile_table(hostile))
    RAN.clear()
    file = open_parquet(io.BytesIO(data), read_dictionary=["text"])
    assert pa.types.is_dictionary(file.schema_arrow.field("text").type)
    assert [batch.num_rows for batch in file.iter_batches(columns=["top", "text"])] == [2]
    assert RAN == []


READERS = {"ParquetFile", "read_table", "read_metadata", "read_schema", "open_stream", "open_file", "read_pandas"}


def test_nothing_else_in_the_pipeline_asks_arrow_to_decode() -> None:
    root = Path(pipeline.__file__).parent
    found = []
    for path in root.rglob("*.py"):
        if path.parent.name == "tables":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READERS:
                found.append(f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node.func)}")
    assert found == []
