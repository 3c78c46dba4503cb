"""Shards that need not be built again: what each was made from, compared with what stands.

Knows no Ray or torch. A recipe is a hash over everything that can change a shard's bytes; equal recipe, equal shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from pipeline.contract.specs import Contract
from pipeline.dataset.manifest import ShardFile, read_manifest
from pipeline.dataset.token_store import TokenStore
from pipeline.export.build import ShardResult, ShardTask
from pipeline.export.clips import ClipTable
from pipeline.hashing import canonical_json, digest_of
from pipeline.storage import Folder

Recipes = Sequence[str]
"""One hash a shard, shards in order; "" where a shard is made anew each time."""

STAT_THREADS = 16
LEDGERS_HELD = 16
"""Texts of units that are kept for the next shard: neighbours share one, and all together would grow with the clips."""
_NAMED = ("clip_id", "source", "num_frames", "num_windows", "motion_digest")


@dataclass(frozen=True)
class StandingShards:
    """What an earlier version of the same output holds; built by whoever exports into it, empty for a new output."""

    files: Mapping[str, Mapping[str, ShardFile]] = field(default_factory=dict)
    """recipe -> format -> file."""

    @classmethod
    def of_published(cls, output: Folder, store: TokenStore) -> StandingShards:
        """Return the shards of the current version by their recipes; none where the store did not make it."""
        manifest = read_manifest(output)
        recipes = [] if manifest is None else store.recipes_of_version(manifest.version)
        if manifest is None or any(len(recipes) != len(shards) for shards in manifest.shards.values()):
            return cls()
        found: dict[str, dict[str, ShardFile]] = {}
        for name, shards in manifest.shards.items():
            for recipe, shard in zip(recipes, shards, strict=True):
                if recipe:
                    found.setdefault(recipe, {})[name] = shard
        return cls(found)

    def reuse(
        self, tasks: Sequence[ShardTask], recipes: Recipes, formats: Sequence[str], output: Folder
    ) -> Iterator[ShardResult]:
        """Yield a result for each task whose shard's files stand already, in their size."""
        candidates = [
            (task, {name: self.files[recipe][name] for name in formats})
            for task in tasks
            if (recipe := recipes[task.index]) in self.files and all(name in self.files[recipe] for name in formats)
        ]

        def stands(files: Mapping[str, ShardFile]) -> bool:
            found = [output.stat(file.path) for file in files.values()]
            return all(
                there and there.num_bytes == file.bytes for there, file in zip(found, files.values(), strict=True)
            )

        with ThreadPoolExecutor(STAT_THREADS) as pool:
            standing = pool.map(lambda candidate: stands(candidate[1]), candidates)
            for (task, files), is_there in zip(candidates, standing, strict=True):
                if is_there:
                    yield ShardResult(task.index, task.layout.split, files, None)


def recipes_of(tasks: Sequence[ShardTask], clips: ClipTable, contract: Contract) -> list[str]:
    """Return the recipe of every shard: rows by unit, what the ledgers say of them, the contract in the footer.

    Shuffled shards have none: their window index is made while they are built.
    """
    base = digest_of(contract.model_dump(mode="json"))
    edges = np.searchsorted(clips.unit, np.arange(int(clips.unit.max(initial=-1)) + 2))
    named = clips.table.select(_NAMED)

    @lru_cache(LEDGERS_HELD)
    def ledger(unit: int) -> bytes:
        rows = named.slice(edges[unit], edges[unit + 1] - edges[unit])
        return canonical_json(rows.to_pydict()).encode()

    recipes: list[str] = []
    for task in tasks:
        if task.layout.shuffle_seed:
            recipes.append("")
            continue
        digest = hashlib.sha256(f"{base}\0{task.layout.split}".encode())
        for piece in task.layout.pieces:
            fragment = task.fragments[piece.unit]
            digest.update(f"\0{fragment.unit_key}\0{fragment.stamp}\0".encode())
            digest.update(ledger(piece.unit))
            digest.update(piece.intervals.tobytes())
        recipes.append(digest.hexdigest()[:24])
    return recipes
