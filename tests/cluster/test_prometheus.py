"""A run can be scraped, on a cluster too; every query of the Grafana dashboard has an answer from a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "jobs" / "deploy" / "grafana_dashboard.json").read_text())
CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: ray
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def free_port() -> int:
    with socket.socket() as at:
        at.bind(("127.0.0.1", 0))
        return int(at.getsockname()[1])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Motion of 2,400 windows, with clips that are too short beside it."""
    folder = tmp_path / "motion"
    folder.mkdir()
    for n in range(12):
        steps = np.random.default_rng(n).normal(size=(5000, 106))
        np.savez(folder / f"clip{n:02}.npz", motion=(steps.cumsum(axis=0) / 100).astype(np.float32), fps=25.0)
        np.savez(folder / f"short{n:02}.npz", motion=np.zeros((9, 106), np.float32), fps=25.0)
    return folder


@pytest.fixture
def prometheus(tmp_path: Path):
    """Return the address of a Prometheus, and the port that it scrapes."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no Prometheus here: apt-get install prometheus")
    scraped, port = free_port(), free_port()
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(port=scraped))
    words = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/series"]
    log = (tmp_path / "prometheus.log").open("w")
    process = subprocess.Popen([*words, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}", scraped
    process.terminate()
    process.wait()
    log.close()


def answer(address: str, query: str) -> list:
    place = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(place, timeout=5) as reply:
            found = json.load(reply)
    except OSError as error:
        if getattr(error, "code", None) == 400:
            raise
        return []  # it is only starting
    assert found["status"] == "success", found
    return found["data"]["result"]


def lose_a_tokenizer(run: subprocess.Popen) -> bool:
    """Kill the first tokenizer that is found at work; return whether there was one."""
    for process in psutil.Process(run.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()[:1]).startswith("ray::MapWorker(MapBatches(HostedTokenizer)"):
                process.kill()
                return True
    return False


def dashboard_queries() -> list[str]:
    """Every query of the dashboard, its variables filled in as Grafana does for "All"."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for name, value in {"$__rate_interval": "15s", "$output": ".*", "$run_id": ".*"}.items():
        queries = [query.replace(name, value) for query in queries]
    assert not any("$" in query for query in queries)
    return queries


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_cluster_counts_a_run_at_its_address(nodes, write_job, tmp_path):
    """By its own port, without a word in the configuration. One that was submitted: test_submit.py."""
    place = write_job(tmp_path, 12, 3)
    inputs = ["tokenize", str(place / "motion"), str(place / "o"), "-c", str(place / "codec.safetensors")]
    sets = ["units.files=1", "gate=off", "run.report=false", "run.workers=1"]
    words = [*inputs, *(f"--set={item}" for item in sets)]
    words += ["--address", nodes.gcs]
    with (tmp_path / "run.log").open("w") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *words], env=nodes.environment, stdout=log, stderr=subprocess.STDOUT
        )
        names = set()
        while run.poll() is None:
            names |= nodes.counted(place / "o")
            time.sleep(0.5)
    assert run.returncode == 0, (tmp_path / "run.log").read_text()
    assert {"windows_total", "units_total", "units_in_flight", "stage"} <= names


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prometheus_answers_every_query_of_the_dashboard_during_a_run(corpus, prometheus, tmp_path):
    address, scraped = prometheus
    sets = [
        "gate=off",
        "run.report=false",
        "units.files=1",
        "export.windows_per_shard=10",
        f"run.metrics_port={scraped}",
    ]
    words = [sys.executable, "-m", "jobs.cli", "tokenize", str(corpus), str(tmp_path / "o")]
    words += ["-c", "demo", "--stride", "25", "--max-runtime", "1h", *(f"--set={item}" for item in sets)]
    environment = {**os.environ, "RAY_metrics_report_interval_ms": "1000", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    with (tmp_path / "run.log").open("w") as log:
        run = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
        answered: dict[str, list] = {}
        is_lost = False
        try:
            while run.poll() is None:
                if not is_lost and answer(address, "ray_motion_tokens_windows_total > 0"):
                    is_lost = lose_a_tokenizer(run)
                for query in dashboard_queries():
                    if query not in answered and (found := answer(address, query)):
                        answered[query] = found
                time.sleep(0.5)
        finally:
            run.kill()
    assert run.returncode == 0, (tmp_path / "run.log").read_text()
    assert [query for query in dashboard_queries() if query not in answered] == []
    reasons = {
        sample["metric"]["reason"] for query, found in answered.items() if "by (reason)" in query for sample in found
    }
    assert reasons == {"too_short"}
    (record,) = (tmp_path / "o").glob("runs/*/run.json")
    run_id = json.loads(record.read_text())["run_id"]
    counted = answer(address, f'max_over_time(ray_motion_tokens_windows_total{{run_id="{run_id}"}}[5m])')
    counts = json.loads(record.read_text())["counts"]
    assert float(counted[0]["value"][1]) >= counts["windows"]  # those that were lost in work count twice
    retried = answer(address, f'max_over_time(ray_motion_tokens_retries_total{{run_id="{run_id}", kind="task"}}[5m])')
    assert float(retried[0]["value"][1]) == counts["task_retries"] > 0
