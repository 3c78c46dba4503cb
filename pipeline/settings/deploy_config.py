"""What a person says of the cluster that a job is to run on: the section `deploy` of run.yaml.

Knows no manifest: jobs/deploy/ fills them from it. Nothing here changes a byte of a dataset.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.settings.run_config import Section

_UNITS = {"Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
Quantity = Annotated[str, Field(pattern=r"^[1-9]\d*(Mi|Gi|Ti)$")]
"""Memory as Kubernetes writes it: 512Mi, 32Gi."""


def num_bytes(quantity: str) -> int:
    """Return the bytes of a quantity such as 32Gi."""
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]


class PodConfig(Section):
    """One pod of a group: what it asks for is what it may use."""

    cpus: int = Field(8, ge=1, description="CPUs")
    memory: Quantity = Field("32Gi", description="memory, shm included")
    shm: Quantity = Field("12Gi", description="/dev/shm, where Ray's object store lies")
    node_selector: dict[str, str] = Field({}, description="labels of the nodes it may run on")

    @model_validator(mode="after")
    def _memory_holds_shm(self) -> Self:
        if num_bytes(self.shm) >= num_bytes(self.memory):
            raise ValueError(f"shm ({self.shm}) counts as memory of the pod: it must lie below memory ({self.memory})")
        return self


class HeadConfig(PodConfig):
    """The pod that keeps the job together and runs no tasks."""

    cpus: int = Field(2, ge=1, description="CPUs")
    memory: Quantity = Field("8Gi", description="memory, shm included")
    shm: Quantity = Field("512Mi", description="/dev/shm")


class GroupConfig(PodConfig):
    """Pods of one kind."""

    min: int = Field(1, ge=0, description="fewest pods; of the overlay autoscaling")
    max: int = Field(1, ge=1, description="most pods; without autoscaling, all of them")

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) lies above max ({self.max})")
        return self


class GpuGroupConfig(GroupConfig):
    """Pods with GPUs, which tokenize."""

    min: int = Field(0, ge=0, description="fewest pods; of the overlay autoscaling")
    gpus: int = Field(1, ge=1, description="GPUs a pod")


class DeployConfig(Section):
    """What manifests are filled with."""

    image: str = Field(description="image of this project, with a version or digest")
    inputs: tuple[str, ...] = Field(min_length=1, description="inputs of the job, as tokenize takes them")
    output: str = Field(min_length=1, description="output of the job")
    checkpoint: str = Field(min_length=1, description="codec of the job")
    arguments: tuple[str, ...] = Field((), description="options that no key says: [--preset, artalk]")
    overlay: Literal["cpu", "gpu", "autoscaling"] = Field("cpu", description="what the cluster has")
    start: Literal["once", "nightly", "standing"] = Field("once", description="how the job starts")
    namespace: str = Field("motion-tokens", description="of everything; one deployment each")
    schedule: str = Field("0 22 * * *", description="when it starts: minute, hour, day, month, weekday")
    time_zone: str = Field("Etc/UTC", description="of schedule and run.deadline")
    secret: str | None = Field(None, description="name of the Secret with the keys of the object store")
    identity: dict[str, str] = Field({}, description="or annotations of the service account, for workload identity")
    labels: dict[str, str] = Field({}, description="labels of Ray's pods, as some workload identities want")
    grace_s: int = Field(60, ge=1, description="seconds between SIGTERM and SIGKILL of a pod")
    retries: int = Field(0, ge=0, description="tries of a failed job, beyond the first")
    head: HeadConfig = HeadConfig()
    readers: GroupConfig = GroupConfig()
    tokenizers: GpuGroupConfig = GpuGroupConfig()

    @field_validator("labels")
    @classmethod
    def _none_of_ours(cls, value: dict[str, str]) -> dict[str, str]:
        taken = [key for key in value if key.startswith(("ray.io/", "app.kubernetes.io/"))]
        if taken:
            raise ValueError(f"{', '.join(taken)}: the manifests and KubeRay set these; write labels of other names")
        return value
