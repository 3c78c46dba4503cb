"""The whole job: inputs and a checkpoint in, a published token dataset out.

Knows no Ray: who runs the stages is handed in (graph.py names both ways).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.blocks import UnitAccount
from pipeline.codec import Codec, open_codec
from pipeline.config import Contract, ExportSpec, Numerics, corpus_spec, digest_of, export_spec
from pipeline.errors import ConfigError, IncompleteError, OutputMismatchError
from pipeline.export.build import Fragment
from pipeline.export.dataset import BuildShards, ExportSource, export_dataset
from pipeline.export.splits import listed_splits
from pipeline.job_config import JobConfig
from pipeline.manifest import Manifest, publish_manifest, read_manifest
from pipeline.observer import JobObserver
from pipeline.plan import Plan, Unit, make_plan
from pipeline.read_units import ClipFilter, UnitReader
from pipeline.sources.registry import SUFFIXES
from pipeline.storage import Folder, InputRoot, open_inputs, read_text
from pipeline.token_store import TokenStore
from pipeline.tokenizer_actor import TokenizerSettings
from pipeline.write_fragments import FragmentWriter

RUN_BYTES = 128 << 20
"""Motion that one task carries at most, beyond its first unit."""

DEFAULT_BATCH_CPU, DEFAULT_BATCH_GPU = 32, 1024


@dataclass(frozen=True)
class TokenizeStages:
    """The three stages of a job and what they run on; built by the driver."""

    reader: UnitReader
    codec: bytes
    tokenizer: TokenizerSettings
    writer: FragmentWriter
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float


@dataclass
class JobRecord:
    """What happened, for run.json; grows while the job runs."""

    seconds: dict[str, float] = field(default_factory=dict)
    stage_seconds: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)
    already_complete: bool = False
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, name: str, ended_s_ago: float = 0.0) -> None:
        """Book the time since the last lap under a name."""
        now = time.perf_counter() - ended_s_ago
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def book(self, account: UnitAccount) -> None:
        """Add the account of a run of units."""
        self.counts.update(
            units=account.num_units, clips=account.num_clips, windows=account.num_windows, frames=account.num_frames
        )
        self.drops.update(account.drops)
        self.stage_seconds.update(account.seconds)


class TokenizeProgress:
    """Hears from the tokenizers while they work; built by the driver for one job."""

    def __init__(self, observer: JobObserver, record: JobRecord) -> None:
        """Args: observer: who watches; record: where the time is booked."""
        self._observer, self._record = observer, record
        self._is_ready = False
        observer.on_stage("workers")

    def ready(self, age_s: float) -> None:
        """The first tokenizer stood ready so many seconds ago."""
        if not self._is_ready:
            self._is_ready = True
            self._record.lap("workers", age_s)
            self._observer.on_stage("tokenize")

    def begun(self, num_windows: int, num_bytes: int) -> None:
        """So many windows, read from so many bytes of input, are taken up."""
        self._observer.on_begun(num_windows, num_bytes)

    def encoded(self, num_windows: int) -> None:
        """So many more windows are encoded."""
        self._observer.on_windows(num_windows)


RunStages = Callable[[Sequence[Sequence[Unit]], TokenizeStages, TokenizeProgress], Iterator[UnitAccount]]


@dataclass(frozen=True)
class Executor:
    """Who runs the stages: this process, or Ray with so many CPUs and GPUs."""

    name: str
    tokenize: RunStages
    build: BuildShards
    numerics: Callable[[], Numerics]
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True)
class TokenizeRequest:
    """What a person asked for."""

    inputs: tuple[str, ...]
    output: str
    checkpoint: str
    preset: str | None
    model_config: str | None
    config: JobConfig


@dataclass(frozen=True)
class _Job:
    output: Folder
    roots: Sequence[InputRoot]
    codec: Codec
    contract: Contract
    export: ExportSpec
    clips: ClipFilter
    listed: Mapping[str, str]

    @property
    def store(self) -> TokenStore:
        return TokenStore.of(self.output, self.contract.spec.spec_id)


def tokenize_dataset(
    request: TokenizeRequest, executor: Executor, observer: JobObserver, record: JobRecord
) -> Manifest:
    """Run the whole job and return the published manifest.

    Args:
        record: filled as the job goes on, so that it tells something after a failure too.

    Raises:
        RequestError: the job cannot start; nothing was written.
        NoClipLeftError: every clip was dropped.
        IncompleteError: units are missing; the same command continues.
    """
    observer.on_stage("plan")
    job = _prepare(request, executor)
    plan = make_plan(job.roots, job.contract.corpus)
    committed = job.store.list_fragments()
    missing = [unit for unit in plan.units if (unit.key, unit.stamp) not in committed]
    observer.on_plan(plan, len(plan.units) - len(missing))
    record.notes.update(spec_id=job.contract.spec.spec_id, plan=plan.digest, units=len(plan.units))
    record.notes.update(skipped_files=sum(root.skipped for root in job.roots), input_bytes=plan.num_bytes)
    record.lap("plan")

    standing = read_manifest(job.output)
    if standing and not missing and _is_current(standing, job, plan):
        record.already_complete = True
        return standing
    if missing:
        _tokenize(job, plan, missing, (request.config, executor, observer, record))
        record.lap("tokenize")

    observer.on_stage("export")
    fragments = tuple(Fragment(0, unit.key, unit.stamp) for unit in plan.units)
    source = ExportSource((job.store,), fragments, job.contract)
    manifest = export_dataset(source, job.output, job.export, job.listed, executor.build, observer)
    job.store.publish_version(manifest.version, plan)
    publish_manifest(job.output, manifest)
    record.lap("export")
    return manifest


def _prepare(request: TokenizeRequest, executor: Executor) -> _Job:
    """Read and check everything that a bad request could get wrong, before any work."""
    config, options = request.config, request.config.run.storage_options
    suffixes = tuple(SUFFIXES) if config.input.format == "auto" else ()
    roots = open_inputs(request.inputs, suffixes, options)
    codec = open_codec(request.checkpoint, preset=request.preset, model_config=request.model_config, options=options)
    _check_columns(config, codec)
    clips = _clip_filter(config, options)
    clips_digest = digest_of([sorted(clips.include or ()), clips.include is None, sorted(clips.exclude)])
    has_clips = clips.include is not None or clips.exclude
    batch_size = config.batch_size or (DEFAULT_BATCH_GPU if executor.num_gpus else DEFAULT_BATCH_CPU)
    corpus = corpus_spec(config, codec.spec, batch_size=batch_size, clips_digest=clips_digest if has_clips else "")
    contract = Contract(codec=codec.spec, corpus=corpus, numerics=executor.numerics())
    listed, split_digest = listed_splits(config.export.splits, options)
    output = Folder(request.output, options)
    contract = _check_output(output, contract, config)
    return _Job(output, roots, codec, contract, export_spec(config, split_digest), clips, listed)


def _tokenize(
    job: _Job, plan: Plan, missing: Sequence[Unit], around: tuple[JobConfig, Executor, JobObserver, JobRecord]
) -> None:
    config, executor, observer, record = around
    if job.store.read_contract() is None:
        job.store.publish_contract(job.contract)
    job.store.publish_plan(plan)
    num_actors = config.run.workers or int(executor.num_gpus) or 1
    runs = group_units(missing, num_actors)
    stages = _stages(job, config, executor, min(num_actors, len(runs)))
    for account in executor.tokenize(runs, stages, TokenizeProgress(observer, record)):
        record.book(account)
        observer.on_account(account)
    committed = job.store.list_fragments()
    lost = [unit for unit in missing if (unit.key, unit.stamp) not in committed]
    if lost:
        names = ", ".join(unit.parts[0].path for unit in lost[:5])
        raise IncompleteError(
            f"{len(lost)} of {len(plan.units)} units have no fragment ({names}, ..): run the same command again"
        )


def _stages(job: _Job, config: JobConfig, executor: Executor, num_actors: int) -> TokenizeStages:
    cores = min(int(executor.num_cpus), os.cpu_count() or 1)
    settings = TokenizerSettings(
        contract=job.contract,
        store=job.store,
        num_threads=config.run.threads or max(1, cores // num_actors),
        mixed_numerics=config.run.numerics == "mixed",
    )
    on_gpu = executor.num_gpus > 0
    return TokenizeStages(
        reader=UnitReader({root.name: root.folder for root in job.roots}, job.contract.spec, job.clips),
        codec=job.codec.data,
        tokenizer=settings,
        writer=FragmentWriter(job.store, job.contract),
        num_actors=num_actors,
        cpus_per_actor=0.0 if on_gpu else cpu_share(executor.num_cpus, num_actors),
        gpus_per_actor=1.0 if on_gpu else 0.0,
    )


def cpu_share(num_cpus: float, num_actors: int) -> float:
    """Return the CPUs an actor reserves, so that reading and writing always keep one (or half of one)."""
    left = max(num_cpus - 1.0, num_cpus / 2)
    return max(0.01, int(100 * min(1.0, left / num_actors)) / 100)


def group_units(units: Sequence[Unit], num_actors: int) -> list[list[Unit]]:
    """Return runs of units: what one task carries.

    A run ends at `RUN_BYTES`, or earlier so that every actor gets several.
    """
    total = sum(unit.num_bytes for unit in units)
    target = min(RUN_BYTES, total // (4 * num_actors))
    runs: list[list[Unit]] = []
    num_bytes = 0
    for unit in units:
        if not runs or num_bytes + unit.num_bytes > target:
            runs.append([])
            num_bytes = 0
        runs[-1].append(unit)
        num_bytes += unit.num_bytes
    return runs


def _is_current(manifest: Manifest, job: _Job, plan: Plan) -> bool:
    if (manifest.spec_id, manifest.export_id) != (job.contract.spec.spec_id, job.export.export_id):
        return False
    try:
        published = job.store.plan_of_version(manifest.version)
    except OutputMismatchError:
        return False
    return published.digest == plan.digest


def _check_output(output: Folder, contract: Contract, config: JobConfig) -> Contract:
    """Return the contract to work under: the standing one, where the output continues under it.

    Raises:
        OutputMismatchError: the output holds another dataset, or no dataset at all but other files.
    """
    names = output.list_names("")
    stores = output.list_names("_store")
    if names and not stores and read_manifest(output) is None and set(names) - {"runs", "report"}:
        raise OutputMismatchError(
            f"{output} is not empty and holds no token dataset ({', '.join(sorted(names)[:5])}): name another folder"
        )
    if names and not stores and read_manifest(output) is not None:
        raise OutputMismatchError(f"{output} holds an exported dataset without a token store: name another folder")
    standing = [TokenStore.of(output, name).read_contract() for name in stores]
    others = [other for other in standing if other is not None]
    for other in others:
        if other.spec == contract.spec:
            if other.numerics != contract.numerics and config.run.numerics != "mixed":
                raise OutputMismatchError(_mismatch(output, contract, other, "run.numerics=mixed allows it"))
            return other
    if others:
        raise OutputMismatchError(_mismatch(output, contract, others[0], "name another folder"))
    return contract


def _mismatch(output: Folder, ours: Contract, theirs: Contract, next_step: str) -> str:
    fields = "; ".join(ours.differences(theirs)[:5])
    return f"{output} holds a dataset of another contract: {fields}. Next: {next_step}"


def _check_columns(config: JobConfig, codec: Codec) -> None:
    corpus = corpus_spec(config, codec.spec, batch_size=1)
    if corpus.columns is not None and len(corpus.columns) != codec.spec.motion_dim:
        raise ConfigError(
            f"input.columns selects {len(corpus.columns)} columns, the checkpoint wants {codec.spec.motion_dim}"
        )


def _clip_filter(config: JobConfig, options: Mapping[str, Any]) -> ClipFilter:
    include, exclude = config.input.clips.include, config.input.clips.exclude
    return ClipFilter(
        include=_ids_of(include, options) if include is not None else None,
        exclude=_ids_of(exclude, options) if exclude is not None else frozenset(),
    )


def _ids_of(path: str, options: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(line.strip() for line in read_text(path, options).splitlines() if line.strip())
