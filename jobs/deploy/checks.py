"""Whether a job and the cluster that is asked for it fit together: numbers against numbers, before anything starts.

Knows no manifest and starts nothing. A finding names the field, what was found, and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobs.session import END_LIMIT_S
from pipeline.deploy_config import DeployConfig, GroupConfig, PodConfig, num_bytes
from pipeline.errors import ConfigError
from pipeline.job_config import JobConfig
from pipeline.run_config import RunConfig
from pipeline.stopping import seconds_of, time_left

MIB, GIB = 1 << 20, 1 << 30
TICKS = 400
"""So many ticks of a schedule are looked at: more than a year of nights."""
SHORTEST_RUN_S = 600.0
"""Starting a cluster takes minutes: a run that may last less does little else."""
STOP_MARGIN_S = 5.0

READS_PER_CPU = 2  # a read task reserves half a CPU
TASK_BYTES = 256 * MIB
TASK_BYTES_PER_ROW_BYTE = 2.5  # 546 MiB were measured with units of 128 MiB: docs/benchmarks.md
TOKENIZER_BYTES = 2 * GIB  # PyTorch with its libraries, pinned buffers, one unit cut to windows; a GPU's context
NODE_BYTES = 1 * GIB  # Ray's own processes
DRIVER_BYTES = 3 * GIB  # plan, index and gate; 0.6 KB a clip
ROWS_PER_TOKENIZER = 6  # two in work, and twice as many waiting
FRAME_BYTES = 424  # 106 numbers of motion; a codec of fewer makes more windows of a unit
WINDOW_BYTES = 1461  # a window in a fragment
STORE_SHARE = 0.9
"""Of /dev/shm: what the object store may take, and of the store: what units may fill."""

_PINNED = re.compile(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[A-Za-z0-9_][A-Za-z0-9._-]*$")
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(:\d{2})?")
_PLACE = re.compile(r"(?:[A-Za-z0-9_-]+=)?([A-Za-z0-9+.-]+)://.+", re.DOTALL)
_HIDDEN = re.compile(r"key|secret|token|password", re.IGNORECASE)


@dataclass(frozen=True)
class Checked:
    """A job that fits its cluster, and what was computed on the way."""

    job: JobConfig
    deploy: DeployConfig
    longest_s: float | None
    """Seconds from a start to the end of its drain, at most; None where nothing limits it."""


def check_deployment(job: JobConfig) -> Checked:
    """Return a job that fits its cluster.

    Raises:
        ConfigError: no section `deploy`, or fields that do not fit together; all of them are named.
    """
    if job.deploy is None:
        raise ConfigError("deploy: missing; say at least deploy.image, deploy.inputs, deploy.output, deploy.checkpoint")
    deploy = job.deploy
    checks: tuple[Callable[[JobConfig, DeployConfig], Iterator[str]], ...] = (
        _request_findings, _credential_findings, _gpu_findings, _memory_findings, _clock_findings, _grace_findings,
    )  # fmt: skip
    findings = [finding for check in checks for finding in check(job, deploy)]
    if findings:
        raise ConfigError(
            "the job and its cluster do not fit together:\n" + "\n".join(f"- {line}" for line in findings)
        )
    return Checked(job, deploy, _longest_s(job, deploy))


def drain_s(job: JobConfig) -> float:
    """Return how long a stopped job may take to its end, seconds."""
    return job.run.grace_s + END_LIMIT_S + STOP_MARGIN_S


def groups(deploy: DeployConfig) -> dict[str, GroupConfig]:
    """Return the groups of worker pods that an overlay has, by name, in the order of the manifest."""
    with_gpus: dict[str, GroupConfig] = {} if deploy.overlay == "cpu" else {"tokenizers": deploy.tokenizers}
    return {"readers": deploy.readers} | with_gpus


def store_bytes(pod: PodConfig) -> int:
    """Return the size of a pod's object store, bytes."""
    return int(num_bytes(pod.shm) * STORE_SHARE)


def _request_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    if job.run.local:
        yield "run.local: true, but a cluster runs Ray; leave it out"
    if not _PINNED.search(deploy.image):
        yield f"deploy.image: {deploy.image} names no version; add a tag other than latest, or better @sha256:.."
    places = {f"deploy.inputs[{n}]": place for n, place in enumerate(deploy.inputs)}
    places |= {"deploy.output": deploy.output}
    if deploy.checkpoint not in ("demo", "demo-arkit"):
        places |= {"deploy.checkpoint": deploy.checkpoint}
    lists = {"input.clips": job.input.clips, "export.clips": job.export.clips}
    for key, clips in lists.items():
        places |= {f"{key}.{name}": path for name, path in clips.model_dump().items() if path is not None}
    if job.export.splits.file is not None:
        places |= {"export.splits.file": job.export.splits.file}
    for key, place in places.items():
        found = _PLACE.fullmatch(place)
        if found is None or found[1] in ("file", "local"):
            yield f"{key}: {place} lies on one machine, which the pods do not see; name a place such as s3://bucket/.."


def _credential_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    if (deploy.secret is None) == (not deploy.identity):
        found = "both are given" if deploy.secret else "neither is given"
        yield (
            f"deploy.secret, deploy.identity: {found}; name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
            " or the annotations that give the service account a role"
        )
    hidden = sorted(key for key in job.run.storage_options if _HIDDEN.search(key))
    if hidden:
        yield (
            f"run.storage_options: {', '.join(hidden)} would stand readable in a ConfigMap; put credentials into the"
            " Secret that deploy.secret names"
        )


def _gpu_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    workers = job.run.workers
    if deploy.overlay == "cpu":
        num_cpus = deploy.readers.max * deploy.readers.cpus
        used = (workers or 1) * (job.run.threads or 1)
        if workers is None and deploy.readers.max > 1:
            yield (
                f"run.workers: missing, so that one tokenizer would work for {deploy.readers.max} pods without GPUs;"
                f" say how many, at most {num_cpus - 1}"
            )
        elif used > num_cpus - 1:
            yield (
                f"run.workers x run.threads: {used} CPUs of {num_cpus} that deploy.readers has; leave one to reading:"
                " lower them, or raise deploy.readers.max or deploy.readers.cpus"
            )
        return
    pods, each = deploy.tokenizers.max, deploy.tokenizers.gpus
    given = f"deploy.tokenizers gives {pods} x {each} = {pods * each} GPUs"
    share = job.run.gpus_per_worker
    if deploy.overlay == "autoscaling" and (workers is None or share is None):
        yield (
            "run.workers, run.gpus_per_worker: both are needed where GPUs come from zero, for a job cannot count what"
            f" is not there yet; for one tokenizer a GPU say run.workers: {pods * each}, run.gpus_per_worker: 1"
        )
    if (share or 1) > each:
        yield (
            f"run.gpus_per_worker: {share:g}, but a pod of deploy.tokenizers has {each} GPUs; say at most {each}, or"
            " raise deploy.tokenizers.gpus"
        )
        return
    most = pods * RunConfig(gpus_per_worker=share).workers_on(each)
    if workers is not None and workers > most:
        yield (
            f"run.workers: {workers}, but {given}, enough for {most}, and one without a GPU would be waited for; say"
            f" {most}, or raise deploy.tokenizers.max"
        )
    elif workers is not None and workers <= most - most // pods:
        needed = -(-workers // (most // pods))
        yield (
            f"run.workers: {workers}, but {given}, of which {pods - needed} pods would stand idle; say"
            f" deploy.tokenizers.max: {needed}, or more workers"
        )


def _memory_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    row = _row_bytes(job)
    num_gpus = 0 if deploy.overlay == "cpu" else deploy.tokenizers.max * deploy.tokenizers.gpus
    num_tokenizers = job.run.workers_on(num_gpus)
    pods = groups(deploy)
    for name, pod in pods.items():
        key = f"deploy.{name}"
        reads = READS_PER_CPU * pod.cpus
        hosts = name == "tokenizers" or deploy.overlay == "cpu"
        tokenizers = -(-num_tokenizers // pod.max) if hosts else 0
        needed = NODE_BYTES + int(reads * (TASK_BYTES + TASK_BYTES_PER_ROW_BYTE * row)) + tokenizers * TOKENIZER_BYTES
        if needed + num_bytes(pod.shm) > num_bytes(pod.memory):
            yield (
                f"{key}.memory: {pod.memory}, but {reads} tasks with rows of {_shown(row)} (units.bytes, run.row_bytes,"
                f" window) and {tokenizers} tokenizers take {_shown(needed)} beside shm ({pod.shm}); say at least"
                f" {_shown(needed + num_bytes(pod.shm))}, fewer cpus, or smaller rows"
            )
        if store_bytes(pod) * STORE_SHARE < reads * row:
            yield (
                f"{key}.shm: {pod.shm}, but {reads} read tasks put {_shown(reads * row)} there at once; say at least"
                f" {_shown(reads * row / STORE_SHARE**2)}, or fewer cpus"
            )
    in_flight = num_tokenizers * ROWS_PER_TOKENIZER * row
    store = sum(pod.max * store_bytes(pod) for pod in pods.values())
    if store * STORE_SHARE < in_flight:
        yield (
            f"deploy.readers.shm: the object stores of all pods hold {_shown(store)}, but {num_tokenizers} tokenizers"
            f" keep {ROWS_PER_TOKENIZER} rows each in flight, {_shown(in_flight)}; raise shm, or lower run.workers"
        )
    if num_bytes(deploy.head.shm) + NODE_BYTES + DRIVER_BYTES > num_bytes(deploy.head.memory):
        yield (
            f"deploy.head.memory: {deploy.head.memory}, but the job's own process and Ray's take"
            f" {_shown(NODE_BYTES + DRIVER_BYTES)} beside shm ({deploy.head.shm}); say at least"
            f" {_shown(NODE_BYTES + DRIVER_BYTES + num_bytes(deploy.head.shm))}"
        )


def _row_bytes(job: JobConfig) -> int:
    """Return the size of a row where it is largest: as motion, a unit at least, or as tokens of overlapping windows."""
    motion = max(job.units.bytes, job.run.row_bytes)
    window = job.window
    stride = window.stride or (50 if window.preset else 100)
    grids = 1 + (window.phases if window.phases is not None else int(window.preset is not None))
    return max(motion, motion // (FRAME_BYTES * stride) * grids * WINDOW_BYTES)


def _clock_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    run = job.run
    if run.deadline is not None and deploy.retries:
        yield (
            f"deploy.retries: {deploy.retries}, but a run that run.deadline ({run.deadline}) stops would be tried again"
            " until that time of the next day; say 0"
        )
    if deploy.start == "once":
        return
    if run.deadline is not None and not _TIME_OF_DAY.fullmatch(run.deadline.strip()):
        yield f"run.deadline: {run.deadline} comes once, but deploy.schedule starts again; write a time of day: 06:00"
        return
    try:
        spans = list(_spans(job, deploy))
    except CronSimError as error:
        yield f"deploy.schedule: {deploy.schedule!r} is no schedule ({error}); write five fields such as 0 22 * * *"
        return
    except ZoneInfoNotFoundError:
        yield f"deploy.time_zone: {deploy.time_zone!r} is unknown; write one such as Europe/Berlin"
        return
    limits = f"run.deadline ({run.deadline})" if run.deadline else f"run.max_runtime ({run.max_runtime})"
    for start, following, lasts_s in spans:
        if lasts_s is None:
            if deploy.start == "nightly" and run.when_active != "leave":
                yield (
                    "run.deadline: missing, and run.max_runtime too; a run could still be active at the next tick of"
                    " deploy.schedule, and two clusters would stand; set one of them, or run.when_active: leave"
                )
            return
        if lasts_s - drain_s(job) < SHORTEST_RUN_S:
            yield (
                f"{limits}: leaves {(lasts_s - drain_s(job)) / 60:.0f} min to the run that deploy.schedule"
                f" ({deploy.schedule}) starts at {start:%a %H:%M}; leave it {SHORTEST_RUN_S / 60:.0f} min at least"
            )
            return
        if lasts_s >= (following - start).total_seconds():
            yield (
                f"{limits}: a run that starts at {start:%a %H:%M} may end {lasts_s / 3600:.1f} h later, after the"
                f" next tick of deploy.schedule ({deploy.schedule}) at {following:%a %H:%M}; stop earlier, or"
                " start less often"
            )
            return


def _grace_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    if deploy.grace_s < drain_s(job):
        yield (
            f"deploy.grace_s: {deploy.grace_s}, but a stopped job drains for run.grace_s ({job.run.grace_s:g} s) and"
            f" may need {END_LIMIT_S:g} s more to end; say at least {drain_s(job):.0f}"
        )


def _spans(job: JobConfig, deploy: DeployConfig) -> Iterator[tuple[datetime, datetime, float | None]]:
    """Yield start, next start, and how long the run may last, seconds, of the ticks to come.

    Raises:
        CronSimError: the schedule is none.
        ZoneInfoNotFoundError: the time zone is unknown.
    """
    now = datetime.now(ZoneInfo(deploy.time_zone))
    for start, following in pairwise(islice(CronSim(deploy.schedule, now), TICKS)):
        yield start, following, _lasts_s(job, start)


def _lasts_s(job: JobConfig, start: datetime) -> float | None:
    """Return the seconds from a start to the end of its drain, None where nothing limits it."""
    left_s = time_left(job.run.deadline, job.run.max_runtime, start)
    return None if left_s is None else left_s + drain_s(job)


def _longest_s(job: JobConfig, deploy: DeployConfig) -> float | None:
    if deploy.start == "once":
        return None if job.run.max_runtime is None else seconds_of(job.run.max_runtime) + drain_s(job)
    return max((lasts_s for *_, lasts_s in _spans(job, deploy) if lasts_s is not None), default=None)


def _shown(size: float) -> str:
    """Write bytes as Kubernetes reads them, rounded up."""
    return f"{-(-int(size) // GIB)}Gi" if size >= 8 * GIB else f"{-(-int(size) // MIB)}Mi"
