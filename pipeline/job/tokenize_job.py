"""The whole job: inputs and a checkpoint in, a published token dataset out.

Knows no Ray: who runs the stages is handed in (executors/executor.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pipeline.contract.columns import motion_bytes_a_window
from pipeline.dataset.manifest import Manifest, OtherFile, is_published, read_manifest, read_staged, version_path
from pipeline.dataset.paths import STAGED_PATH
from pipeline.dataset.token_store import damaged_units, missing_units
from pipeline.errors import DamagedFragmentError, IncompleteError, NoClipLeftError, OutputMismatchError
from pipeline.executors.executor import WRITER_CPUS, Executor, TokenizeProgress, TokenizeStages, num_writers
from pipeline.export.build import Fragment
from pipeline.export.export_dataset import ExportSource, export_dataset
from pipeline.export.publish import outdated_files, publish_dataset, stage_dataset
from pipeline.export.reuse import StandingShards
from pipeline.job.gate import GateResult, is_judged, judge
from pipeline.job.request import Job, look_again, prepare
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.units import Unit, group_units
from pipeline.run.drop_limit import TooManyDroppedError, check_dropped
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Ownership, Ticker
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.settings.job_config import TokenizeRequest
from pipeline.sources.clip_filter import ClipFilter
from pipeline.stages.isolation import find_crashing
from pipeline.stages.read import UnitReader
from pipeline.stages.tokenize_stage import TokenizerSettings
from pipeline.stages.write import FragmentWriter
from pipeline.storage import Folder

STAT_THREADS = 16

RUN_S = 10.0
"""What a row is to compute on CPUs: long against what passing it costs, short against what a stop may lose."""
CORE_SPEED = 13 * 6 * 512**2
"""Windows a second of one core, times depth and squared hidden size: measured at depth 6 and hidden size 512."""


@dataclass(frozen=True)
class JobControl:
    """What a command holds over its job: its name, and how it is stopped."""

    run_id: str
    stop: StopSwitch
    ticker: Ticker | None = None
    """Makes its ownership beat; one in a thread where it is not given."""


@dataclass(frozen=True)
class Tokenized:
    """What a job left: a dataset, published or staged, and what the gate found."""

    manifest: Manifest
    gate: GateResult | None
    """None where the dataset stood already."""


def tokenize_dataset(
    request: TokenizeRequest,
    executor: Executor,
    observer: JobObserver,
    record: JobRecord,
    control: JobControl,
    again: Callable[[Plan], Sequence[Unit]] | None = None,
) -> Tokenized:
    """Run the whole job and return what it left; where the gate failed and is enforced, that is staged.

    Args:
        record: filled as the job goes on, so that it tells something after a failure too.
        again: returns units that are computed anew although their fragments stand.

    Raises:
        RequestError: the job cannot start; nothing was written.
        NoClipLeftError: every clip was dropped.
        TooManyDroppedError: more clips were dropped than `run.max_dropped` allows.
        IncompleteError: units are missing, or another run is active; the same command continues.
        Stopped: a signal came.
    """
    found = _look(request, executor, observer, record)
    standing = _current(found, record) if again is None else None
    if standing is not None:
        return Tokenized(standing, None)
    ownership = Ownership(
        found.job.output,
        control.run_id,
        request.config.run.when_active,
        on_wait=observer.on_wait,
        on_lost=control.stop.ask,
        ticker=control.ticker,
    )
    with ownership.held() as owner:
        if owner.has_waited or _standing_versions(owner.output) != found.versions:
            found = _look(request, executor, observer, record)  # another run may have done the work, or other work
        else:
            found = replace(found, job=look_again(found.job))
        job, plan = found.job, found.plan
        if again is not None:
            owner.delete((job.store.fragment_path(unit.key, unit.stamp) for unit in again(plan)), job.store.folder)
        found = replace(found, missing=missing_units(job.store, plan.units))
        standing = _current(found, record)
        if standing is not None:
            return Tokenized(standing, None)
        observer.on_stage("start")
        executor.start()
        record.lap("start")
        if job.store.read_contract() is None:
            job.store.publish_contract(owner, job.contract)
        job.store.publish_plan(owner, plan)
        work = _Work(owner, job, plan, executor, observer, record, control.stop)
        try:
            return work.do(found.missing)
        except DamagedFragmentError:
            lost = damaged_units(job.store, plan.units)
            paths = [job.store.fragment_path(unit.key, unit.stamp) for unit in lost]
            if paths:  # none where it was damaged on the way only
                observer.on_damaged(paths)
            owner.delete(paths, job.store.folder)
            return work.do(lost)


@dataclass(frozen=True)
class _Found:
    """What a run finds before it begins."""

    job: Job
    plan: Plan
    missing: Sequence[Unit]
    """Units without a fragment."""
    versions: tuple[str, str]
    """Of the dataset that was published and the one that was staged when it began to look; empty where there was none.
    """


def _look(request: TokenizeRequest, executor: Executor, observer: JobObserver, record: JobRecord) -> _Found:
    """Read what stands, what the input holds, and what is left to do."""
    observer.on_stage("plan")
    versions = _standing_versions(Folder(request.output, request.config.run.storage_options))
    job = prepare(request, executor, observer)
    plan = make_plan(job.roots, job.contract.corpus)
    missing = missing_units(job.store, plan.units)
    num_skipped = sum(root.skipped for root in job.roots)
    observer.on_plan(plan, len(plan.units) - len(missing), num_skipped)
    record.notes.update(spec_id=job.contract.spec.spec_id, plan=plan.digest, units=len(plan.units))
    record.notes.update(skipped_files=num_skipped, input_bytes=plan.num_bytes)
    record.lap("plan")
    return _Found(job, plan, missing, versions)


def _standing_versions(output: Folder) -> tuple[str, str]:
    published, staged = read_manifest(output), read_staged(output)
    return published.version if published else "", staged.version if staged else ""


@dataclass(frozen=True)
class _Work:
    """What the owner of an output does there; built and used up by `tokenize_dataset`."""

    owner: Ownership
    job: Job
    plan: Plan
    executor: Executor
    observer: JobObserver
    record: JobRecord
    stop: StopSwitch

    def do(self, missing: Sequence[Unit]) -> Tokenized:
        """Tokenize units and publish the dataset of all.

        Raises:
            DamagedFragmentError: a fragment that stood already cannot be used.
        """
        if missing:
            with self.stop.graceful():
                _tokenize(self.job, missing, self.executor, TokenizeProgress(self.observer, self.record, self.stop))
            self.record.lap("tokenize")
        if self.job.config.gate != "off":
            self.observer.on_stage("gate")
        gate = judge(self.job, self.plan)
        self.record.notes["gate"] = gate.described
        self.record.lap("gate")
        manifest = _publish(self.owner, self.job, self.plan, self.executor, self.observer, gate)
        self.record.notes["version"] = manifest.version
        self.record.lap("export")
        return Tokenized(manifest, gate)


def _publish(
    owner: Ownership, job: Job, plan: Plan, executor: Executor, observer: JobObserver, gate: GateResult
) -> Manifest:
    """Export the fragments of a plan, and make the dataset the current one; staged, only where there is none."""
    observer.on_stage("export")
    fragments = tuple(Fragment(0, unit.key, unit.stamp) for unit in plan.units)
    source = ExportSource(
        (job.store,),
        fragments,
        job.contract,
        job.config.run.max_dropped,
        StandingShards.of_published(job.output, job.store),
        gate.status,
        gate.record,
        job.chosen,
        ClipFilter(None if job.clips.include is None else job.clips.include - job.clips.exclude),
    )
    try:
        exported = export_dataset(source, owner, job.export, job.listed, executor.build, observer)
    except (NoClipLeftError, TooManyDroppedError):
        if read_manifest(job.output) is None:
            job.store.forget_contract(owner)  # nothing stands here: the next try may set other things
        raise
    if gate.status == "staged" and is_published(job.output):
        stage_dataset(owner, exported, job.store, plan)
    else:
        publish_dataset(owner, exported, job.store, plan)
    return exported.manifest


def _tokenize(job: Job, missing: Sequence[Unit], executor: Executor, progress: TokenizeProgress) -> None:
    """Commit a fragment of every missing unit.

    Raises:
        IncompleteError: the stages ended, but units are missing still.
    """
    runs, stages = runs_and_stages(job, missing, executor)
    for account in executor.tokenize(runs, stages, progress):
        progress.committed(account)
    lost = missing_units(job.store, missing)
    if lost and not progress.is_stopping:
        crashing = {unit.key: find_crashing(unit, stages.reader, executor.survives) for unit in lost}
        reader = replace(stages.reader, crashing={key: parts for key, parts in crashing.items() if parts})
        for account in executor.tokenize([[unit] for unit in lost], replace(stages, reader=reader), progress):
            progress.committed(account)
        lost = missing_units(job.store, lost)
    if lost or progress.was_signalled:
        progress.check(is_drained=True)
    if lost:
        names = ", ".join(unit.parts[0].path for unit in lost[:5])
        raise IncompleteError(f"{len(lost)} units have no fragment ({names}, ..): run the same command again")


def runs_and_stages(job: Job, missing: Sequence[Unit], executor: Executor) -> tuple[list[list[Unit]], TokenizeStages]:
    """Return what one task each carries of some units, and the stages that they go through."""
    num_actors = job.config.run.workers_on(executor.num_gpus)
    runs = runs_of(job, missing, executor, num_actors)
    return runs, stages_of(job, executor, max(1, min(num_actors, len(runs))))


def runs_of(job: Job, units: Sequence[Unit], executor: Executor, num_actors: int) -> list[list[Unit]]:
    """Return the units of a job in runs: what one row of the graph carries, about `RUN_S` of computing on CPUs.

    A GPU takes less time over as much as a row may hold in memory.
    """
    row_bytes = job.config.run.row_bytes
    if executor.num_gpus:
        return group_units(units, num_actors, row_bytes)
    codec = job.contract.codec
    windows_per_s = CORE_SPEED * _threads_of(job, executor, num_actors) / (codec.depth * codec.hidden_dim**2)
    bytes_per_s = windows_per_s * motion_bytes_a_window(job.contract.spec)
    return group_units(units, num_actors, min(row_bytes, int(RUN_S * bytes_per_s)))


def stages_of(job: Job, executor: Executor, num_actors: int) -> TokenizeStages:
    """Return the stages of a job as so many actors run them."""
    run = job.config.run
    settings = TokenizerSettings(
        contract=job.contract,
        store=job.store,
        num_threads=_threads_of(job, executor, num_actors),
        mixed_numerics=run.numerics == "mixed",
    )
    on_gpu = executor.num_gpus > 0
    folders = {root.name: root.folder for root in job.roots}
    return TokenizeStages(
        reader=UnitReader(folders, job.contract.spec, job.clips, job.codec.mean, job.codec.std),
        codec=job.codec.data,
        tokenizer=settings,
        writer=FragmentWriter(job.store, job.contract),
        num_actors=num_actors,
        cpus_per_actor=0.0 if on_gpu else cpu_share(executor.num_cpus, num_actors),
        gpus_per_actor=(run.gpus_per_worker or 1.0) if on_gpu else 0.0,
        min_actors=min(run.min_workers or num_actors, num_actors),
        wait_for_resources_s=run.wait_for_resources_s,
    )


def _threads_of(job: Job, executor: Executor, num_actors: int) -> int:
    """Return the threads that each tokenizer computes with."""
    cores = min(executor.cores_a_machine, int(executor.num_cpus) // num_actors)
    return job.config.run.threads or max(1, cores)


def cpu_share(num_cpus: float, num_actors: int) -> float:
    """Return the CPUs an actor reserves, so that reading and writing always keep one (or half of one)."""
    left = max(num_cpus - 1.0, num_cpus / 2) - WRITER_CPUS * num_writers(num_actors)
    return max(0.01, int(100 * min(1.0, left / num_actors)) / 100)


def _current(found: _Found, record: JobRecord) -> Manifest | None:
    """Return the published dataset if it is what this job would publish, and all its files stand in their size."""
    job, plan = found.job, found.plan
    manifest = None if found.missing else read_manifest(job.output)
    if manifest is None or not is_judged(manifest, job.config) or job.output.exists(STAGED_PATH):
        return None
    if (manifest.spec_id, manifest.export_id) != (job.contract.spec.spec_id, job.export.export_id):
        return None
    try:
        published = job.store.plan_of_version(manifest.version)
    except OutputMismatchError:
        return None
    is_whole = published.digest == plan.digest and _is_whole(job, manifest)
    record.already_complete = is_whole and not outdated_files(job.output, manifest)
    if not record.already_complete:
        return None
    check_dropped(manifest.counts, manifest.drops, job.config.run.max_dropped)
    return manifest


def _is_whole(job: Job, manifest: Manifest) -> bool:
    """Return whether all files stand: those named by content in their size, the others with their very bytes."""
    copies = {version_path(manifest.version, file.path): file.bytes for file in manifest.files}
    shards = {shard.path: shard.bytes for shards in manifest.shards.values() for shard in shards}
    named_by_content = {**shards, **copies}
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        standing = pool.map(job.output.stat, named_by_content)
        if [file and file.num_bytes for file in standing] != list(named_by_content.values()):
            return False
        return all(pool.map(lambda file: _holds(job.output, file), manifest.files))


def _holds(output: Folder, file: OtherFile) -> bool:
    try:
        return hashlib.sha256(output.read(file.path)).hexdigest() == file.sha256
    except FileNotFoundError:
        return False
