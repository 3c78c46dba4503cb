"""Input files -> units of work, deterministic, and stable when files are added or removed.

Knows no Ray or torch. A unit depends on its own neighbourhood of files only.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.schema import PLAN_SCHEMA
from pipeline.contract.specs import CorpusSpec
from pipeline.hashing import canonical_json, digest_of
from pipeline.plan.units import Unit, listed_of, stamp_of, unit_from_json
from pipeline.sources.clip import Part
from pipeline.sources.registry import cut_file, format_of
from pipeline.storage import InputRoot, StoredFile
from pipeline.tables import read_table

FOOTER_THREADS = 16


@dataclass(frozen=True)
class Plan:
    """Every unit of a job, in order of its key."""

    units: tuple[Unit, ...]

    @property
    def digest(self) -> str:
        """Name of this plan: keys and stamps, so that changed content is another plan."""
        return digest_of([[unit.key, unit.stamp] for unit in self.units], 24)

    @property
    def keys_digest(self) -> str:
        """Hash of the unit keys alone: the same wherever and whenever the input was copied."""
        return units_digest(unit.key for unit in self.units)

    @property
    def num_bytes(self) -> int:
        """Size of the input, bytes."""
        return sum(unit.num_bytes for unit in self.units)


def units_digest(keys: Iterable[str]) -> str:
    """Return the hash of unit keys in order."""
    return digest_of(list(keys), 24)


def make_plan(roots: Sequence[InputRoot], corpus: CorpusSpec) -> Plan:
    """Cut input files into units: large files inside, small ones gathered by relative path.

    Raises:
        StorageError: a file to be cut could not be read.
    """
    units: list[Unit] = []
    for root in roots:
        small = [file for file in root.files if file.num_bytes <= corpus.unit_bytes]
        large = [file for file in root.files if file.num_bytes > corpus.unit_bytes]
        units.extend(_unit_of_files(root.name, files, corpus) for files in gather_small(root.name, small, corpus))
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            for cut in pool.map(lambda file, root=root: _units_inside(root, file, corpus), large):
                units.extend(cut)
    return Plan(tuple(sorted(units, key=lambda unit: unit.key)))


def gather_small(input_name: str, files: Sequence[StoredFile], corpus: CorpusSpec) -> Iterator[list[StoredFile]]:
    """Yield runs of small files: cut after each path whose hash is 0 modulo `unit_files`, and by size.

    Args:
        input_name: part of the hash, so that inputs are cut independently.
        files: in any order; they are sorted by relative path.
    """
    run: list[StoredFile] = []
    num_bytes = 0
    for file in sorted(files, key=lambda file: file.path):
        if run and num_bytes + file.num_bytes > corpus.unit_bytes:
            yield run
            run, num_bytes = [], 0
        run.append(file)
        num_bytes += file.num_bytes
        digest = hashlib.sha256(f"{input_name}\0{file.path}".encode()).digest()
        if int.from_bytes(digest[:8], "big") % corpus.unit_files == 0:
            yield run
            run, num_bytes = [], 0
    if run:
        yield run


def _unit_of_files(input_name: str, files: Sequence[StoredFile], corpus: CorpusSpec) -> Unit:
    parts = tuple(Part(input_name, file.path, format_of(file.path, corpus.format)) for file in files)
    return _unit(parts, files, sum(file.num_bytes for file in files))


def _units_inside(root: InputRoot, file: StoredFile, corpus: CorpusSpec) -> list[Unit]:
    parts = cut_file(root.folder, root.name, file, corpus)
    return [_unit((part,), [file], file.num_bytes // len(parts)) for part in parts]


def _unit(parts: tuple[Part, ...], files: Sequence[StoredFile], num_bytes: int) -> Unit:
    key = digest_of([[part.input_name, part.path, part.start, part.stop] for part in parts], 20)
    return Unit(key, stamp_of(files), num_bytes, parts, listed_of(files))


def plan_to_bytes(plan: Plan) -> bytes:
    """Return a plan as a Parquet file."""
    rows = {
        "unit_key": [unit.key for unit in plan.units],
        "stamp": [unit.stamp for unit in plan.units],
        "num_bytes": [unit.num_bytes for unit in plan.units],
        "parts": [canonical_json([part.to_json() for part in unit.parts]) for unit in plan.units],
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(rows, PLAN_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def plan_from_bytes(data: bytes) -> Plan:
    """Return the plan that `plan_to_bytes` wrote."""
    rows = read_table(data, schema=PLAN_SCHEMA).to_pylist()
    return Plan(tuple(unit_from_json(row) for row in rows))
