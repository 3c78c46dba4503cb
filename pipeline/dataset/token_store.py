"""The token store: one immutable Parquet fragment a unit; its presence under its name is its commit.

Knows no Ray or torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from pipeline.contract.specs import Contract
from pipeline.dataset.fragment import fragment_columns, fragment_contract, fragment_ledger, fragment_rows
from pipeline.errors import DamagedFragmentError, IncompleteError, MotionTokensError, OutputMismatchError
from pipeline.hashing import canonical_json
from pipeline.plan.plan import Plan, plan_from_bytes, plan_to_bytes
from pipeline.plan.units import Unit
from pipeline.run.ownership import Ownership
from pipeline.storage import Folder

_SPEC_ID = re.compile(r"[0-9a-f]{16}")
LISTING_THREADS = 32
LEDGERS_AT_ONCE = 64
READ_THREADS = 4


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
            DamagedFragmentError: it holds other bytes than were written.
        """
        path = self.fragment_path(unit_key, stamp)
        try:
            return fragment_rows(self.folder.read(path))
        except (FileNotFoundError, pa.ArrowException, ValueError) as error:
            raise self._broken(path, error) from error

    def read_ledger(self, unit_key: str, stamp: str) -> pa.Table:
        """Return a fragment's ledger from its footer alone.

        Raises:
            IncompleteError: it is missing.
            DamagedFragmentError: its footer is not the one that was written.
        """
        path = self.fragment_path(unit_key, stamp)
        try:
            with self.folder.open(path) as file:
                return fragment_ledger(file)
        except (FileNotFoundError, pa.ArrowException, KeyError, ValueError) as error:
            raise self._broken(path, error) from error

    def read_columns(self, unit_key: str, stamp: str, names: Sequence[str]) -> pa.Table:
        """Return some columns of a fragment's token rows, without reading the others.

        Raises:
            IncompleteError: it is missing.
            DamagedFragmentError: it holds other bytes than were written.
        """
        path = self.fragment_path(unit_key, stamp)
        try:
            with self.folder.open(path) as file:
                return fragment_columns(file, names)
        except (FileNotFoundError, pa.ArrowException, ValueError) as error:
            raise self._broken(path, error) from error

    def _broken(self, path: str, error: Exception) -> MotionTokensError:
        """Return the error that says what to do about a fragment that is missing or damaged."""
        if isinstance(error, FileNotFoundError):
            return IncompleteError(f"{self.folder}/{path} is missing: run the same tokenize command again")
        return DamagedFragmentError(
            f"{self.folder}/{path} is damaged ({error}): delete it, then run the same tokenize command again"
        )

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

    def contract_of_fragments(self) -> Contract | None:
        """Return the contract that one of the fragments was written under, or None where there is none.

        Raises:
            DamagedFragmentError: its footer is not the one that was written.
        """
        for prefix in self.folder.list_names("fragments"):
            for name in self.folder.list_names(f"fragments/{prefix}"):
                if not name.endswith(".parquet"):
                    continue
                path = f"fragments/{prefix}/{name}"
                try:
                    with self.folder.open(path) as file:
                        return fragment_contract(file)
                except (FileNotFoundError, pa.ArrowException, ValueError) as error:
                    raise self._broken(path, error) from error
        return None

    def publish_contract(self, owner: Ownership, contract: Contract) -> None:
        """Write the contract of a new store."""
        owner.publish({"contract.json": canonical_json(contract.model_dump(mode="json")).encode()}, self.folder)

    def forget_contract(self, owner: Ownership) -> None:
        """Give the output free for another contract; what fragments there are stay."""
        owner.delete(["contract.json"], self.folder)

    def publish_plan(self, owner: Ownership, plan: Plan) -> None:
        """Write a plan under its digest."""
        owner.publish({f"plans/{plan.digest}.parquet": plan_to_bytes(plan)}, self.folder)

    def publish_version(self, owner: Ownership, version: str, plan: Plan, recipes: Iterable[str] = ()) -> None:
        """Remember what a published dataset.json was made from.

        Args:
            version: digest of the dataset.json.
            recipes: what each of its shards was made from, shards in order; see export/reuse.py.
        """
        owner.publish({f"published/{version}.txt": "\n".join([plan.digest, *recipes]).encode()}, self.folder)

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


def standing_contracts(output: Folder) -> dict[str, Contract]:
    """Return the contracts of an output's stores by spec id, but of those that were given free."""
    stores = [name for name in output.list_names("_store") if _SPEC_ID.fullmatch(name)]
    contracts = {spec_id: TokenStore.of(output, spec_id).read_contract() for spec_id in stores}
    return {spec_id: contract for spec_id, contract in contracts.items() if contract is not None}


def missing_units(store: TokenStore, units: Sequence[Unit]) -> list[Unit]:
    """Return the units without a fragment, learned by listing alone."""
    committed = store.list_fragments()
    return [unit for unit in units if (unit.key, unit.stamp) not in committed]


def damaged_units(store: TokenStore, units: Sequence[Unit]) -> list[Unit]:
    """Return the units whose fragment holds other bytes than were written; each is read whole."""

    def is_damaged(unit: Unit) -> bool:
        try:
            store.read_fragment(unit.key, unit.stamp)
        except DamagedFragmentError:
            return True
        except IncompleteError:
            return False
        return False

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return [unit for unit, found in zip(units, pool.map(is_damaged, units), strict=True) if found]
