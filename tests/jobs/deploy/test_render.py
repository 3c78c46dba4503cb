"""The manifests, as Kustomize builds them: from the tree as it stands, and filled from a configuration."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from typer.testing import CliRunner

from jobs.app import check_command
from jobs.cli import app
from jobs.deploy.render import ONLY_FOR, TREE, run_text
from pipeline.settings.job_config import load_config

ROOT = Path(__file__).resolve().parents[3]
KUBECTL = Path(sys.executable).with_name("kubectl")
OVERLAYS = ("cpu", "gpu", "autoscaling")
RAY_KINDS = {"RayJob": "rayjobs", "RayCronJob": "raycronjobs", "RayCluster": "rayclusters"}
POD_OWNERS = {"RayJob", "RayCronJob", "RayCluster", "CronJob"}

RUN = """
input: {fps: 25, columns: 0:106}
precision: float16
run: {deadline: "06:00", workers: 16, gpus_per_worker: 1, grace_s: 10}
deploy:
  image: registry.test:5000/lab/motion-tokens:0.1.0
  inputs: [talk=s3://motion/talk, "s3://motion/with space"]
  output: s3://tokens/v1
  checkpoint: s3://motion/codec.safetensors
  arguments: [--preset, artalk]
  namespace: faces
  time_zone: Europe/Berlin
  schedule: 30 21 * * 1-5
  secret: motion-s3
  readers: {min: 1, max: 8}
  tokenizers: {max: 2, gpus: 8, cpus: 16, memory: 160Gi, shm: 48Gi, node_selector: {gpu: h100}}
"""
START = ["motion-tokens", "tokenize"]
REST = ["talk=s3://motion/talk", "s3://motion/with space", "s3://tokens/v1", "--config", "/etc/motion-tokens/run.yaml"]
REST += ["--checkpoint", "s3://motion/codec.safetensors", "--preset", "artalk"]

Resources = dict[str, dict[str, Any]]


def built(folder: Path) -> list[dict[str, Any]]:
    """What Kustomize makes of a folder."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def tree(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    """An overlay of the tree, as it stands."""
    return request.param, built(TREE / "overlays" / request.param)


@pytest.fixture
def filled(tmp_path: Path) -> Callable[..., Resources]:
    """Return a function that renders RUN with settings over it, and gives the resources by kind and name."""

    def render(*settings: str) -> Resources:
        (tmp_path / "run.yaml").write_text(RUN)
        words = ["deploy", "render", str(tmp_path / "out"), "--config", str(tmp_path / "run.yaml")]
        result = CliRunner().invoke(app, [*words, *(word for item in settings for word in ("--set", item))])
        assert result.exit_code == 0, result.output
        resources = built(tmp_path / "out")
        return {item["kind"] if item["kind"] != "ConfigMap" else item["metadata"]["name"]: item for item in resources}

    return render


@pytest.fixture(scope="session")
def ray_schemas(kuberay_schemas: Path) -> dict[str, jsonschema.Draft7Validator]:
    """Kind of KubeRay -> a validator of its version v1, for which unknown fields are errors."""
    schemas = {}
    for kind, name in RAY_KINDS.items():
        crd = yaml.load((kuberay_schemas / f"ray.io_{name}.yaml").read_text(), yaml.CSafeLoader)
        (version,) = (item for item in crd["spec"]["versions"] if item["name"] == "v1")
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        schemas[kind] = jsonschema.Draft7Validator(schema)
    return schemas


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused wherever it lists the known ones."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    listed = isinstance(found.get("properties"), dict) and "type" in found
    if listed and not found.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


@pytest.fixture
def validate(ray_schemas: dict[str, jsonschema.Draft7Validator]) -> Callable[[list[dict[str, Any]]], None]:
    """Return a function that holds resources against their schemas."""

    def check(resources: list[dict[str, Any]]) -> None:
        for resource in resources:
            if resource["kind"] in ray_schemas:
                assert resource["apiVersion"] == "ray.io/v1"
                ray_schemas[resource["kind"]].validate(resource)
            else:
                kubernetes_validate.validate(resource, "1.37", strict=True)
            for pod in pods(resource):
                as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": pod}
                kubernetes_validate.validate(as_pod, "1.37", strict=True)

    return check


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec inside a resource."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    spec = resource["spec"]
    spec = spec.get("jobTemplate", spec)
    found: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return found


def group(cluster: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (item for item in cluster["workerGroupSpecs"] if item["groupName"] == name)
    return dict(found)


def test_overlays_are_valid(tree, validate):
    validate(tree[1])


def test_schemas_refuse_a_field_that_kuberay_does_not_know(tree, validate):
    (job,) = (copy.deepcopy(item) for item in tree[1] if item["kind"] == "RayJob")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        validate([job])


def test_overlays_hold_every_way_to_start_with_one_cluster(tree):
    overlay, resources = tree
    by_kind = {item["kind"]: item for item in resources}
    assert set(by_kind) == {"ServiceAccount", "ConfigMap", *POD_OWNERS}
    for kind, start in ONLY_FOR.items():
        assert by_kind[kind]["metadata"]["labels"]["app.kubernetes.io/component"] == start
    cluster = cluster_of(by_kind["RayCluster"])
    assert cluster_of(by_kind["RayJob"]) == cluster
    assert cluster_of(by_kind["RayCronJob"]) == cluster
    groups = ["readers"] if overlay == "cpu" else ["readers", "tokenizers"]
    assert [item["groupName"] for item in cluster["workerGroupSpecs"]] == groups
    assert cluster["enableInTreeAutoscaling"] == (overlay == "autoscaling")
    if overlay != "cpu":
        tokenizers = group(cluster, "tokenizers")
        assert tokenizers["minReplicas"] == 0
        assert tokenizers["replicas"] == (0 if overlay == "autoscaling" else 1)


def test_overlays_run_without_root_or_rights(tree):
    found = [pod for resource in tree[1] for pod in pods(resource)]
    assert len(found) >= 8
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["limits"].keys() == container["resources"]["requests"].keys()


def test_overlays_keep_the_object_store_in_memory(tree):
    (cluster,) = (cluster_of(item) for item in tree[1] if item["kind"] == "RayCluster")
    sizes = {"Mi": 1 << 20, "Gi": 1 << 30}
    for part in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = part["template"]["spec"]
        (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        assert shm["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        size = int(shm["sizeLimit"][:-2]) * sizes[shm["sizeLimit"][-2:]]
        assert 0.5 * size < int(part["rayStartParams"]["object-store-memory"]) <= size


def test_overlays_name_the_ray_that_the_image_has(tree):
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    (cluster,) = (cluster_of(item) for item in tree[1] if item["kind"] == "RayCluster")
    assert cluster["rayVersion"] == pinned[1]


def test_overlays_stop_the_job_before_the_head_ends(tree):
    (cluster,) = (cluster_of(item) for item in tree[1] if item["kind"] == "RayCluster")
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    program, name, *options = head["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, name) == ("motion-tokens", "stop")
    read = check_own_command(name, options)
    assert read["everything"] is True
    assert head["env"] == [{"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "0"}]  # the hook has drained it
    assert read["address"] == "http://127.0.0.1:8265"
    assert {"containerPort": 8265, "name": "dashboard"} in head["ports"]
    for part in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert part["template"]["spec"]["terminationGracePeriodSeconds"] == 60
    (environment,) = (item for item in tree[1] if item["metadata"]["name"] == "motion-tokens-environment")
    assert 0 < int(environment["data"]["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < 60


def check_own_command(name: str, options: list[str]) -> dict[str, Any]:
    """What the command reads in its options."""
    commands = typer.main.get_command(app).commands
    return dict(commands[name].make_context(name, list(options)).params)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("start", ["once", "nightly", "standing"])
def test_render_gives_valid_resources_of_one_way_to_start(filled, validate, overlay, start):
    resources = filled(f"deploy.overlay={overlay}", f"deploy.start={start}")
    validate(list(resources.values()))
    wanted = {kind for kind, found in ONLY_FOR.items() if found == start}
    assert set(resources) == {"ServiceAccount", "motion-tokens-run", "motion-tokens-environment"} | wanted
    assert {item["metadata"]["namespace"] for item in resources.values()} == {"faces"}
    images = {
        container["image"] for item in resources.values() for pod in pods(item) for container in pod["containers"]
    }
    assert images == {"registry.test:5000/lab/motion-tokens:0.1.0"}


def test_render_fills_groups_clock_and_credentials(filled):
    resources = filled("deploy.overlay=autoscaling", "deploy.start=nightly")
    spec = resources["RayCronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("30 21 * * 1-5", "Europe/Berlin")
    cluster = cluster_of(resources["RayCronJob"])
    readers, tokenizers = group(cluster, "readers"), group(cluster, "tokenizers")
    assert [readers[key] for key in ("minReplicas", "replicas", "maxReplicas")] == [1, 1, 8]
    assert [tokenizers[key] for key in ("minReplicas", "replicas", "maxReplicas")] == [0, 0, 2]
    assert tokenizers["rayStartParams"]["num-gpus"] == "8"
    pod = tokenizers["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "16", "memory": "160Gi", "nvidia.com/gpu": "8"}
    for part in (cluster["headGroupSpec"], readers, tokenizers):
        environment = part["template"]["spec"]["containers"][0]["envFrom"]
        assert environment == [
            {"configMapRef": {"name": "motion-tokens-environment"}},
            {"secretRef": {"name": "motion-s3"}},
        ]
    assert resources["motion-tokens-environment"]["data"]["TZ"] == "Europe/Berlin"
    # from 21:30 to 06:00, the drain of 35 s, and an hour for the cluster to stand
    assert spec["jobTemplate"]["activeDeadlineSeconds"] == 8.5 * 3600 + 35 + 3600


def test_render_gives_every_pod_the_time_to_end(filled):
    resources = filled("deploy.overlay=gpu", "deploy.grace_s=90", "run.grace_s=30")
    environment = resources["motion-tokens-environment"]["data"]
    assert environment["RAY_JOB_STOP_WAIT_TIME_S"] == "56"  # the drain, and a second
    assert environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "85"
    cluster = cluster_of(resources["RayJob"])
    for part in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert part["template"]["spec"]["terminationGracePeriodSeconds"] == 90
        containers = part["template"]["spec"]["containers"]
        assert ["lifecycle" in container for container in containers] == [part is cluster["headGroupSpec"]]


def test_render_keeps_a_fixed_number_of_pods_without_autoscaling(filled):
    cluster = cluster_of(filled("deploy.overlay=gpu")["RayJob"])
    assert [group(cluster, "readers")[key] for key in ("minReplicas", "replicas", "maxReplicas")] == [8, 8, 8]
    assert [group(cluster, "tokenizers")[key] for key in ("minReplicas", "replicas", "maxReplicas")] == [0, 2, 2]


def test_render_starts_the_command_as_a_person_would(filled):
    job = filled("deploy.overlay=gpu")["RayJob"]
    words = shlex.split(job["spec"]["entrypoint"])
    assert words == [*START, "--address", "auto", *REST]
    check_command(words[1:])
    resources = filled("deploy.overlay=gpu", "deploy.start=standing")
    job_spec = resources["CronJob"]["spec"]["jobTemplate"]["spec"]
    (container,) = job_spec["template"]["spec"]["containers"]
    address = "http://motion-tokens-head-svc:8265"
    assert [*container["command"], *container["args"]] == [
        "motion-tokens", "submit", "--id", "$(JOB_NAME)", "--address", address, "tokenize", *REST,
    ]  # fmt: skip
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    assert container["env"][0] == {"name": "JOB_NAME", "valueFrom": {"fieldRef": {"fieldPath": label}}}
    check_command(["tokenize", *REST])
    assert resources["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    mounts = cluster_of(resources["RayCluster"])["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "run-config", "mountPath": "/etc/motion-tokens", "readOnly": True} in mounts


def test_render_hands_the_job_the_same_configuration(filled):
    resources = filled("deploy.overlay=gpu", "export.where=num_frames > 500")
    inside = load_config(resources["motion-tokens-run"]["data"]["run.yaml"])
    asked = load_config(RUN, ["export.where=num_frames > 500"])
    assert inside == asked.model_copy(update={"deploy": None})


@pytest.mark.parametrize(
    "settings",
    [
        ["gate=off", "run.deadline='6:30'", "run.max_runtime=8h", "input.columns=0:52", "emit=latent,flips"],
        ["run.max_dropped=1%", "run.storage_options={endpoint_url: 'https://s3.test'}", "input.fps=mocap_rate"],
        ["export.splits.ratios={train: 0.9, val: 0.1}", "input.max_abs_z=null", "units.bytes=1000000"],
    ],
)
def test_run_text_reads_back_as_it_was(settings):
    job = load_config(None, settings)
    assert load_config(run_text(job)) == job


def test_render_gives_the_service_account_a_role_instead_of_keys(filled):
    role = "deploy.identity={eks.amazonaws.com/role-arn: 'arn:aws:iam::1:role/motion'}"
    resources = filled("deploy.overlay=gpu", "deploy.secret=null", role)
    annotations = resources["ServiceAccount"]["metadata"]["annotations"]
    assert annotations == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/motion"}
    for part in cluster_of(resources["RayJob"])["workerGroupSpecs"]:
        environment = part["template"]["spec"]["containers"][0]["envFrom"]
        assert environment == [{"configMapRef": {"name": "motion-tokens-environment"}}]


def test_render_labels_the_pods_of_ray(filled, validate):
    resources = filled("deploy.overlay=gpu", 'deploy.labels={azure.workload.identity/use: "true"}')
    validate(list(resources.values()))
    cluster = cluster_of(resources["RayJob"])
    for part in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = part["template"]["metadata"]["labels"]
        assert labels == {"app.kubernetes.io/name": "motion-tokens", "azure.workload.identity/use": "true"}


def test_render_pins_an_image_by_its_digest(filled):
    digest = "sha256:" + "0123456789abcdef" * 4
    job = filled("deploy.overlay=gpu", f"deploy.image=registry.test/motion@{digest}")["RayJob"]
    assert {pod["containers"][0]["image"] for pod in pods(job)} == {f"registry.test/motion@{digest}"}


def test_render_writes_over_its_own_folder_only(filled, tmp_path):
    filled("deploy.overlay=gpu")
    filled("deploy.overlay=cpu", "run.workers=4")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    words = ["deploy", "render", str(other), "--config", str(tmp_path / "run.yaml"), "--set", "deploy.overlay=gpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "no render wrote" in " ".join(result.output.split())
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
