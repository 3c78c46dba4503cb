"""A person's request -> everything a job needs, read and checked before any work.

Knows no Ray. Whatever a bad request could get wrong ends here, with nothing written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.contract.resolve import corpus_spec, export_spec
from pipeline.contract.specs import Contract, ExportSpec
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.paths import MARKER_PATH
from pipeline.dataset.token_store import TokenStore, standing_contracts
from pipeline.errors import ConfigError, OutputMismatchError
from pipeline.executors.executor import Executor
from pipeline.export.selection import check_columns
from pipeline.export.splits import listed_splits
from pipeline.run.observer import JobObserver
from pipeline.settings.job_config import JobConfig, TokenizeRequest
from pipeline.sources.clip_filter import ClipFilter
from pipeline.sources.fields import carried_kinds
from pipeline.sources.registry import open_motion
from pipeline.stages.codec import Codec, open_codec
from pipeline.storage import Folder, InputRoot, with_checksums

DEFAULT_BATCH_CPU, DEFAULT_BATCH_GPU = 32, 1024

_OTHER = "name another folder, or put it in this one's place with --restart"

OWN_NAMES = {"_store", "runs", "report"}
"""What may stand in an output before its first dataset.json."""


@dataclass(frozen=True)
class Job:
    """A request that can start."""

    config: JobConfig
    output: Folder
    roots: Sequence[InputRoot]
    codec: Codec
    contract: Contract
    export: ExportSpec
    clips: ClipFilter
    chosen: ClipFilter
    """Clips that the export takes or leaves out by name."""
    listed: Mapping[str, str]

    @property
    def store(self) -> TokenStore:
        """The token store that the job fills."""
        return TokenStore.of(self.output, self.contract.spec.spec_id)


def prepare(request: TokenizeRequest, executor: Executor, observer: JobObserver | None = None) -> Job:
    """Read and check inputs, checkpoint, configuration and output.

    Args:
        observer: told of the files whose checksums are taken, where `input.checksum` wants them.

    Raises:
        RequestError: something of the request cannot be; the message names it and the next step.
        StorageError: storage did not answer after all retries, or an input changed meanwhile.
    """
    config, options = request.config, request.config.run.storage_options
    share = config.run.gpus_per_worker or 1.0
    if executor.num_gpus and (config.run.workers or 0) * share > executor.num_gpus:
        each = "one" if share == 1 else f"{share:g}"
        raise ConfigError(
            f"--workers {config.run.workers}: there are {executor.num_gpus:g} GPUs, {each} for each worker"
        )
    output = Folder(request.output, options)
    output.require_whole()
    roots = open_motion(request.inputs, output, config.input.format)
    codec = open_codec(request.checkpoint, preset=request.preset, model_config=request.model_config, options=options)
    clips = ClipFilter.read(config.input.clips, options)
    chosen = ClipFilter.read(config.export.clips, options)
    corpus = corpus_spec(
        config,
        codec.spec,
        batch_size=config.batch_size or (DEFAULT_BATCH_GPU if executor.num_gpus else DEFAULT_BATCH_CPU),
        clips_digest=clips.digest,
        carried_kinds=carried_kinds(roots, config.input),
    )
    if corpus.columns is not None and len(corpus.columns) != codec.spec.motion_dim:
        raise ConfigError(
            f"input.columns selects {len(corpus.columns)} columns, the checkpoint wants {codec.spec.motion_dim}"
        )
    listed, split_digest = listed_splits(config.export.splits, options)
    contract = Contract(codec=codec.spec, corpus=corpus, numerics=executor.numerics())
    contract = _standing_contract(output, contract, config)
    if config.input.checksum:
        roots = _read_checksums(roots, observer or JobObserver())
    export = export_spec(config, contract.spec, split_digest, chosen.digest)
    check_columns(export, contract.corpus)
    return Job(config, output, roots, codec, contract, export, clips, chosen, listed)


def _read_checksums(roots: Sequence[InputRoot], observer: JobObserver) -> list[InputRoot]:
    """Take the checksums of all input, as a stage inside that of the plan."""
    observer.on_stage("checksums")
    observer.on_layout(sum(len(root.files) for root in roots), 0)
    checked = with_checksums(roots, observer.on_shard)
    observer.on_stage("plan")
    return checked


def look_again(job: Job) -> Job:
    """Return a job under the contract that stands in its output by now.

    Raises:
        OutputMismatchError: another run began another dataset there meanwhile.
    """
    return replace(job, contract=_standing_contract(job.output, job.contract, job.config))


def _standing_contract(output: Folder, contract: Contract, config: JobConfig) -> Contract:
    """Return the contract to work under: the standing one, where the output continues under it.

    Raises:
        OutputMismatchError: the output holds another dataset, or no dataset at all but other files.
    """
    manifest = read_manifest(output)
    names = output.list_names("")  # before the contracts: a run that begins meanwhile writes its own before other files
    standing = standing_contracts(output)
    if not standing:
        if manifest is not None or ("_store" in names and output.exists(MARKER_PATH)):
            raise OutputMismatchError(f"{output} holds an exported dataset without a token store: name another folder")
        others = sorted(name for name in names if not name.startswith(".") and name not in OWN_NAMES)
        if others and "_store" not in names:  # what else there is, a run of ours began
            shown = ", ".join(others[:5])
            raise OutputMismatchError(
                f"{output} is not empty and holds no token dataset ({shown}): name another folder"
            )
    if standing and manifest is not None and manifest.spec_id != contract.spec.spec_id and not config.run.restart:
        raise _mismatch(output, contract, manifest.contract, _OTHER)
    spec_id = contract.spec.spec_id
    ours = standing.get(spec_id) or (
        TokenStore.of(output, spec_id).contract_of_fragments() if "_store" in names else None
    )
    if ours is not None:
        if ours.numerics != contract.numerics and config.run.numerics != "mixed":
            raise _mismatch(output, contract, ours, "allow it with --set run.numerics=mixed")
        return ours
    if not standing or config.run.restart:
        return contract
    raise _mismatch(output, contract, next(iter(standing.values())), _OTHER)


def _mismatch(output: Folder, ours: Contract, theirs: Contract, next_step: str) -> OutputMismatchError:
    fields = "; ".join(ours.differences(theirs)[:5])
    return OutputMismatchError(f"{output} holds a dataset of another contract: {fields}. Next: {next_step}")
