"""The suite export: shards of fragments that no model made, verified before a time counts."""

from __future__ import annotations

import pytest

from jobs.bench.measure_export import export_store, make_store, measure_export, require_sound
from jobs.bench.result import BenchRequest
from jobs.session.session import open_session
from pipeline.errors import DataError
from pipeline.settings.job_config import load_config
from pipeline.storage import Folder


def test_measure_export_writes_and_verifies_every_window() -> None:
    steps: list[str] = []
    request = BenchRequest(500, 2, load_config(None, ["run.local=true"]))
    export, verify = measure_export(request, lambda step, *_: steps.append(step), unit_windows=100)
    assert [result.unit for result in (export, verify)] == ["windows/s"] * 2
    assert (len(export.runs), len(export.baseline_runs), len(verify.baseline_runs)) == (2, 2, 2)
    assert export.details["windows"] == 500
    assert export.details["shard_bytes"] > 500 * (1448 + 4096)
    assert steps[0] == "making fragments"
    assert steps[-1] == "done"


def test_require_sound_finds_a_dataset_of_other_windows(tmp_path) -> None:
    config = load_config(None, ["run.local=true"])
    made = make_store(Folder(str(tmp_path)), 60, config)
    with open_session(config.run) as executor:
        manifest = export_store(made, config, executor)
    require_sound(made.output, manifest, 60)
    with pytest.raises(DataError, match="60 of 61 windows, 0 findings"):
        require_sound(made.output, manifest, 61)
    shard = manifest.shards["webdataset"][0]
    data = bytearray(made.output.read(shard.path))
    data[1000] ^= 1
    made.output.publish(shard.path, bytes(data))
    with pytest.raises(DataError, match=r"first: webdataset/.* altered"):
        require_sound(made.output, manifest, 60)
