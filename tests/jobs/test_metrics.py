"""Names of metrics, and the dashboard that draws them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from jobs.metrics import COUNTERS, GAUGES, PREFIX, MetricsObserver

ROOT = Path(__file__).resolve().parents[2]
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


def test_observer_without_ray_counts_nothing(monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "ray", raising=False)
    observer = MetricsObserver("r", "o", None)
    with observer.kept_alive():
        observer.on_stage("plan")
        observer.on_windows(3)
    assert observer._instruments == {}
