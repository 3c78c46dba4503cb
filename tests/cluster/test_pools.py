"""Pools of tokenizers that share GPUs, grow, and give their place back; and what is told where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from jobs.session.session import open_session
from jobs.session.signals import stop_behind
from pipeline.errors import ResourcesError
from pipeline.executors.executor import WRITER_CPUS, TokenizeProgress, num_writers
from pipeline.executors.ray_graph import READER_CPUS, gpu_calls_ahead
from pipeline.executors.ray_hub import start_hub
from pipeline.executors.ray_tasks import build_with_ray
from pipeline.executors.ray_watch import Watch
from pipeline.job.tokenize_job import cpu_share
from pipeline.plan.units import Unit
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.settings.job_config import load_config

RUN = Path(__file__).with_name("pool_run.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_job):
    """Motion for a job of some seconds, one unit a clip."""
    return write_job(tmp_path_factory.mktemp("pools"), 24, 3)


def run_in_two_gpus(corpus, output, *settings):
    words = [corpus / "motion", output, corpus / "codec.safetensors", *settings]
    command = [sys.executable, str(RUN), *(str(word) for word in words)]
    environment = {**os.environ, "PYTHONPATH": str(RUN.parents[2])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_pool_grows_on_shared_gpus_and_gives_them_back(corpus, tmp_path):
    sets = ["run.workers=4", "run.min_workers=1", "run.gpus_per_worker=0.5"]
    sets += ["export.windows_per_shard=1", "export.formats=[parquet,webdataset]"]
    ended = run_in_two_gpus(corpus, tmp_path / "o", *sets)  # many shards: time to see what is free meanwhile
    assert ended["code"] == 0, ended["said"]
    working = [sample for sample in ended["samples"] if sample["tokenizers"]]
    assert min(sample["tokenizers"] for sample in working) == 1
    assert 2 <= max(sample["tokenizers"] for sample in working) <= 4
    assert min(sample["free_gpus"] for sample in working) <= 1.0
    held = [number for number, sample in enumerate(ended["samples"]) if sample["free_gpus"] < 2]
    after = ended["samples"][held[-1] + 1 :]
    assert any(not sample["is_published"] for sample in after)  # given back while shards are built


@pytest.mark.slow
def test_workers_without_a_place_end_with_a_word(corpus, tmp_path):
    ended = run_in_two_gpus(
        corpus, tmp_path / "o", "run.workers=3", "run.gpus_per_worker=1", "run.wait_for_resources_s=3"
    )
    assert ended["code"] == 75
    said = " ".join(ended["said"].split())
    assert "3 workers of 1 GPU each did not stand within 3 s: the cluster has 2 GPU" in said
    assert "run.min_workers" in said


def test_gpus_that_are_asked_for_count_before_they_are_there(ray_local):
    run = load_config(None, ["run.gpus_per_worker=1", "run.workers=3", "run.wait_for_resources_s=2"]).run
    with open_session(run) as executor:
        assert executor.num_gpus == 3
        with pytest.raises(ResourcesError, match="of 1 GPU each did not stand within 2 s: the cluster has 0 GPU"):
            executor.numerics()


def test_a_cluster_without_gpus_computes_on_its_cpus(ray_local):
    with open_session(load_config(None).run) as executor:
        assert executor.num_gpus == 0
        assert executor.numerics().device.startswith("cpu")


@pytest.mark.parametrize(("mebibytes", "rows"), [(0, 16), (1, 16), (128, 16), (256, 8), (1024, 4)])
def test_gpus_are_handed_fewer_rows_ahead_where_they_are_large(mebibytes, rows):
    half = Unit("a", "", mebibytes << 19, ())
    assert gpu_calls_ahead([[half], [half, half]]) == rows


def stumble():
    raise ValueError("no error of ours")


class Stumbling:
    def build(self, task):
        raise ValueError(f"no error of ours: {task}")


def test_a_cluster_answers_in_a_worker(ray_local):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with open_session(load_config(None).run) as executor:
        assert executor.ask_worker(os.getpid) != os.getpid()
        assert list(executor.cpus_of_nodes) == [8.0]
        with pytest.raises(ValueError, match="no error of ours") as caught:
            executor.ask_worker(stumble)
        assert stop_behind(caught.value) is None


def test_an_error_that_is_not_ours_has_another_cause_than_itself(ray_local):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(ValueError, match="no error of ours: 7") as caught:
        list(build_with_ray([7], Stumbling()))
    assert caught.value.__cause__ is not caught.value


def hub_and_watch(observer, wait_for_resources_s):
    """A hub, and the watch over a graph of three tokenizers, of which two must stand; each look asks for nodes."""
    hub = start_hub(b"")
    asked = {
        "num_actors": 3,
        "min_actors": 2,
        "cpus_per_actor": 1.0,
        "gpus_per_actor": 0.0,
        "wait_for_resources_s": wait_for_resources_s,
    }
    progress = TokenizeProgress(observer, JobRecord(), StopSwitch())
    return hub, Watch(hub, progress, SimpleNamespace(**asked), nodes_interval_s=0)


def test_a_run_ends_where_too_few_tokenizers_stand_in_time(ray_local):
    hub, watch = hub_and_watch(JobObserver(), wait_for_resources_s=0.2)
    ray.get(hub.ready.remote("a"))
    time.sleep(0.3)
    with pytest.raises(ResourcesError, match=r"2 workers of 1 CPU each did not stand within 0\.2 s") as caught:
        watch.look()
    assert stop_behind(caught.value) is None
    ray.get(hub.ready.remote("a"))
    watch.look()


class Waiting(JobObserver):
    """Keeps how long it was told to wait."""

    def __init__(self):
        self.told = []

    def on_lost_tokenizers(self, limit_s):
        self.told.append(limit_s)


@pytest.fixture
def lost(ray_local):
    """Return a hub whose tokenizers were on lost nodes, the watch over it, and its observer."""
    observer = Waiting()
    hub, watch = hub_and_watch(observer, wait_for_resources_s=0.3)
    for gone in ("a", "b"):
        ray.get(hub.ready.remote(gone))
    return hub, watch, observer


def test_a_run_says_once_that_its_tokenizers_are_lost_and_ends(lost):
    hub, watch, observer = lost
    ray.get(hub.enter.remote("tokenize", 1, 1))
    for _ in range(3):
        watch.look()
    assert observer.told == [0.3]
    time.sleep(0.4)
    with pytest.raises(ResourcesError, match=r"the nodes of all tokenizers were lost, and 1 workers of 1 CPU"):
        watch.look()


def test_a_run_whose_tokenizers_are_lost_goes_on_where_one_stands_again(lost):
    hub, watch, observer = lost
    ray.get(hub.enter.remote("tokenize", 1, 1))
    watch.look()
    ray.get(hub.ready.remote(ray.nodes()[0]["NodeID"]))
    time.sleep(0.4)
    watch.look()
    watch.look()
    assert observer.told == [0.3]


def test_a_run_waits_while_anything_moves(lost):
    hub, watch, _ = lost
    ray.get(hub.enter.remote("tokenize", 1, 1))
    for run in range(4):
        watch.look()
        time.sleep(0.2)
        ray.get(hub.enter.remote("read", 2 + run, 1))
    watch.look()


def test_a_run_needs_no_tokenizers_where_all_is_tokenized(lost):
    hub, watch, observer = lost
    ray.get(hub.enter.remote("write", 1, 1))
    watch.look()
    time.sleep(0.4)
    watch.look()
    assert observer.told == []


@pytest.mark.parametrize("num_cpus", [1, 2, 3, 4, 8, 64])
def test_tokenizers_and_writers_leave_a_reader_its_place(num_cpus):
    for num_actors in range(1, num_cpus + 1):
        held = num_actors * cpu_share(num_cpus, num_actors) + num_writers(num_actors) * WRITER_CPUS
        assert held + READER_CPUS <= num_cpus
