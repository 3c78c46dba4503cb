"""The suite gpus: what a run may see of the machine, and the same job on each share of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bitwise_vae.config import BitwiseVAEConfig
from jobs.bench.measure_gpus import Share, limited_to, measure_gpus, shares_of
from jobs.bench.result import BenchRequest
from pipeline.errors import ConfigError
from pipeline.settings.job_config import load_config

CODEC = BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=2)
ON_CPUS = {"options": ("--local",), "distinct_windows": 3}
"""The command runs on the CPU whatever is said of GPUs, and sees none."""


def test_shares_of_give_one_gpu_its_share_of_the_cores_and_all():
    whole, share, full = shares_of(2, list(range(8)))
    assert (whole.gpus, len(whole.cores)) == ((0, 1), 8)
    assert (share.gpus, share.cores) == ((0,), (0, 1, 2, 3))
    assert (full.gpus, len(full.cores)) == ((0,), 8)


def test_shares_of_one_gpu_are_the_whole_machine_and_of_none_nothing():
    assert shares_of(1, [0, 1]) == [Share("1 GPU", (0,), (0, 1))]
    with pytest.raises(ConfigError, match="needs a GPU, and found none: bench pipeline"):
        shares_of(0, [0, 1])


def test_limited_to_shows_a_process_its_share_and_gives_the_cores_back():
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    program = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], *os.sched_getaffinity(0))"
    with limited_to(Share("one", (3,), (one,))) as environment:
        seen = subprocess.run(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    assert seen.stdout.split() == ["3", str(one)]
    assert os.sched_getaffinity(0) == allowed


def test_measure_gpus_compares_the_whole_machine_with_each_share(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    steps: list[str] = []
    asked = BenchRequest(6, 1, load_config(None, []), CODEC)
    results = measure_gpus(asked, lambda step, *_: steps.append(step), **ON_CPUS)
    assert [result.baseline_name for result in results] == ["one with its share of the cores", "one with all cores"]
    assert all(result.ratio is not None and result.ratio > 0 for result in results)
    assert results[0].details["windows"] == 6  # three windows under each of two names
    assert steps == ["making motion", "warm-up", *[f"{share}, 1 of 1" for share in results[0].details["cores"]], "done"]


def test_measure_gpus_measures_one_gpu_alone(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    asked = BenchRequest(6, 1, load_config(None, []), CODEC, motion_format="webdataset")
    (result,) = measure_gpus(asked, lambda *_: None, **ON_CPUS)
    assert (result.baseline, result.details["windows"], result.details["motion_format"]) == (None, 6, "webdataset")
    assert result.name.startswith("1 GPU, ")
    assert result.median > 0
