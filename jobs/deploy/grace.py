"""How long the pods of a job need to end: what their grace time has to hold.

Knows no manifest. A pod that ends runs its hook, gets SIGTERM when that is through, and SIGKILL when its time is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from jobs.session.signals import END_LIMIT_S
from pipeline.settings.deploy_config import DeployConfig
from pipeline.settings.job_config import JobConfig

STOP_MARGIN_S = 5.0
HOOK_S = 10.0
"""Until the head's hook has told the job to stop: Python and Ray's client start beside all that runs."""
RAY_END_S = 5.0
"""Until Ray's own processes have ended, once they are told."""


def drain_s(job: JobConfig) -> float:
    """Return how long a stopped job may take to its end, seconds."""
    return job.run.grace_s + END_LIMIT_S + STOP_MARGIN_S


def node_drain_s(deploy: DeployConfig) -> int:
    """Return how long Ray may keep a node that got SIGTERM, seconds: a worker stands while the head's job drains."""
    return max(0, deploy.grace_s - int(RAY_END_S))


def grace_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    """Yield whether a pod would be killed while its job still stops."""
    needed_s = HOOK_S + drain_s(job) + RAY_END_S
    if deploy.grace_s < needed_s:
        yield (
            f"deploy.grace_s: {deploy.grace_s}, but {HOOK_S:g} s pass until the head's hook has stopped the job, which"
            f" drains for run.grace_s ({job.run.grace_s:g} s) and may need {END_LIMIT_S + STOP_MARGIN_S:g} s more to"
            f" end, and Ray {RAY_END_S:g} s; say at least {math.ceil(needed_s)}"
        )
