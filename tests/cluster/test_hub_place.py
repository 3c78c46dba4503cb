"""Where the hub of a job stands: a node that is lost never takes it along."""

from __future__ import annotations

import subprocess
import sys

DRIVER = """
import ray

from pipeline.executors.ray_hub import start_hub

ray.init(address="auto", log_to_driver=False)
hubs = [start_hub(b"") for _ in range(8)]
for hub in hubs:
    ray.get(hub.is_stopping.remote())
print(ray.get_runtime_context().get_node_id())
for hub in hubs:
    print(ray.get(hub.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())))
"""


def test_start_hub_stands_on_the_node_of_the_driver(nodes):
    environment = {**nodes.environment, "RAY_ADDRESS": nodes.gcs}
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    here, *found = ended.stdout.split()
    assert found == [here] * 8
