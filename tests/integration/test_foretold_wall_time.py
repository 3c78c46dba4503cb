"""Whether a job takes what `plan --probe` foretold: on an idle machine, with two minutes of work.

    python -m pytest -m slow tests/integration/test_foretold_wall_time.py -s -k ray

With FORECAST_MINUTES=10 before it, a longer job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bitwise_vae.config import BitwiseVAEConfig
from jobs.bench.data import make_data
from pipeline.storage import Folder

MINUTES = float(os.environ.get("FORECAST_MINUTES", "2"))
PROBE_S = min(60.0, 15 * MINUTES)
FIRST_WINDOWS, STRIDE = 400, 20
SETTINGS = (f"window.stride={STRIDE}", "units.files=1", "gate=warn")
"""Small units, as of many files; weights are random, and the gate looks at them all the same."""
TOLERANCE = 0.3


def run(*words: object) -> float:
    """Run a command on CPUs, in a process and with a Ray of its own, and return how long it took."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "jobs.cli", *(str(word) for word in words)]
    for setting in SETTINGS:
        command += ["--set", setting]
    began = time.monotonic()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return time.monotonic() - began


def planned(data: Folder, probe_s: float, *how: str) -> dict[str, Any]:
    """Probe a job on the motion of a folder and return what was foretold."""
    json_file = Path(data.url) / "plan.json"
    words = ("plan", data.url_of("motion"), "-c", data.url_of("codec.safetensors"), *how)
    run(*words, "--probe", probe_s, "--json", json_file)
    found: dict[str, Any] = json.loads(json_file.read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(60 * (6 * MINUTES + 20))
@pytest.mark.parametrize("how", [(), ("--local",)], ids=["ray", "local"])
def test_a_job_takes_what_was_foretold(tmp_path, capsys, how):
    codec = BitwiseVAEConfig()
    first, data = Folder(str(tmp_path / "first")), Folder(str(tmp_path / "data"))
    make_data(first, FIRST_WINDOWS, codec)
    windows_per_s = planned(first, PROBE_S / 2, *how)["probe"]["windows_per_s"]
    windows = 60 * MINUTES * windows_per_s
    make_data(data, max(10, round(windows * STRIDE / codec.window_frames)), codec)
    foretold = planned(data, PROBE_S, *how)
    words = ("tokenize", data.url_of("motion"), tmp_path / "o", "-c", data.url_of("codec.safetensors"), *how)
    took_s = run(*words)
    (record,) = ((json.loads(path.read_text())) for path in (tmp_path / "o").glob("runs/*/run.json"))
    with capsys.disabled():
        print(f"\nforetold {foretold['forecast']['wall_s']:.0f} s, took {took_s:.0f} s")
        print(f"foretold {_rounded(foretold['forecast']['seconds'])}\nhappened {_rounded(record['seconds'])}")
    assert record["counts"]["windows"] == pytest.approx(foretold["windows_todo"], rel=0.1)
    assert foretold["forecast"]["wall_s"] == pytest.approx(took_s, rel=TOLERANCE)


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in seconds.items()}
