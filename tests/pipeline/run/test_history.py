"""Runs from their run.json, each beside the one before."""

from __future__ import annotations

import json

import pytest

from pipeline.run.history import compare_runs, read_runs
from pipeline.run.ownership import HEARTBEAT_PATH
from pipeline.storage import Folder


def run(name: str, windows: int = 100, speed: float | None = 10.0, **more: object) -> dict[str, object]:
    return {"run_id": name, "counts": {"windows": windows, "clips": 98}, "windows_per_s": speed, **more}


def test_read_runs_returns_the_last_in_order_and_leaves_out_what_is_broken(tmp_path):
    for name, text in (("a", json.dumps(run("a"))), ("b", "{"), ("c", json.dumps(run("c"))), ("d", "[]")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(text)
    (tmp_path / HEARTBEAT_PATH).write_text("{}")
    assert [found["run_id"] for found in read_runs(Folder(str(tmp_path)), 10)] == ["a", "c"]
    assert [found["run_id"] for found in read_runs(Folder(str(tmp_path)), 2)] == ["c"]
    (tmp_path / "runs" / "d" / "run.json").write_text(json.dumps(run("d")))
    assert [found["run_id"] for found in read_runs(Folder(str(tmp_path)), 2)] == ["c", "d"]  # while another is active
    assert read_runs(Folder(str(tmp_path / "nowhere")), 10) == []


def test_compare_runs_compares_with_the_last_that_tokenized():
    runs = [run("a"), run("export", windows=0, speed=None), run("b", speed=5.0, drops={"too_short": 2})]
    first, exported, last = compare_runs(runs)
    assert (first.speed_ratio, first.changes) == (None, ())
    assert exported.speed_ratio is None
    assert last.speed_ratio == 0.5
    assert (last.drop_share, last.drop_share_before) == (pytest.approx(0.02), 0.0)


def test_compare_runs_names_what_changed_around_them():
    before = run("a", spec_id="x", versions={"torch": "2.6"}, hardware={"gpus": []})
    after = run("b", spec_id="y", versions={"torch": "2.7"}, hardware={"gpus": ["H100"]})
    changes = compare_runs([before, after])[1].changes
    assert changes == ("spec_id: x -> y", "versions.torch: 2.6 -> 2.7", "hardware.gpus: none -> ['H100']")
    assert compare_runs([before, before])[1].changes == ()


def test_compare_runs_measures_how_codes_moved():
    codes = [{"windows": 10, "tokens": [1], "ones": [[ones, 5]]} for ones in (5, 9)]
    _, last = compare_runs([run("a", codes=codes[0]), run("b", codes=codes[1])])
    assert last.drift is not None
    assert last.drift.mean == pytest.approx(0.2)
    assert last.described()["drift"]["largest"] == pytest.approx(0.4)
    assert compare_runs([run("a"), run("b", codes=codes[1])])[1].drift is None
