"""The export command: published datasets with their token stores in, another dataset out, without the model.

Knows no Ray or torch: who builds the shards is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import export_spec
from pipeline.errors import OutputMismatchError
from pipeline.export.build import Fragment
from pipeline.export.dataset import BuildShards, ExportSource, export_dataset
from pipeline.export.splits import listed_splits
from pipeline.job_config import JobConfig
from pipeline.manifest import Manifest, publish_manifest, read_manifest
from pipeline.observer import JobObserver
from pipeline.storage import Folder
from pipeline.token_store import TokenStore


def export_datasets(
    datasets: Sequence[str], output_url: str, config: JobConfig, build: BuildShards, observer: JobObserver
) -> Manifest:
    """Write one dataset from the token stores of others; writing over its own source changes its shards only.

    Args:
        datasets: folders of published datasets, each with its `_store`.
        config: its `export` section and `input.duplicate_ids` count.

    Raises:
        OutputMismatchError: a folder holds no dataset with a store, contracts differ, or the output holds
            another dataset.
        NoClipLeftError: every clip was dropped.
    """
    observer.on_stage("export")
    options = config.run.storage_options
    output = Folder(output_url, options)
    folders = [Folder(url, options) for url in datasets]
    manifests = [_published(folder) for folder in folders]
    first = manifests[0]
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        differences = first.contract.differences(manifest.contract)
        if differences:
            raise OutputMismatchError(
                f"{folder} cannot be merged with {folders[0]}: {'; '.join(differences[:5])}."
                " Next: export them separately"
            )
    is_in_place = len(folders) == 1 and folders[0].is_same_place(output)
    _check_output(output, first, is_in_place)

    stores = tuple(TokenStore.of(folder, first.spec_id) for folder in folders)
    plans = [store.plan_of_version(manifest.version) for store, manifest in zip(stores, manifests, strict=True)]
    fragments = tuple(Fragment(index, unit.key, unit.stamp) for index, plan in enumerate(plans) for unit in plan.units)
    listed, digest = listed_splits(config.export.splits, options)
    source = ExportSource(stores, fragments, first.contract)
    manifest = export_dataset(source, output, export_spec(config, digest), listed, build, observer)
    if is_in_place:
        stores[0].publish_version(manifest.version, plans[0])
    publish_manifest(output, manifest)
    return manifest


def _published(folder: Folder) -> Manifest:
    manifest = read_manifest(folder)
    if manifest is None:
        raise OutputMismatchError(f"{folder} holds no published dataset: run motion-tokens tokenize first")
    if manifest.status == "staged":
        raise OutputMismatchError(f"{folder} is staged, not published: its gate failed")
    if TokenStore.of(folder, manifest.spec_id).read_contract() is None:
        raise OutputMismatchError(f"{folder} has no token store: export from the dataset that tokenize wrote")
    return manifest


def _check_output(output: Folder, source: Manifest, is_in_place: bool) -> None:
    standing = read_manifest(output)
    if not is_in_place and TokenStore.of(output, source.spec_id).read_contract() is not None:
        raise OutputMismatchError(
            f"{output} has a token store of its own, which others' tokens would not be in: name another folder"
        )
    if standing is not None and standing.contract != source.contract:
        fields = "; ".join(source.contract.differences(standing.contract)[:5])
        raise OutputMismatchError(f"{output} holds another dataset: {fields}. Next: name another folder")
    if standing is None and output.list_names(""):
        raise OutputMismatchError(f"{output} is not empty and holds no token dataset: name another folder")
