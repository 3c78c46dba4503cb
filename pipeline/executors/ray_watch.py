"""The driver's look at the hub of a graph: news passed on, stops handed over, lost nodes noticed."""

from __future__ import annotations

import math
import time
from typing import Any

import ray

from pipeline.errors import ResourcesError
from pipeline.executors.executor import (
    TokenizeProgress,
    TokenizeStages,
)
from pipeline.executors.ray_errors import no_place
from pipeline.executors.ray_hub import News
from pipeline.run.flow import BEFORE_TOKENS, Flow

NODES_INTERVAL_S = 5.0
"""Between two questions which nodes are alive."""


class Watch:
    """Passes on what the hub knows, and the word to stop. Built for one graph by the driver, who looks every tick.

    Reading begins while the tokenizers start, so it is here that somebody notices that they never do, or that all of
    their nodes are lost: Ray builds them again where there is a place, and waits for one without a word.

    Args:
        hub: what `start_hub` gave.
        nodes_interval_s: between two questions which nodes are alive.
    """

    def __init__(
        self,
        hub: Any,
        progress: TokenizeProgress,
        stages: TokenizeStages,
        nodes_interval_s: float = NODES_INTERVAL_S,
    ) -> None:
        self._hub, self._progress, self._stages = hub, progress, stages
        self._nodes_interval_s = nodes_interval_s
        self._min_actors = stages.min_actors or stages.num_actors
        self._deadline = time.monotonic() + stages.wait_for_resources_s
        self._flow: Flow | None = None
        self._lost_at: float | None = None
        self._moved_at = self._nodes_asked_at = -math.inf

    def look(self) -> None:
        """Take what is new.

        Raises:
            ResourcesError: too few tokenizers stood ready in time, or all were lost and none stood again in time.
            Exception: the first that a stage met.
        """
        hub, progress = self._hub, self._progress
        progress.check()
        if progress.is_stopping:
            hub.stop.remote()
        news: News = ray.get(hub.take.remote())
        if news.ready_age_s is not None:
            progress.ready(news.ready_age_s)
        progress.begun(news.begun_windows, news.begun_bytes)
        progress.encoded(news.encoded_windows)
        progress.flowed(news.flow)
        self._check_place(news.num_ready)
        if self._deadline == math.inf:
            self._check_hosts(news)

    def _check_place(self, num_ready: int) -> None:
        if num_ready >= self._min_actors:
            self._deadline = math.inf  # those that were lost later are built again
        elif time.monotonic() > self._deadline:
            raise self._no_place(self._min_actors)

    def _check_hosts(self, news: News) -> None:
        """Notice that all nodes with tokenizers are lost while units wait for one, and nothing moves any more."""
        now = time.monotonic()
        if news.encoded_windows or news.flow != self._flow:
            self._flow, self._moved_at = news.flow, now
        if not any(news.flow.in_flight[state] for state in BEFORE_TOKENS):
            self._lost_at = None  # where nothing waits, a cluster may take its nodes back
            return
        if now < self._nodes_asked_at + self._nodes_interval_s:
            return
        self._nodes_asked_at = now
        if news.hosts & {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = now
            self._progress.lost(self._stages.wait_for_resources_s)
        elif now > max(self._lost_at, self._moved_at) + self._stages.wait_for_resources_s:
            raise self._no_place(1, "the nodes of all tokenizers were lost, and ")

    def _no_place(self, num_workers: int, before: str = "") -> ResourcesError:
        each = {"GPU": self._stages.gpus_per_actor, "CPU": self._stages.cpus_per_actor}
        return no_place(num_workers, each, self._stages.wait_for_resources_s, before)
