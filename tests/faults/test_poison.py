"""A clip that kills its process, each time: found, dropped as `crashed`, and everything else arrives."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint
from pipeline.dataset.manifest import read_manifest
from pipeline.executors.executor import Executor
from pipeline.job.tokenize_job import JobControl, tokenize_dataset
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.settings.job_config import TokenizeRequest, load_config
from pipeline.stages.read import UnitReader
from pipeline.statistics.statistics_job import StatisticsObserver, StatisticsRequest, measure_motion
from pipeline.storage import Folder
from pipeline.verify.verify_dataset import verify_dataset

POISON = ("lethal", "table/7")


class LethalReader(UnitReader):
    """A reader that dies of some clips, as a faulty native decoder would."""

    def raw_clips(self, unit):
        for clip in super().raw_clips(unit):
            if clip.clip_id in POISON and not hasattr(clip, "reason"):
                os._exit(9)
            yield clip


def lethal(reader):
    return LethalReader(**{name: getattr(reader, name) for name in UnitReader.__dataclass_fields__})


@pytest.fixture
def executor(ray_local):
    from ray import cloudpickle

    from pipeline.executors.ray_graph import tokenize_with_ray
    from pipeline.executors.ray_statistics import measure_with_ray
    from pipeline.executors.ray_tasks import build_with_ray, survives_with_ray

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return Executor(
        name="ray",
        start=lambda: None,
        tokenize=lambda runs, stages, progress: tokenize_with_ray(
            runs, replace(stages, reader=lethal(stages.reader)), progress
        ),
        build=build_with_ray,
        measure=lambda runs, measurer, num_workers: measure_with_ray(
            runs, replace(measurer, reader=lethal(measurer.reader)), num_workers
        ),
        survives=lambda reader, unit: survives_with_ray(lethal(reader), unit),
        ask_worker=lambda ask: ask(),
        cpus_of_nodes=(8.0,),
        num_gpus=0.0,
    )


def test_a_clip_that_kills_its_process_is_found_and_dropped(executor, tmp_path):
    (tmp_path / "motion").mkdir()
    motions = [np.random.default_rng(n).normal(size=(30, 4)).astype(np.float32) for n in range(12)]
    for n in range(2):
        np.savez(tmp_path / "motion" / f"{'lethal' if n == 1 else f'clip{n}'}.npz", motion=motions[n], fps=25)
    column = pa.array([motion.tolist() for motion in motions[2:]], pa.list_(pa.list_(pa.float32(), 4)))
    table = pa.table({"clip_id": [f"table/{n}" for n in range(10)], "motion": column, "fps": [25.0] * 10})
    pq.write_table(table, tmp_path / "motion" / "table.parquet", row_group_size=5)
    config = BitwiseVAEConfig(motion_dim=4, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2)
    write_checkpoint(random_checkpoint(config, np.zeros(4), np.ones(4), 0), tmp_path / "codec.safetensors")
    output = Folder(str(tmp_path / "o"))
    settings = load_config(None, ["units.files=1000", "gate=off"])
    request = TokenizeRequest(
        (str(tmp_path / "motion"),), output.url, str(tmp_path / "codec.safetensors"), None, None, settings
    )
    control = JobControl("test", StopSwitch())
    manifest = tokenize_dataset(request, executor, JobObserver(), JobRecord(), control).manifest
    assert manifest.drops == {"crashed": 2}
    assert manifest.counts["clips"] == 10
    assert verify_dataset(output, read_manifest(output), lambda path: None).is_sound
    quarantine = pq.read_table(tmp_path / "o" / "quarantine.parquet").to_pylist()
    assert {(row["source"], row["where"]) for row in quarantine} == {("lethal.npz", ""), ("table.parquet", "from 7 on")}


def test_a_clip_that_kills_its_process_is_left_out_of_statistics(executor, tmp_path):
    motion = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for name in ("lethal", "other"):
        np.savez(tmp_path / f"{name}.npz", motion=motion, fps=25)
    request = StatisticsRequest((str(tmp_path),), None, load_config(None, ["units.files=1000"]))
    statistics = measure_motion(request, executor, StatisticsObserver())
    assert statistics.dropped == {"crashed": 1}
    assert (statistics.num_clips, statistics.num_frames) == (1, 30)
