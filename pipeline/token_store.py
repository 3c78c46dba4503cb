"""The token store: one immutable Parquet fragment a unit; its presence under its name is its commit.

Knows no Ray or torch. A fragment's footer carries the contract and the ledger of the unit's clips.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.contract.schema import (
    BITS_COLUMNS,
    CONTRACT_KEY,
    LEDGER_KEY,
    LEDGER_SCHEMA,
    TOKEN_ROW_GROUP_BYTES,
    TOKEN_ROW_GROUP_ROWS,
)
from pipeline.contract.specs import Contract
from pipeline.errors import IncompleteError, MotionTokensError, OutputMismatchError, VerifyError
from pipeline.hashing import canonical_json
from pipeline.plan import Plan, Unit, plan_from_bytes, plan_to_bytes
from pipeline.storage import Folder

LISTING_THREADS = 32
LEDGERS_AT_ONCE = 64
CONSTANTS_PATH = "constants.npz"
"""Null codes and schedule, written by the first tokenizer before any fragment can exist."""


def tokens_to_parquet(
    tokens: pa.Table,
    metadata: dict[bytes, bytes],
    group_rows: int = TOKEN_ROW_GROUP_ROWS,
    group_bytes: int = TOKEN_ROW_GROUP_BYTES,
) -> bytes:
    """Return token rows as the bytes of one Parquet file: equal rows and metadata, equal bytes.

    Arrays and audio stand as they are; what is compressed are the other columns.

    Args:
        tokens: rows of `token_schema`.
        metadata: footer keys and values.
        group_rows: rows of a row group at most.
        group_bytes: what columns beside the bits take in a row group at most, unless one row takes more.
    """
    sink = pa.BufferOutputStream()
    plain = [_leaf(field) for field in tokens.schema if not _is_array(field.type)]
    texts = [field.name for field in tokens.schema if _is_text(field.type)]
    writer = pq.ParquetWriter(
        sink,
        tokens.schema,
        compression={_leaf(field): "none" if _is_array(field.type) else "zstd" for field in tokens.schema},
        use_dictionary=texts,
        write_statistics=plain,
    )
    with writer:
        writer.write_table(tokens, row_group_size=_rows_of_group(tokens, group_rows, group_bytes))
        writer.add_key_value_metadata(metadata)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _rows_of_group(tokens: pa.Table, group_rows: int, group_bytes: int) -> int:
    """Return how many rows a row group has: fewer than usual, a power of two, where more than bits makes rows large."""
    num_bytes = 0
    for field, column in zip(tokens.schema, tokens.columns, strict=True):
        if pa.types.is_binary(field.type):
            num_bytes += pc.sum(pc.cast(pc.binary_length(column), pa.int64())).as_py() or 0
        elif _is_array(field.type) and field.name not in BITS_COLUMNS:
            num_bytes += tokens.num_rows * field.type.byte_width
    fitting = group_bytes * tokens.num_rows // num_bytes if num_bytes else group_rows
    return int(min(group_rows, 1 << max(0, fitting.bit_length() - 1)))


def _is_array(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_dictionary(kind))


def _leaf(field: pa.Field) -> str:
    """Return the path of a column's values as Parquet names it."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)


def table_to_ipc(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def table_from_ipc(data: bytes | pa.Buffer) -> pa.Table:
    """Return the table that `table_to_ipc` wrote."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def fragment_to_bytes(tokens: pa.Table, ledger: pa.Table, contract: Contract) -> bytes:
    """Return a fragment: token rows, and in its footer the contract and the ledger of its clips."""
    footer = {
        CONTRACT_KEY: canonical_json(contract.model_dump(mode="json")).encode(),
        LEDGER_KEY: base64.b64encode(table_to_ipc(ledger.cast(LEDGER_SCHEMA))),
    }
    return tokens_to_parquet(tokens, footer)


@dataclass(frozen=True)
class TokenStore:
    """`OUT/_store/<spec_id>/`; built by whoever needs it, owns nothing but the folder's address."""

    folder: Folder

    @classmethod
    def of(cls, output: Folder, spec_id: str) -> TokenStore:
        """Return the store of a spec inside an output folder."""
        return cls(output.child(f"_store/{spec_id}"))

    @staticmethod
    def fragment_path(unit_key: str, stamp: str) -> str:
        """Return where a unit's fragment stands, relative to the store."""
        return f"fragments/{unit_key[:2]}/{unit_key}-{stamp}.parquet"

    def list_fragments(self) -> set[tuple[str, str]]:
        """Return (unit key, stamp) of every committed fragment, learned by listing alone."""
        prefixes = self.folder.list_names("fragments")
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            listings = pool.map(lambda prefix: self.folder.list_names(f"fragments/{prefix}"), prefixes)
            names = [name for listing in listings for name in listing]
        found = (name.removesuffix(".parquet").split("-") for name in names if name.endswith(".parquet"))
        return {(parts[0], parts[1]) for parts in found if len(parts) == 2}

    def publish_fragment(self, unit: Unit, data: bytes) -> None:
        """Commit a unit's fragment; where one already stands, the first one stays."""
        self.folder.publish_new(self.fragment_path(unit.key, unit.stamp), data)

    def read_fragment(self, unit_key: str, stamp: str) -> pa.Table:
        """Return a fragment's token rows.

        Raises:
            IncompleteError: it is missing.
            VerifyError: it is damaged.
        """
        path = self.fragment_path(unit_key, stamp)
        try:
            return pq.read_table(pa.BufferReader(self.folder.read(path)))
        except (FileNotFoundError, pa.ArrowException) as error:
            raise self._broken(path, error) from error

    def read_ledger(self, unit_key: str, stamp: str) -> pa.Table:
        """Return a fragment's ledger from its footer alone."""
        path = self.fragment_path(unit_key, stamp)
        try:
            with self.folder.open(path) as file:
                metadata = pq.read_metadata(file).metadata
            return table_from_ipc(base64.b64decode(metadata[LEDGER_KEY]))
        except (FileNotFoundError, pa.ArrowException, KeyError, ValueError) as error:
            raise self._broken(path, error) from error

    def read_columns(self, unit_key: str, stamp: str, names: Sequence[str]) -> pa.Table:
        """Return some columns of a fragment's token rows, without reading the others.

        Raises:
            IncompleteError: it is missing.
            VerifyError: it is damaged.
        """
        path = self.fragment_path(unit_key, stamp)
        try:
            with self.folder.open(path) as file:
                return pq.ParquetFile(file).read(columns=list(names))
        except (FileNotFoundError, pa.ArrowException) as error:
            raise self._broken(path, error) from error

    def _broken(self, path: str, error: Exception) -> MotionTokensError:
        """Return the error that says what to do about a fragment that is missing or damaged."""
        if isinstance(error, FileNotFoundError):
            return IncompleteError(f"{self.folder}/{path} is missing: run the same tokenize command again")
        return VerifyError(f"{self.folder}/{path} is damaged ({error}): delete it, then run tokenize again")

    def read_ledgers(self, units: Iterable[tuple[str, str]], threads: int = 8) -> Iterator[pa.Table]:
        """Yield the ledgers of (unit key, stamp) pairs, in their order; few are held at once."""
        following = iter(units)
        with ThreadPoolExecutor(threads) as pool:
            while group := list(islice(following, LEDGERS_AT_ONCE)):
                yield from pool.map(lambda unit: self.read_ledger(*unit), group)

    def read_contract(self) -> Contract | None:
        """Return the contract of the store, or None where there is no store yet."""
        try:
            return Contract.model_validate_json(self.folder.read("contract.json"))
        except FileNotFoundError:
            return None

    def publish_contract(self, contract: Contract) -> None:
        """Write the contract of a new store."""
        self.folder.publish("contract.json", canonical_json(contract.model_dump(mode="json")).encode())

    def forget_contract(self) -> None:
        """Give the output free for another contract; what fragments there are stay."""
        self.folder.delete("contract.json")

    def publish_plan(self, plan: Plan) -> None:
        """Write a plan under its digest."""
        self.folder.publish(f"plans/{plan.digest}.parquet", plan_to_bytes(plan))

    def publish_version(self, version: str, plan: Plan, recipes: Iterable[str] = ()) -> None:
        """Remember what a published dataset.json was made from.

        Args:
            version: digest of the dataset.json.
            recipes: what each of its shards was made from, shards in order; see export/reuse.py.
        """
        self.folder.publish(f"published/{version}.txt", "\n".join([plan.digest, *recipes]).encode())

    def recipes_of_version(self, version: str) -> list[str]:
        """Return what each shard of a published dataset.json was made from, [] where that is not known."""
        try:
            return self.folder.read(f"published/{version}.txt").decode().split("\n")[1:]
        except FileNotFoundError:
            return []

    def plan_of_version(self, version: str) -> Plan:
        """Return the plan that a published dataset.json was made from.

        Raises:
            OutputMismatchError: the store does not know this version.
        """
        try:
            digest = self.folder.read(f"published/{version}.txt").decode().partition("\n")[0]
            return plan_from_bytes(self.folder.read(f"plans/{digest}.parquet"))
        except FileNotFoundError as error:
            raise OutputMismatchError(
                f"{self.folder} does not know dataset version {version}: run the same tokenize command again"
            ) from error


def missing_units(store: TokenStore, units: Sequence[Unit]) -> list[Unit]:
    """Return the units without a fragment, learned by listing alone."""
    committed = store.list_fragments()
    return [unit for unit in units if (unit.key, unit.stamp) not in committed]
