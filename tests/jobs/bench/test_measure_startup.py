"""The suite startup: the real command, watched until its first fragment stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwise_vae.config import BitwiseVAEConfig
from jobs.bench.measure_pipeline import make_data
from jobs.bench.measure_startup import measure_startup, run_command
from jobs.bench.result import BenchRequest
from pipeline.errors import DataError
from pipeline.settings.job_config import load_config
from pipeline.storage import Folder

CODEC = BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=2)


def test_measure_startup_times_the_first_fragment_and_the_end() -> None:
    sides = (("--local",), ("--local", "--stride", "100"))
    steps: list[str] = []
    request = BenchRequest(4, 1, load_config(None, []), CODEC)
    first, whole = measure_startup(request, lambda step, *_: steps.append(step), sides=sides)
    assert 0 < first.median < whole.median
    assert (first.unit, len(first.runs), len(first.baseline_runs)) == ("s", 1, 1)
    assert first.details["windows"] == 4
    assert first.details["stages_s"][0]["plan"] > 0
    assert steps[-1] == "done"


def test_run_command_reports_a_command_that_fails(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"exit code 2: (?s:.*)no file"):
        run_command(["tokenize", str(tmp_path / "missing"), str(tmp_path / "out"), "-c", "demo"], tmp_path / "out", 4)


def test_run_command_finds_windows_that_are_missing(tmp_path: Path) -> None:
    data = make_data(Folder(str(tmp_path / "data")), 4, CODEC)
    command = ["tokenize", data.folder.url_of("motion"), str(tmp_path / "out"), "-c", data.checkpoint, "--local"]
    with pytest.raises(DataError, match="wanted 5 windows, the command wrote 4"):
        run_command(command, tmp_path / "out", 5)
