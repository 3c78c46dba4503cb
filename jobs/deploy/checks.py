"""Whether a job and the cluster that is asked for it fit together, as far as a mistake costs a night.

Names, labels and quantities are left to the API server: `kubectl apply --dry-run=server`. Knows no manifest and starts
nothing. A finding names the field, what was found, and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jobs.deploy.clock import clock_findings, longest_s
from jobs.deploy.credentials import credential_findings
from jobs.deploy.grace import grace_findings
from jobs.deploy.job_command import request_findings
from pipeline.errors import ConfigError
from pipeline.settings.deploy_config import DeployConfig, GroupConfig, PodConfig, num_bytes
from pipeline.settings.job_config import JobConfig
from pipeline.settings.run_config import RunConfig

STORE_SHARE = 0.9
"""Of /dev/shm: what the object store may take."""

_PINNED = re.compile(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[A-Za-z0-9_][A-Za-z0-9._-]*$")


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
        request_findings, _image_findings, credential_findings, _gpu_findings, clock_findings, grace_findings,
    )  # fmt: skip
    findings = [finding for check in checks for finding in check(job, deploy)]
    if findings:
        raise ConfigError(
            "the job and its cluster do not fit together:\n" + "\n".join(f"- {line}" for line in findings)
        )
    return Checked(job, deploy, longest_s(job, deploy))


def groups(deploy: DeployConfig) -> dict[str, GroupConfig]:
    """Return the groups of worker pods that an overlay has, by name, in the order of the manifest."""
    with_gpus: dict[str, GroupConfig] = {} if deploy.overlay == "cpu" else {"tokenizers": deploy.tokenizers}
    return {"readers": deploy.readers} | with_gpus


def store_bytes(pod: PodConfig) -> int:
    """Return the size of a pod's object store, bytes."""
    return int(num_bytes(pod.shm) * STORE_SHARE)


def _image_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    if not _PINNED.search(deploy.image):
        yield f"deploy.image: {deploy.image} names no version; add a tag other than latest, or better @sha256:.."


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
