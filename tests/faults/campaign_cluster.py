"""A Ray cluster of three nodes on this machine, of which one can be taken away.

Starts no driver: RAY_ADDRESS leads one there. The head computes nothing, so that both others must.
"""

from __future__ import annotations

import contextlib
import os
import random
from typing import Any

import psutil

CPUS_A_NODE = 3
NUM_WORKER_NODES = 2
STORE_BYTES = 150 << 20


class ThreeNodes:
    """Built by whoever runs trials on it, who closes it.

    Args:
        environment: what its workers find beside this process's environment.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
        from ray._common.utils import reset_ray_address
        from ray.cluster_utils import Cluster

        self._environment = environment
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=self._node(0, include_dashboard=False))
        reset_ray_address()  # else whoever starts a Ray on this machine without an address would come here
        self.fill()

    @property
    def environment(self) -> dict[str, str]:
        """What leads a driver here."""
        return {"RAY_ADDRESS": self._cluster.address}

    def fill(self) -> None:
        """Add nodes until there are three again."""
        while len(self._cluster.worker_nodes) < NUM_WORKER_NODES:
            self._cluster.add_node(**self._node(CPUS_A_NODE))

    def actors(self) -> list[int]:
        """How many tokenizers each of the worker nodes hosts, in rising order."""
        return sorted(_num_actors(node) for node in self._cluster.worker_nodes)

    def remove_node(self, chance: random.Random) -> str:
        """Take away a worker node with all that runs on it, one with a tokenizer where there is one.

        Returns:
            What it hosted, in words.
        """
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: str(node.node_id))
        hosting = [node for node in nodes if _num_actors(node)]
        node = chance.choice(hosting or nodes)
        num_actors = _num_actors(node)
        below = psutil.Process(_raylet(node)).children(recursive=True)
        self._cluster.remove_node(node, allow_graceful=False)
        for process in below:  # they would end by themselves, a moment later than those of a lost machine
            with contextlib.suppress(psutil.Error):
                process.kill()
        return f"node with {num_actors} of {num_actors + sum(self.actors())} tokenizers"

    def close(self) -> None:
        """End all its processes."""
        self._cluster.shutdown()

    def _node(self, num_cpus: int, **more: Any) -> dict[str, Any]:
        return {"num_cpus": num_cpus, "object_store_memory": STORE_BYTES, "env_vars": self._environment, **more}


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _num_actors(node: Any) -> int:
    count = 0
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(_raylet(node)).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                count += " ".join(process.cmdline()[:1]).startswith("ray::MapWorker(MapBatches(HostedTokenizer)")
    return count
