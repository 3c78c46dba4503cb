"""What a person sets of how a job runs: the section `run` of run.yaml. Nothing here changes a byte of a dataset.

Knows no Ray, torch, Arrow or storage.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Section(BaseModel):
    """A part of run.yaml: unknown keys are refused, values stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


FROM_ENVIRONMENT = "env:"
"""Begins a value that stands in an environment variable, which it names."""


class NotifyConfig(Section):
    """Who is told when a run has ended, and of what."""

    command: str | None = Field(None, min_length=1, description="program with arguments; reads JSON from its input")
    webhook: str | None = Field(None, description="http(s) address that gets the JSON by POST, or env:NAME")
    when: Literal["always", "failure"] = Field("always", description="failure: unless the exit code is 0")
    timeout_s: float = Field(10.0, gt=0, description="how long each may take")

    @field_validator("webhook")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if value is not None and not re.match(rf"https?://|{FROM_ENVIRONMENT}[A-Za-z_]\w*\Z", value):
            raise ValueError(
                "write an address that begins with http:// or https://, or env:NAME for the environment variable NAME"
                " that holds it"
            )
        return value


class RunConfig(Section):
    """What never changes a byte of the dataset."""

    workers: int | None = Field(None, ge=1, description="tokenizer actors; default: what the GPUs hold, else one")
    min_workers: int | None = Field(
        None, ge=1, description="so many actors must stand in time, more may follow; default: all"
    )
    gpus_per_worker: float | None = Field(None, gt=0, description="GPUs an actor; 0.5: two on one; default: one if any")
    wait_for_resources_s: float = Field(600.0, gt=0, description="how long actors may wait for a place on the cluster")
    threads: int | None = Field(None, ge=1, description="CPU threads an actor; default: cores / workers")
    row_bytes: int = Field(128 << 20, ge=1, description="motion a task carries at most, beyond its first unit")
    local: bool = Field(False, description="plain loop in this process, without Ray")
    address: str | None = Field(None, min_length=1, description="Ray cluster: auto or HOST:PORT; default: RAY_ADDRESS")
    when_active: Literal["wait", "leave", "take_over"] = Field("wait", description="while another run is active")
    grace_s: float = Field(1.5, ge=0, description="seconds for units in flight when a run is stopped")
    deadline: str | None = Field(None, description="stop at this time: 06:00, or a date with time")
    max_runtime: str | None = Field(None, description="stop after this time: 90m, 1h30m")
    restart: bool = Field(False, description="other settings than the published dataset's: a new store beside it")
    numerics: Literal["same", "mixed"] = Field("same", description="mixed: continue with other torch or device")
    max_dropped: int | float | None = Field(None, description="drops that fail a run: a count (10) or share (0.01, 1%)")
    report: bool = Field(True, description="write report/ at the end")
    log_format: Literal["text", "json"] = Field("text", description="json: a line an event, with the run's id")
    metrics_port: int | None = Field(None, ge=1, le=65535, description="for Prometheus, of a Ray that this run starts")
    notify: NotifyConfig = NotifyConfig()
    storage_options: dict[str, Any] = Field({}, description="passed to fsspec for s3:// and others")

    @field_validator("max_dropped", mode="before")
    @classmethod
    def _is_count_or_share(cls, value: object) -> object:
        if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?\s*%", value.strip()):
            value = float(value.strip().removesuffix("%")) / 100
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        is_share = isinstance(value, float) and 0 <= value <= 1
        if value is not None and not is_count and not is_share:
            raise ValueError("write a count such as 10, or a share such as 0.01 or 1%")
        return value

    @field_validator("gpus_per_worker")
    @classmethod
    def _is_a_share_or_whole(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("a worker takes a share of one GPU (0.5) or whole ones (2)")
        return value

    @field_validator("min_workers")
    @classmethod
    def _is_no_more_than_workers(cls, value: int | None, info: ValidationInfo) -> int | None:
        workers = info.data.get("workers")
        if value is not None and workers is not None and value > workers:
            raise ValueError(f"at most as many as workers, {workers}")
        return value

    @field_validator("address")
    @classmethod
    def _is_not_local(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("local"):
            raise ValueError("it names a Ray cluster, and local runs without Ray: leave one of them out")
        return value

    def workers_on(self, num_gpus: float) -> int:
        """Return how many tokenizer actors there shall be at most, on so many GPUs."""
        if self.workers is not None:
            return self.workers
        share = self.gpus_per_worker or 1.0
        a_gpu = int(1 / share + 1e-9) if share < 1 else 1 / share
        return max(1, self.min_workers or 1, int(num_gpus * a_gpu))

    def gpus_of(self, num_workers: int, num_gpus: float) -> float:
        """Return how many of so many GPUs as many tokenizer actors take."""
        return min(num_workers * (self.gpus_per_worker or 1.0), num_gpus)
