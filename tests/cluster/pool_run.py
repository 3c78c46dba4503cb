"""Runs a job in a Ray of two GPUs that stand in its books only, and prints what it held while it went; a program.

python pool_run.py INPUT OUTPUT CHECKPOINT KEY=VALUE...
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import ray
from ray_nodes import RayNodes
from typer.testing import CliRunner

from jobs.cli import app

NUM_GPUS = 2
PLAIN = ("gate=off", "run.report=false", "units.files=1", "batch_size=8")


def num_tokenizers() -> int:
    """Return how many actors of the pool live."""
    count = 0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            count += " ".join(child.cmdline()[:1]).startswith(RayNodes.TOKENIZERS)
    return count


def watch(output: Path, found: list[dict[str, float]], is_over: threading.Event) -> None:
    """Note several times a second what is free and who lives."""
    while not is_over.wait(0.1):
        free = ray.available_resources().get("GPU", 0.0)
        is_published = (output / "dataset.json").exists()
        found.append({"free_gpus": free, "tokenizers": num_tokenizers(), "is_published": is_published})


def main() -> None:
    """Run the job and print one line of JSON."""
    inputs, output, checkpoint, *settings = sys.argv[1:]
    ray.init(address="local", num_cpus=4, num_gpus=NUM_GPUS, include_dashboard=False, log_to_driver=False)
    found: list[dict[str, float]] = []
    is_over = threading.Event()
    watcher = threading.Thread(target=watch, args=(Path(output), found, is_over))
    watcher.start()
    options = [word for setting in (*PLAIN, *settings) for word in ("--set", setting)]
    try:
        ended = CliRunner().invoke(app, ["tokenize", inputs, output, "-c", checkpoint, *options])
    finally:
        is_over.set()
        watcher.join()
    print(json.dumps({"code": ended.exit_code, "said": ended.output, "samples": found}))
    ray.shutdown()


if __name__ == "__main__":
    main()
