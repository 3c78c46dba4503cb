"""The whole job: inputs and a checkpoint in, a published token dataset out.

Knows no Ray: who runs the stages is handed in (execution.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import IncompleteError, NoClipLeftError, OutputMismatchError
from pipeline.execution import Executor, JobRecord, TokenizeProgress, TokenizeStages
from pipeline.export.build import Fragment
from pipeline.export.dataset import ExportSource, export_dataset, remove_outdated
from pipeline.manifest import Manifest, publish_manifest, read_manifest
from pipeline.observer import JobObserver
from pipeline.plan import Plan, Unit, make_plan
from pipeline.read_units import UnitReader
from pipeline.request import Job, TokenizeRequest, prepare
from pipeline.tokenizer_actor import TokenizerSettings
from pipeline.write_fragments import FragmentWriter

RUN_BYTES = 128 << 20
"""Motion that one task carries at most, beyond its first unit."""

STAT_THREADS = 16


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
    job = prepare(request, executor)
    plan = make_plan(job.roots, job.contract.corpus)
    committed = job.store.list_fragments()
    missing = [unit for unit in plan.units if (unit.key, unit.stamp) not in committed]
    num_skipped = sum(root.skipped for root in job.roots)
    observer.on_plan(plan, len(plan.units) - len(missing), num_skipped)
    record.notes.update(spec_id=job.contract.spec.spec_id, plan=plan.digest, units=len(plan.units))
    record.notes.update(skipped_files=num_skipped, input_bytes=plan.num_bytes)
    record.lap("plan")

    standing = read_manifest(job.output)
    if standing and not missing and _is_current(standing, job, plan):
        record.already_complete = True
        return standing
    observer.on_stage("start")
    executor.start()
    record.lap("start")
    if job.store.read_contract() is None:
        job.store.publish_contract(job.contract)
    job.store.publish_plan(plan)
    if missing:
        _tokenize(job, missing, executor, TokenizeProgress(observer, record))
        record.lap("tokenize")

    observer.on_stage("export")
    fragments = tuple(Fragment(0, unit.key, unit.stamp) for unit in plan.units)
    source = ExportSource((job.store,), fragments, job.contract)
    try:
        manifest = export_dataset(source, job.output, job.export, job.listed, executor.build, observer)
    except NoClipLeftError:
        if standing is None:
            job.store.forget_contract()  # nothing stands here: the next try may set other things
        raise
    job.store.publish_version(manifest.version, plan)
    publish_manifest(job.output, manifest)
    remove_outdated(job.output, manifest)
    record.lap("export")
    return manifest


def _tokenize(job: Job, missing: Sequence[Unit], executor: Executor, progress: TokenizeProgress) -> None:
    """Commit a fragment of every missing unit.

    Raises:
        IncompleteError: the stages ended, but units are missing still.
    """
    num_actors = job.config.run.workers or int(executor.num_gpus) or 1
    runs = group_units(missing, num_actors)
    for account in executor.tokenize(runs, _stages(job, executor, min(num_actors, len(runs))), progress):
        progress.committed(account)
    committed = job.store.list_fragments()
    lost = [unit for unit in missing if (unit.key, unit.stamp) not in committed]
    if lost:
        names = ", ".join(unit.parts[0].path for unit in lost[:5])
        raise IncompleteError(f"{len(lost)} units have no fragment ({names}, ..): run the same command again")


def _stages(job: Job, executor: Executor, num_actors: int) -> TokenizeStages:
    cores = min(int(executor.num_cpus), os.cpu_count() or 1)
    run = job.config.run
    settings = TokenizerSettings(
        contract=job.contract,
        store=job.store,
        num_threads=run.threads or max(1, cores // num_actors),
        mixed_numerics=run.numerics == "mixed",
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


def _is_current(manifest: Manifest, job: Job, plan: Plan) -> bool:
    """Return whether a published dataset is what this job would publish, and all its files stand in their size."""
    if (manifest.spec_id, manifest.export_id) != (job.contract.spec.spec_id, job.export.export_id):
        return False
    try:
        published = job.store.plan_of_version(manifest.version)
    except OutputMismatchError:
        return False
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        standing = list(pool.map(lambda file: job.output.stat(file.path), manifest.all_files))
    sizes = [file.bytes for file in manifest.all_files]
    return published.digest == plan.digest and [file and file.num_bytes for file in standing] == sizes
