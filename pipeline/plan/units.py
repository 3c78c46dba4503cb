"""Units of work: what they are, how they are grouped to runs, and how they are passed on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.hashing import canonical_json, digest_of
from pipeline.sources.clip import Part
from pipeline.storage import StoredFile


@dataclass(frozen=True)
class Unit:
    """A fixed slice of the input: what one fragment is made from."""

    key: str
    stamp: str
    num_bytes: int
    parts: tuple[Part, ...]
    listed: str = field(default="", compare=False)
    """Hash of its files' sizes and versions as this run listed them; empty in a plan that was stored."""


def group_units(units: Sequence[Unit], num_workers: int, most_bytes: int) -> list[list[Unit]]:
    """Return runs of units: what one task carries.

    Args:
        most_bytes: where a run ends, or earlier so that every worker gets several; a unit is never divided.
    """
    total = sum(unit.num_bytes for unit in units)
    target = min(most_bytes, total // (4 * num_workers))
    runs: list[list[Unit]] = []
    num_bytes = 0
    for unit in units:
        if not runs or num_bytes + unit.num_bytes > target:
            runs.append([])
            num_bytes = 0
        runs[-1].append(unit)
        num_bytes += unit.num_bytes
    return runs


def stamp_of(files: Sequence[StoredFile]) -> str:
    """Return the hash that says whether a fragment is still current: a unit's files by size and checksum.

    Files without a checksum count by size and version.
    """
    return digest_of([[file.num_bytes, file.checksum or file.version] for file in files], 12)


def listed_of(files: Sequence[StoredFile]) -> str:
    """Return the hash that says whether a unit's files still look as listed: by size and version."""
    return digest_of([[file.num_bytes, file.version] for file in files], 12)


def unit_to_json(unit: Unit) -> dict[str, object]:
    """Return a unit as plain values, as the stages pass it on."""
    parts = canonical_json([part.to_json() for part in unit.parts])
    fields = {"unit_key": unit.key, "stamp": unit.stamp, "num_bytes": unit.num_bytes, "parts": parts}
    return {**fields, "listed": unit.listed}


def unit_from_json(row: dict[str, object]) -> Unit:
    """Return the unit that `unit_to_json` described, or a row of a stored plan."""
    parts = tuple(Part.from_json(part) for part in json.loads(str(row["parts"])))
    num_bytes, listed = int(str(row["num_bytes"])), str(row.get("listed", ""))
    return Unit(str(row["unit_key"]), str(row["stamp"]), num_bytes, parts, listed)
