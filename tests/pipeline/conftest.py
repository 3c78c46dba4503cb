"""Fixtures of exports: a token store of random bits, made without a model, and what an export of it holds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.columns import token_schema
from pipeline.contract.schema import LEDGER_SCHEMA
from pipeline.contract.specs import CarriedColumn, Contract, ExportSpec, Numerics
from pipeline.contract.windows import valid_frames, window_starts
from pipeline.dataset.fragment import fragment_to_bytes
from pipeline.dataset.token_store import TokenStore
from pipeline.executors.plain_loop import build_here
from pipeline.export.build import Fragment
from pipeline.export.export_dataset import ExportSource, export_dataset
from pipeline.export.publish import publish_dataset
from pipeline.plan.units import Unit
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Ownership
from pipeline.settings.job_config import SplitConfig
from pipeline.sources.clip import Part
from pipeline.storage import Folder


@dataclass(frozen=True)
class Clip:
    """A clip of a store: id, frames (0: dropped), and what is carried of it."""

    clip_id: str
    num_frames: int
    speaker: str | None = None


def _fragment(contract: Contract, unit_key: str, clips: list[Clip]) -> tuple[pa.Table, pa.Table]:
    frames, rule = contract.codec.window_frames, contract.corpus.window
    rows: list[dict[str, Any]] = []
    ledger: list[dict[str, Any]] = []
    for clip in clips:
        starts = window_starts(clip.clip_id, clip.num_frames, frames, rule)
        prev_valid, this_valid = valid_frames(starts, clip.num_frames, frames)
        seed = int.from_bytes(f"{unit_key}{clip.clip_id}".encode()[-8:], "big")
        bits = np.random.default_rng(seed).integers(0, 256, (len(starts), 2, contract.codec.half_bytes), np.uint8)
        for n, start in enumerate(starts):
            row = {
                "clip_id": clip.clip_id,
                "start_frame": int(start),
                "num_frames": clip.num_frames,
                "prev_valid_frames": int(prev_valid[n]),
                "this_valid_frames": int(this_valid[n]),
                "source": f"{unit_key}.npz",
                "prev_bits": bits[n, 0].tobytes(),
                "this_bits": bits[n, 1].tobytes(),
            }
            rows.append(row | {column.name: getattr(clip, column.name) for column in contract.corpus.carry})
        ledger.append(
            {
                "clip_id": clip.clip_id,
                "source": f"{unit_key}.npz",
                "where": "",
                "num_frames": clip.num_frames,
                "num_windows": len(starts),
                "motion_digest": f"{unit_key}{clip.clip_id}".encode().hex()[-32:],
                "drop_reason": "" if len(starts) else "too_short",
                "drop_detail": "",
            }
        )
    tokens = pa.Table.from_pylist(rows, schema=token_schema(contract.codec, contract.corpus))
    return tokens, pa.Table.from_pylist(ledger, schema=LEDGER_SCHEMA)


@pytest.fixture(scope="session")
def make_source(make_codec: Any, make_corpus: Any) -> Callable[..., ExportSource]:
    """Return a function that fills a store: ``make_source(folder, {unit_key: [Clip, ..]}, window=rule)``."""

    def make(folder: Path, units: dict[str, list[Clip]], **corpus: Any) -> ExportSource:
        carry = (CarriedColumn(name="speaker", kind="string"),)
        contract = Contract(
            codec=make_codec(),
            corpus=make_corpus(carry=carry, **corpus),
            numerics=Numerics(device="cpu", torch="2", pyarrow="3"),
        )
        store = TokenStore.of(Folder(str(folder)), contract.spec.spec_id)
        store.folder.publish("constants.npz", b"constants")
        for key, clips in units.items():
            tokens, ledger = _fragment(contract, key, clips)
            unit = Unit(key, "s1", 100, (Part("", f"{key}.npz", "npz"),))
            store.publish_fragment(unit, fragment_to_bytes(tokens, ledger, contract))
        return ExportSource((store,), tuple(Fragment(0, key, "s1") for key in units), contract)

    return make


def _spec(**changes: Any) -> ExportSpec:
    fields = {
        "formats": ("parquet",),
        "windows_per_shard": 20,
        "shuffle": "none",
        "seed": 0,
        "splits": SplitConfig(ratios={"train": 1.0}),
        "split_file": "",
        "duplicate_ids": "reject",
    }
    return ExportSpec(**{**fields, **changes})


def _export(source: ExportSource, folder: Path, spec: ExportSpec, run: Any = build_here) -> Any:
    """Export, publish, and return the files by path, the manifest and the rows of every shard in order."""
    output = Folder(str(folder))
    with Ownership(output, "test").held() as owner:
        publish_dataset(owner, export_dataset(source, owner, spec, {}, run, JobObserver()))
    files = {file.path: output.read(file.path) for file in output.list_files() if not file.path.startswith("_store")}
    manifest = json.loads(files["dataset.json"])
    shards = [pq.read_table(io.BytesIO(files[shard["path"]])).to_pylist() for shard in manifest["shards"]["parquet"]]
    return SimpleNamespace(files=files, manifest=manifest, shards=shards, rows=[row for rows in shards for row in rows])


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The class and functions above, for test modules."""
    return SimpleNamespace(Clip=Clip, spec=_spec, export=_export)
