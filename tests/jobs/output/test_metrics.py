"""Names of metrics, and the dashboard that draws them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.output.metrics import COUNTERS, GAUGES, PREFIX, MetricsObserver

ROOT = Path(__file__).resolve().parents[3]
DASHBOARD = json.loads((ROOT / "jobs" / "deploy" / "grafana_dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_names_follow_the_conventions_of_prometheus():
    assert all(name.endswith("_total") for name in COUNTERS)
    assert not any(name.endswith("_total") for name in GAUGES)
    for name in (*COUNTERS, *GAUGES):
        assert re.fullmatch(r"[a-z_]+", name), name
        bare = name.removesuffix("_total")
        for unit in ("seconds", "bytes"):
            assert unit not in bare or bare.endswith(f"_{unit}"), name


def test_the_dashboard_draws_every_metric_and_no_other():
    drawn = {name for text in EXPRESSIONS for name in re.findall(rf"ray_{PREFIX}(\w+)", text)}
    assert drawn == {*COUNTERS, *GAUGES}


def test_the_dashboard_groups_by_labels_that_there_are():
    labels = {"run_id", "output"} | {label for _, own in (*COUNTERS.values(), *GAUGES.values()) for label in own}
    for text in EXPRESSIONS:
        grouped = {label for group in re.findall(r"by \(([^)]+)\)", text) for label in group.split(", ")}
        assert grouped <= labels, text


def test_the_dashboard_has_panels_of_its_own_place():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= taken


def test_operations_page_explains_every_metric():
    text = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(rf"^\| `ray_{PREFIX}(\w+)`", text, re.MULTILINE)) == {*COUNTERS, *GAUGES}


def stage_series(stage: str, values: str) -> dict[str, str]:
    return {"series": f'ray_{PREFIX}stage{{run_id="r", stage="{stage}"}}', "values": values}


@pytest.mark.parametrize(
    ("stages", "windows", "is_stalled"),
    [
        ({"workers": "1x20"}, None, True),
        ({"workers": "1x2 0x18", "tokenize": "_x2 1x18"}, None, True),
        ({"tokenize": "1x20"}, "0+50x20", False),
        ({"tokenize": "1x20"}, "0+50x5 250x15", True),
        ({"tokenize": "1x20"}, "_x15 50x5", False),  # born a few minutes ago
        ({"plan": "1x15 0x5", "workers": "_x15 1x5"}, None, False),
        ({"tokenize": "1x15 0x5", "export": "_x15 1x5"}, "0+50x5 250x15", False),
    ],
)
def test_the_alert_of_the_operations_page_finds_runs_that_stall(tmp_path, stages, windows, is_stalled):
    """By Prometheus itself: twenty minutes of samples, a minute each."""
    if shutil.which("promtool") is None:
        pytest.skip("no Prometheus here: apt-get install prometheus")
    text = (ROOT / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"Worth an alert:\n\n```\n(.+?)\n```", text, re.DOTALL)
    series = [stage_series(stage, values) for stage, values in stages.items()]
    if windows:
        series.append({"series": f'ray_{PREFIX}windows_total{{run_id="r"}}', "values": windows})
    fires = [{"labels": '{run_id="r"}', "value": 1}] if is_stalled else []
    question = {"expr": block.partition("\n")[2], "eval_time": "20m", "exp_samples": fires}
    rules = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [question]}]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(rules))
    told = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_observer_without_ray_counts_nothing(monkeypatch):
    from ray.util import metrics

    made = []
    monkeypatch.setattr(metrics, "Counter", lambda name, **_: made.append(name))
    monkeypatch.setattr(metrics, "Gauge", lambda name, **_: made.append(name))
    monkeypatch.delitem(sys.modules, "ray")
    observer = MetricsObserver("r", "o", None)
    with observer.kept_alive():
        observer.on_stage("plan")
        observer.on_windows(3)
    assert made == []
