"""Publishing: the small files of a version under its name, then under their own names, and dataset.json last.

Knows no Ray or torch. Shards stand already; their names say their content, so that no version disturbs another.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.dataset.manifest import Manifest, publish_manifest, publish_version_record, stage_manifest, version_path
from pipeline.dataset.paths import WINDOW_INDEX_PATH
from pipeline.dataset.token_store import TokenStore
from pipeline.export.reuse import Recipes
from pipeline.plan.plan import Plan
from pipeline.run.ownership import Ownership
from pipeline.storage import Folder

ALWAYS_WRITTEN = ("README.md", "constants.npz", "index/clips.parquet", "index/units.parquet", "quarantine.parquet")
"""Files beside the shards; shuffled exports add the window index, WebDataset a shards.txt a split."""

WRITE_THREADS = 8


@dataclass(frozen=True)
class Exported:
    """A dataset whose shards stand and which nothing names yet; built by `export_dataset`."""

    manifest: Manifest
    contents: Mapping[str, bytes | memoryview]
    """The files beside the shards, by path."""
    recipes: Recipes
    """What each shard was made from, shards in order."""


def publish_dataset(
    owner: Ownership, exported: Exported, store: TokenStore | None = None, plan: Plan | None = None
) -> None:
    """Make an exported dataset the current one; killed at any moment, the one before stays whole.

    Args:
        owner: of the output.
        store: remembers what the version was made from, where it stands in the same output.
        plan: the store's plan of it.

    Raises:
        OwnershipLostError: another run has taken over.
    """
    _keep_version(owner, exported, store, plan)
    owner.publish(exported.contents)
    publish_manifest(owner, exported.manifest)
    owner.delete(outdated_files(owner.output, exported.manifest))
    owner.make_sure()  # who was taken over just before may have been replaced already


def stage_dataset(owner: Ownership, exported: Exported, store: TokenStore, plan: Plan) -> None:
    """Keep a dataset that failed the gate as a version, beside the published one that stays the current one."""
    _keep_version(owner, exported, store, plan)
    stage_manifest(owner, exported.manifest)
    owner.make_sure()


def _keep_version(owner: Ownership, exported: Exported, store: TokenStore | None, plan: Plan | None) -> None:
    """Write everything of a version under its own name, which says its content."""
    output, contents, version = owner.output, exported.contents, exported.manifest.version
    with ThreadPoolExecutor(WRITE_THREADS) as pool:
        list(pool.map(lambda path: output.publish(version_path(version, path), contents[path]), contents))
    if store is not None and plan is not None:
        store.publish_version(owner, version, plan, exported.recipes)
    publish_version_record(output, exported.manifest)


def outdated_files(output: Folder, manifest: Manifest) -> list[str]:
    """Return files of fixed names that an earlier export left and this one does not name."""
    named = {file.path for file in manifest.files}
    lists = [f"webdataset/{split}/shards.txt" for split in output.list_names("webdataset")]
    return [path for path in (WINDOW_INDEX_PATH, *lists) if path not in named and output.exists(path)]
