"""What the processes of one graph tell each other: weights, exceptions, the word to stop, and how far the work is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.run.flow import Flow, FlowBook


@dataclass(frozen=True)
class News:
    """What a hub heard since it was last asked."""

    num_ready: int
    """Tokenizers that have stood ready since the start, those that were built again counted again."""
    ready_age_s: float | None
    """How long ago the first of them did; None before."""
    hosts: frozenset[str]
    """Nodes of the cluster on which one has stood."""
    begun_windows: int
    begun_bytes: int
    encoded_windows: int
    flow: Flow


class JobHub:
    """What all tokenizers of a job share: it hands out the weights, and counts windows while runs of units
    are still in work, so that a person sees movement. Built by the driver, dies with the job."""

    def __init__(self, codec: bytes) -> None:
        self._codec = codec
        self._begun_windows = self._begun_bytes = self._encoded_windows = 0
        self._ready_at: float | None = None
        self._num_ready = 0
        self._hosts: set[str] = set()
        self._failure: Exception | None = None
        self._is_stopping = False
        self._flow = FlowBook()

    def enter(self, stage: str, run: int, num_units: int) -> None:
        """Note that a run of units begins a stage."""
        self._flow.enter(stage, run, num_units)

    def leave(self, stage: str, run: int, storage_retries: int) -> None:
        """Note that a run of units has passed a stage."""
        self._flow.leave(stage, run, storage_retries)

    def stop(self) -> None:
        """Let read tasks that begin from now on read nothing."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Return whether no more units are to be read."""
        return self._is_stopping

    def codec(self) -> bytes:
        """Return the weights."""
        return self._codec

    def ready(self, host: str) -> None:
        """Note that a tokenizer stands ready on a node of the cluster."""
        self._num_ready += 1
        self._hosts.add(host)
        if self._ready_at is None:
            self._ready_at = time.monotonic()

    def fail(self, error: Exception) -> None:
        """Note the first exception of a stage."""
        self._failure = self._failure or error

    def failure(self) -> Exception | None:
        """Return the first exception of a stage, None where there was none."""
        return self._failure

    def begun(self, num_windows: int, num_bytes: int) -> None:
        """Note work that a tokenizer takes up."""
        self._begun_windows += num_windows
        self._begun_bytes += num_bytes

    def encoded(self, num_windows: int) -> None:
        """Note work that is done."""
        self._encoded_windows += num_windows

    def take(self) -> News:
        """Return what is new since the last call.

        Raises:
            Exception: the first that a stage met.
        """
        if self._failure is not None:
            raise self._failure
        age_s = None if self._ready_at is None else time.monotonic() - self._ready_at
        counts = self._begun_windows, self._begun_bytes, self._encoded_windows
        self._begun_windows = self._begun_bytes = self._encoded_windows = 0
        return News(self._num_ready, age_s, frozenset(self._hosts), *counts, self._flow.take())


_RemoteHub: Any = ray.remote(num_cpus=0)(JobHub)


def start_hub(weights: bytes) -> Any:
    """Return the hub of one graph, an actor on the driver's own node: any other may be lost, and the job goes on."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return _RemoteHub.options(scheduling_strategy=here).remote(weights)
