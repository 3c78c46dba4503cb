"""Memory does not grow with the corpus: a job of 4 GB against one of 0.4 GB, and one of 21 GB against one of 1.3 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint

FRAMES, DIMS, CLIPS_A_FILE, FILES = 1000, 106, 250, 4
MIB = 1 << 20
UNIT_MIB = 128
ALLOWED_GROWTH = 1.10
FLAT_GROWTH = 1.05


@dataclass
class Peaks:
    """Peak resident memory, MiB: of the driver, and (less shared pages) of the largest worker of each name."""

    driver: float = 0.0
    workers: dict[str, float] = field(default_factory=dict)

    def watch(self, process: psutil.Process) -> None:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            try:
                self.driver = max(self.driver, process.memory_info().rss / MIB)
                for child in process.children(recursive=True):
                    name = child.cmdline()[0].split("(")[0] if child.cmdline() else child.name()
                    if name.startswith("ray::"):
                        self.workers[name] = max(self.workers.get(name, 0.0), own_mib(child))
            except psutil.Error:
                pass
            time.sleep(0.1)


def own_mib(process: psutil.Process) -> float:
    memory = process.memory_info()
    return (memory.rss - memory.shared) / MIB


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Parquet files of about 106 MB each, without clip ids, and a tiny codec."""
    folder = tmp_path_factory.mktemp("base")
    generator = np.random.default_rng(0)
    for number in range(FILES):
        values = generator.normal(size=CLIPS_A_FILE * FRAMES * DIMS).astype(np.float32)
        offsets = np.arange(0, len(values) + 1, FRAMES * DIMS, dtype=np.int32)
        motion = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
        path = folder / f"{number}.parquet"
        pq.write_table(pa.table({"motion": motion}), path, row_group_size=25, compression="none", use_dictionary=False)
    config = BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=1)
    write_checkpoint(random_checkpoint(config, np.zeros(DIMS), np.ones(DIMS), 0), folder / "codec.safetensors")
    return folder


def run_job(base, folder, copies, *options):
    (folder / "motion").mkdir(parents=True)
    for copy in range(copies):
        for path in base.glob("*.parquet"):
            os.link(path, folder / "motion" / f"{copy}-{path.name}")
    command = [sys.executable, "-m", "jobs.cli", "tokenize", str(folder / "motion"), str(folder / "tokens")]
    command += ["-c", str(base / "codec.safetensors"), "--set", "input.fps=25", *options]
    command += ["--set", "gate=off", "--set", "run.report=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = psutil.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peaks = Peaks()
    watcher = threading.Thread(target=peaks.watch, args=(process,))
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    assert process.returncode == 0, output[-3000:]
    manifest = json.loads((folder / "tokens" / "dataset.json").read_text())
    assert manifest["counts"]["clips"] == copies * FILES * CLIPS_A_FILE
    return peaks


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [(), ("--local",)], ids=["ray", "local"])
def test_memory_does_not_grow_with_the_corpus(base, tmp_path, options, capsys):
    small = run_job(base, tmp_path / "small", 1, *options)
    large = run_job(base, tmp_path / "large", 10, *options)
    with capsys.disabled():
        print(f"\n0.4 GB: {small}\n4 GB:   {large}")
    if options:
        assert large.driver < ALLOWED_GROWTH * small.driver + UNIT_MIB  # it holds the units in flight itself
    else:
        assert large.driver < ALLOWED_GROWTH * small.driver
        for name, peak in large.workers.items():
            assert peak < 800 + 3 * UNIT_MIB, f"{name} holds more than its units in flight"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_memory_of_the_driver_is_flat_up_to_twenty_gigabytes(base, tmp_path, capsys):
    small = run_job(base, tmp_path / "small", 3)
    large = run_job(base, tmp_path / "large", 50)
    with capsys.disabled():
        print(f"\n1.3 GB: {small}\n21 GB:  {large}")
    assert large.driver < FLAT_GROWTH * small.driver
