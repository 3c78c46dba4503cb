"""Fills the Kustomize tree beside this file from one configuration: a folder that `kubectl apply -k` takes.

Knows where in the manifests a value stands; whether values fit together stands in checks.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jobs.deploy.checks import Checked, groups, store_bytes
from jobs.deploy.grace import drain_s, node_drain_s
from jobs.deploy.job_command import NAME, job_command
from jobs.session.ray_environment import RAY_ENVIRONMENT
from pipeline.errors import ConfigError, OutputError
from pipeline.settings.deploy_config import DeployConfig, GpuGroupConfig, GroupConfig, PodConfig
from pipeline.settings.job_config import JobConfig

TREE = Path(__file__).with_name("kubernetes")
GPU = "nvidia.com/gpu"
JOB_NAME = "JOB_NAME"
"""Variable of the CronJob's pod, which Kubernetes fills into its arguments: equal for all pods of a night."""
PREPARING_S = 3600
"""How long a cluster may take to stand, images pulled; beside the time that the job itself has."""
COMPONENTS = {"cpu": (), "gpu": ("gpu",), "autoscaling": ("gpu", "autoscaling")}
ONLY_FOR = {"RayJob": "once", "RayCronJob": "nightly", "RayCluster": "standing", "CronJob": "standing"}
"""Kind -> the way to start that needs it; the others go into any folder."""

Patch = dict[str, Any]


def render_deployment(checked: Checked, folder: Path) -> None:
    """Write a folder that Kustomize builds: the tree, and what the configuration says laid over it.

    Raises:
        ConfigError: the folder holds something else.
        OutputError: it cannot be written.
    """
    try:
        _render(checked, folder)
    except OSError as error:  # shutil names every file that it could not copy
        said = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise OutputError(f"cannot write {folder} ({said}): free space there, or name another folder") from error


def _render(checked: Checked, folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / "components" / "values").is_dir():
        raise ConfigError(f"{folder} holds files that no render wrote: name a new folder")
    for part in ("base", "components"):
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(TREE / part, folder / part)
    _write(folder / "components" / "values" / "kustomization.yaml", _values(checked))
    _write(folder / "kustomization.yaml", _kustomization(checked.deploy))


def run_text(job: JobConfig) -> str:
    """Return the configuration that the job reads inside the cluster: what differs from the defaults."""
    tree = job.model_dump(mode="json", exclude_defaults=True, exclude={"deploy"})
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _kustomization(deploy: DeployConfig) -> dict[str, Any]:
    """Return the top of the folder: which parts there are, under which namespace, with which image."""
    components = [*COMPONENTS[deploy.overlay], "values", "copy_cluster"]
    unwanted = [kind for kind, start in ONLY_FOR.items() if start != deploy.start]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": deploy.namespace,
        "resources": ["base"],
        "components": [f"components/{name}" for name in components],
        "images": [_image(deploy.image)],
        "patches": [
            {
                "target": {"kind": kind, "name": NAME},
                "patch": _text({"$patch": "delete", "apiVersion": "any", "kind": kind, "metadata": {"name": NAME}}),
            }
            for kind in unwanted
        ],
    }


def _image(image: str) -> dict[str, str]:
    name, _, digest = image.partition("@")
    found = re.fullmatch(r"(.+):([^:/]+)", name)
    named = {"name": NAME, "newName": found[1] if found else name}
    if digest:
        return named | {"digest": digest}
    return named | {"newTag": found[2] if found else ""}


def _values(checked: Checked) -> dict[str, Any]:
    """Return the component that carries the configuration; it comes before the cluster is copied."""
    job, deploy = checked.job, checked.deploy
    entrypoint = shlex.join([*job_command(deploy)[:2], "--address", "auto", *job_command(deploy)[2:]])
    server = ["--address", f"http://{NAME}-head-svc:8265"]
    submit = ["submit", "--id", f"$({JOB_NAME})", *server, *job_command(deploy)[1:]]
    ray_job = [_set("/spec/entrypoint", entrypoint), _set("/spec/backoffLimit", deploy.retries)]
    if checked.longest_s is not None:
        ray_job.append(_set("/spec/activeDeadlineSeconds", int(checked.longest_s) + PREPARING_S))
    clock = [_set("/spec/schedule", deploy.schedule), _set("/spec/timeZone", deploy.time_zone)]
    at_submit = "/spec/jobTemplate/spec/template/spec/containers/0"
    environment = RAY_ENVIRONMENT | {
        "TZ": deploy.time_zone,
        "RAY_JOB_STOP_WAIT_TIME_S": str(int(drain_s(job)) + 1),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(node_drain_s(deploy)),
    }
    patches = {
        ("ConfigMap", f"{NAME}-run"): [_set("/data/run.yaml", run_text(job))],
        ("ConfigMap", f"{NAME}-environment"): [_set(f"/data/{key}", value) for key, value in environment.items()],
        ("RayCluster", NAME): _cluster(deploy),
        ("RayJob", NAME): ray_job,
        ("RayCronJob", NAME): clock,
        ("CronJob", NAME): [
            *clock,
            _is(f"{at_submit}/name", "submit"),
            _is(f"{at_submit}/env/0/name", JOB_NAME),
            _set(f"{at_submit}/args", submit),
            _set("/spec/jobTemplate/spec/backoffLimit", deploy.retries),
        ],
    }
    if deploy.identity:
        patches["ServiceAccount", NAME] = [_set("/metadata/annotations", deploy.identity)]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "patches": [
            {"target": {"kind": kind, "name": name}, "patch": _text(patch)} for (kind, name), patch in patches.items()
        ],
    }


def _cluster(deploy: DeployConfig) -> list[Patch]:
    """Return the patch of the cluster: its head, and its groups by their place in the list."""
    patch = _pod("/spec/headGroupSpec", deploy.head, deploy)
    for place, (name, group) in enumerate(groups(deploy).items()):
        at = f"/spec/workerGroupSpecs/{place}"
        patch += [_is(f"{at}/groupName", name), *_pod(at, group, deploy), *_replicas(at, group, deploy)]
        patch.append(_set(f"{at}/rayStartParams/num-cpus", str(group.cpus)))
        if isinstance(group, GpuGroupConfig):
            patch.append(_set(f"{at}/rayStartParams/num-gpus", str(group.gpus)))
    return patch


def _replicas(at: str, group: GroupConfig, deploy: DeployConfig) -> list[Patch]:
    scales = deploy.overlay == "autoscaling"
    fewest, first = (
        (group.min, group.min) if scales else (0 if isinstance(group, GpuGroupConfig) else group.max, group.max)
    )
    return [
        _set(f"{at}/minReplicas", fewest),
        _set(f"{at}/maxReplicas", group.max),
        _set(f"{at}/replicas", first),
    ]


def _pod(at: str, pod: PodConfig, deploy: DeployConfig) -> list[Patch]:
    """Return the patch of one pod template: resources, shared memory, nodes, grace, labels, credentials."""
    spec = f"{at}/template/spec"
    resources = {"cpu": str(pod.cpus), "memory": pod.memory}
    if isinstance(pod, GpuGroupConfig):
        resources[GPU] = str(pod.gpus)
    patch = [
        _set(f"{at}/rayStartParams/object-store-memory", str(store_bytes(pod))),
        _set(f"{spec}/containers/0/resources", {"requests": resources, "limits": resources}),
        _is(f"{spec}/volumes/0/name", "shm"),
        _set(f"{spec}/volumes/0/emptyDir/sizeLimit", pod.shm),
        _set(f"{spec}/terminationGracePeriodSeconds", deploy.grace_s),
    ]
    if pod.node_selector:
        patch.append(_set(f"{spec}/nodeSelector", pod.node_selector))
    patch += [
        _set(f"{at}/template/metadata/labels/{key.replace('/', '~1')}", deploy.labels[key]) for key in deploy.labels
    ]
    credentials = f"{spec}/containers/0/envFrom/1"
    patch.append(_is(f"{credentials}/secretRef/name", f"{NAME}-s3"))
    if deploy.secret is None:
        return [*patch, {"op": "remove", "path": credentials}]
    return [*patch, {"op": "replace", "path": credentials, "value": {"secretRef": {"name": deploy.secret}}}]


def _set(path: str, value: object) -> Patch:
    # `add` replaces a value that stands; keys with a slash are written ~1
    return {"op": "add", "path": path, "value": value}


def _is(path: str, value: str) -> Patch:
    """Return an operation that fails where the tree is not as this module believes."""
    return {"op": "test", "path": path, "value": value}


def _text(patch: object) -> str:
    return yaml.safe_dump(patch, sort_keys=False, allow_unicode=True)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))
