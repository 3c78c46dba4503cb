"""The export command: published datasets with their token stores in, another dataset out, without the model.

Knows no Ray or torch: who builds the shards is handed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.contract.resolve import default_windows_per_shard
from pipeline.contract.specs import ExportSpec
from pipeline.dataset.manifest import Manifest, joined_status, read_beside, read_manifest, shared_gate
from pipeline.dataset.paths import MARKER_PATH
from pipeline.dataset.token_store import TokenStore, standing_contracts
from pipeline.errors import ConfigError, OutputMismatchError
from pipeline.export.build import Fragment
from pipeline.export.export_dataset import ExportSource, export_dataset
from pipeline.export.publish import publish_dataset
from pipeline.export.reuse import StandingShards
from pipeline.export.selection import check_columns
from pipeline.export.splits import listed_splits
from pipeline.hashing import canonical_json
from pipeline.job.request import OWN_NAMES
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Ownership
from pipeline.run.tasks import RunTasks
from pipeline.settings.job_config import JobConfig, SplitConfig
from pipeline.sources.clip_filter import ClipFilter
from pipeline.storage import Folder
from pipeline.tables import read_table


def export_datasets(
    datasets: Sequence[str], ownership: Ownership, config: JobConfig, run: RunTasks, observer: JobObserver
) -> Manifest:
    """Write one dataset from the token stores of others, or its own shards anew.

    What the configuration does not set stays as the (first) dataset was exported, its filter included.

    Args:
        datasets: folders of published datasets, each with its `_store`.
        ownership: of the output; held while the export writes.
        config: its `export` section and `input.duplicate_ids` count.

    Raises:
        OutputMismatchError: a folder holds no dataset with a store, contracts differ, or the output holds
            another dataset.
        ConfigError: filter or splits ask for a column that there is not.
        NoClipLeftError: every clip was dropped, or none passes the filter.
        IncompleteError: a fragment is missing, or another run is active.
    """
    observer.on_stage("export")
    options = config.run.storage_options
    output = ownership.output
    output.require_whole()
    folders = [Folder(url, options) for url in datasets]
    is_in_place = len(folders) == 1 and output.path_below(folders[0]) == ""
    job = _prepared(folders, config)
    if not is_in_place:
        _is_unclaimed(output, job.marker)
    with ownership.held() as owner:
        job = _prepared(folders, config)  # another run may have published, or begun, meanwhile
        if not is_in_place and _is_unclaimed(output, job.marker):
            owner.publish({MARKER_PATH: job.marker})
        return _export(job, owner, is_in_place, config, run, observer)


@dataclass(frozen=True)
class _Job:
    """An export that can start."""

    datasets: Sequence[tuple[Folder, Manifest]]
    spec: ExportSpec
    listed: Mapping[str, str]
    """Clip id -> split, for `splits.by: file`."""
    clips: ClipFilter

    @property
    def marker(self) -> bytes:
        """What marks an output as the export of these datasets."""
        sources = [str(folder) for folder, _ in self.datasets]
        return canonical_json({"spec_id": self.datasets[0][1].spec_id, "sources": sources}).encode()


def _prepared(folders: Sequence[Folder], config: JobConfig) -> _Job:
    """Read and check what is asked for, before anything is written.

    Raises:
        RequestError: a dataset or list is missing, or filter or splits ask for a column that there is not.
    """
    manifests = [_published(folder) for folder in folders]
    first = manifests[0]
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        differences = first.contract.differences(manifest.contract)
        if differences:
            raise OutputMismatchError(
                f"{folder} cannot be merged with {folders[0]}: {'; '.join(differences[:5])}."
                " Next: export them separately"
            )
    datasets = list(zip(folders, manifests, strict=True))
    clips = _clip_lists(datasets, config)
    spec, listed = _spec_and_splits(config, datasets, clips)
    check_columns(spec, datasets[0][1].contract.corpus)
    return _Job(datasets, spec, listed, clips)


def _export(
    job: _Job, owner: Ownership, is_in_place: bool, config: JobConfig, run: RunTasks, observer: JobObserver
) -> Manifest:
    datasets = job.datasets
    first = datasets[0][1]
    stores = tuple(TokenStore.of(folder, first.spec_id) for folder, _ in datasets)
    plans = [store.plan_of_version(manifest.version) for store, (_, manifest) in zip(stores, datasets, strict=True)]
    fragments = tuple(Fragment(index, unit.key, unit.stamp) for index, plan in enumerate(plans) for unit in plan.units)
    manifests = [manifest for _, manifest in datasets]
    standing = StandingShards.of_published(owner.output, stores[0]) if is_in_place else StandingShards()
    source = ExportSource(
        stores,
        fragments,
        first.contract,
        standing=standing,
        status=joined_status(manifests),
        gate=shared_gate(manifests),
        clips=job.clips,
    )
    exported = export_dataset(source, owner, job.spec, job.listed, run, observer)
    if is_in_place:
        publish_dataset(owner, exported, stores[0], plans[0])
    else:
        publish_dataset(owner, exported)
    return exported.manifest


def _published(folder: Folder) -> Manifest:
    manifest = read_manifest(folder)
    if manifest is None:
        raise OutputMismatchError(f"{folder} holds no published dataset: run motion-tokens tokenize first")
    if manifest.status == "staged":
        raise OutputMismatchError(f"{folder} is staged, not published: its gate failed")
    if TokenStore.of(folder, manifest.spec_id).read_contract() is None:
        raise OutputMismatchError(f"{folder} has no token store: export from the dataset that tokenize wrote")
    return manifest


def _is_unclaimed(output: Folder, marker: bytes) -> bool:
    """Return whether an output is to be marked yet as the export of these datasets; one that is, is written anew.

    Raises:
        OutputMismatchError: something else stands there.
    """
    names = output.list_names("")  # before the marker: an export that begins meanwhile writes it before other files
    try:
        standing = output.read(MARKER_PATH)
    except (FileNotFoundError, NotADirectoryError):
        read_manifest(output)  # says so where the output is no folder
        if standing_contracts(output):
            raise OutputMismatchError(
                f"{output} has a token store of its own, in which others' tokens would not be: name another folder"
            ) from None
        others = sorted(name for name in names if not name.startswith(".") and name not in OWN_NAMES)
        if others:
            raise OutputMismatchError(
                f"{output} is not empty and holds no export ({', '.join(others[:5])}): name another folder"
            ) from None
        return True
    if standing != marker:
        sources = ", ".join(json.loads(standing)["sources"])
        raise OutputMismatchError(f"{output} holds the export of another dataset ({sources}): name another folder")
    return False


def _clip_lists(datasets: Sequence[tuple[Folder, Manifest]], config: JobConfig) -> ClipFilter:
    """Return the clips that the export takes or leaves out by name.

    Raises:
        ConfigError: the first dataset was exported with lists; a dataset does not hold them.
    """
    folder, first = datasets[0]
    if first.export.get("clips") and "clips" not in config.export.model_fields_set:
        raise ConfigError(
            f"{folder} was exported with lists of clips, which a dataset does not hold: name them again as"
            " export.clips, or take all clips with --set export.clips={}"
        )
    return ClipFilter.read(config.export.clips, config.run.storage_options)


def _spec_and_splits(
    config: JobConfig, datasets: Sequence[tuple[Folder, Manifest]], clips: ClipFilter
) -> tuple[ExportSpec, Mapping[str, str]]:
    """Return the first dataset's way of exporting with what the configuration sets laid over it."""
    first = datasets[0][1]
    given = {name: getattr(config.export, name) for name in config.export.model_fields_set - {"clips", "splits"}}
    if "duplicate_ids" in config.input.model_fields_set:
        given["duplicate_ids"] = config.input.duplicate_ids
    if "splits" in config.export.model_fields_set:
        splits = config.export.splits
        listed, digest = listed_splits(splits, config.run.storage_options)
    else:
        tree = first.export["splits"]
        is_listed = tree["by"] == "file"
        splits = SplitConfig(**tree, file="the source's" if is_listed else None)
        listed, digest = (_splits_of_index(datasets) if is_listed else {}), first.export["split_file"]
    if "windows_per_shard" in given and given["windows_per_shard"] is None:
        given["windows_per_shard"] = default_windows_per_shard(first.contract.spec)
    own = ("splits", "split_file", "clips", "global_order")
    standing = {name: value for name, value in first.export.items() if name not in own}
    fields = {**standing, **given, "splits": splits, "split_file": digest, "clips": clips.digest}
    return ExportSpec(**fields), listed


def _splits_of_index(datasets: Sequence[tuple[Folder, Manifest]]) -> dict[str, str]:
    """Return clip id -> split as the datasets' own index says."""
    listed: dict[str, str] = {}
    for folder, manifest in datasets:
        data = read_beside(folder, manifest, "index/clips.parquet")
        index = read_table(data, columns=["clip_id", "split"])
        listed.update(zip(index["clip_id"].to_pylist(), index["split"].to_pylist(), strict=True))
    return listed
