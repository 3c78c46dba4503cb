"""The command plan: what it foretells, and that it writes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from jobs.session.session import open_session
from pipeline.estimate.job_plan import Asked, plan_job
from pipeline.job.request import prepare
from pipeline.job.tokenize_job import runs_of, stages_of
from pipeline.plan.plan import make_plan
from pipeline.run.observer import JobObserver
from pipeline.settings.job_config import TokenizeRequest, load_config


@pytest.fixture
def plan(command, tiny_corpus, tiny_codec, tmp_path):
    """Return a function that plans the small corpus and gives what it wrote for programs."""

    def run(*options: object, inputs: tuple[object, ...] = (tiny_corpus,)):
        sets = ("--set", "units.files=4", "--set", "run.report=false")
        outcome = command("plan", *inputs, "-c", tiny_codec, *sets, "--json", tmp_path / "plan.json", *options)
        assert outcome.code == 0, outcome.text
        return json.loads((tmp_path / "plan.json").read_text()), outcome.text

    return run


def test_plan_needs_no_output_and_counts_as_the_run_does(plan, command, tiny_corpus, tiny_codec, tmp_path):
    found, text = plan("--local")
    command("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, "--local", "--set", "units.files=4")
    manifest = json.loads((tmp_path / "o" / "dataset.json").read_text())
    assert found["windows_todo"] == found["windows"]["num_windows"] == manifest["counts"]["windows"]
    assert found["windows"]["drops"] == manifest["drops"]
    assert found["windows"]["num_clips"] == manifest["counts"]["clips"] + sum(manifest["drops"].values())
    assert found["windows"]["hours"] == pytest.approx(
        sum(part["hours"] for part in manifest["splits"].values()), abs=1e-6
    )
    assert found["plan"] == json.loads(next((tmp_path / "o").glob("runs/*/run.json")).read_text())["plan"]
    assert (found["probe"], found["forecast"]) == (None, None)
    assert "nothing: this was a dry run" in text


def test_plan_plans_for_the_cluster_that_is_named(tiny_corpus, tiny_codec):
    """In a process of its own: here a Ray may run."""
    words = ["plan", str(tiny_corpus), "-c", str(tiny_codec), "--address", "ray://head:10001"]
    ended = subprocess.run([sys.executable, "-m", "jobs.cli", *words], capture_output=True, text=True, check=False)
    assert (ended.returncode, "ray://head:10001" in ended.stderr) == (2, True)


def test_plan_counts_what_is_left_of_an_output(plan, command, tiny_corpus, tiny_codec, tmp_path):
    arguments = ("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, "--local", "--set", "units.files=4")
    assert command(*arguments).code == 0
    found, text = plan("--local", "--dataset", tmp_path / "o", "--probe", "1")
    assert (found["windows_todo"], found["probe"]) == (0, None)
    assert "nothing: every unit is tokenized" in text
    fragments = sorted((tmp_path / "o" / "_store").rglob("fragments/*/*.parquet"))
    fragments[0].unlink()
    before = sorted(path for path in (tmp_path / "o").rglob("*") if path.is_file())
    found, _ = plan("--local", "--dataset", tmp_path / "o", "--probe", "1")
    assert 0 < found["windows_todo"] < found["windows"]["num_windows"]
    assert found["probe"]["num_windows"] > 0
    assert sorted(path for path in (tmp_path / "o").rglob("*") if path.is_file()) == before


def test_plan_measures_where_tokenizers_would_work(ray_local, tiny_corpus, tiny_codec, tmp_path, monkeypatch):
    """As if on 16 pods of eight CPUs, from a head of two."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    asked = []
    config = load_config(None, ["units.files=1"])
    request = TokenizeRequest((str(tiny_corpus),), str(tmp_path / "o"), str(tiny_codec), None, None, config)
    with open_session(config.run) as executor:

        def ask(question):
            asked.append(question)
            return executor.ask_worker(question)

        elsewhere = replace(executor, ask_worker=ask, cpus_of_nodes=(0.0, *[8.0] * 16))
        planned = plan_job(request, elsewhere, JobObserver(), Asked(time.monotonic(), None, None))
        job = prepare(request, elsewhere)
    assert [question.args[0].num_threads for question in asked if isinstance(question, partial)] == [8]
    assert planned.estimate.costs.windows_per_s > 0
    threads = {num: stages_of(job, elsewhere, num).tokenizer.num_threads for num in (1, 15, 60)}
    assert threads == {1: 8, 15: 8, 60: 2}


@pytest.mark.parametrize("num_gpus", [0.0, 1.0])
def test_rows_carry_as_much_as_is_configured(write_clips, tiny_codec, tmp_path, num_gpus):
    motion = write_clips(tmp_path / "motion", {f"clip{n:02}": 500 for n in range(64)})
    rows = {}
    for row_bytes in (1, 50_000, 1 << 30):
        config = load_config(None, ["units.files=1", f"run.row_bytes={row_bytes}", "run.local=true"])
        request = TokenizeRequest((str(motion),), str(tmp_path / "o"), str(tiny_codec), None, None, config)
        with open_session(config.run) as executor:
            job = prepare(request, executor)
            units = make_plan(job.roots, job.contract.corpus).units
            rows[row_bytes] = len(runs_of(job, units, replace(executor, num_gpus=num_gpus), 1))
    assert len(units) == rows[1] == 64
    assert 4 <= rows[1 << 30] <= 5 < rows[50_000] < 64


@pytest.mark.parametrize("local", [("--local",), ()])
def test_plan_probes_the_real_stages_and_keeps_nothing(plan, ray_local, tmp_path, local):
    found, text = plan(*local, "--probe", "60", "--dataset", tmp_path / "o", "--max-runtime", "1h")
    probe, forecast = found["probe"], found["forecast"]
    assert probe["executor"] == ("local" if local else "ray")
    assert probe["windows_per_s"] > 0
    assert forecast["wall_s"] == pytest.approx(sum(forecast["seconds"].values()))
    assert forecast["holds"] is True
    assert "deadline holds" in text
    assert not (tmp_path / "o").exists()


def test_plan_says_that_a_deadline_does_not_hold(plan):
    found, text = plan("--local", "--probe", "1", "--max-runtime", "0.001")
    assert found["forecast"]["holds"] is False
    assert "does not hold" in text
    assert "--probe 60 says whether it holds" in plan("--local", "--deadline", "06:00")[1]


def test_plan_ends_a_probe_in_the_middle_of_a_task(command, tmp_path):
    folder = tmp_path / "motion"
    folder.mkdir()
    for n in range(2):
        motion = np.random.default_rng(n).normal(size=(10_000, 106)).cumsum(axis=0).astype(np.float32) / 1000
        np.savez(folder / f"{n}.npz", motion=motion, fps=25.0)
    options = ("--local", "--probe", "1", "--stride", "5", "--json", tmp_path / "plan.json")
    outcome = command("plan", folder, "-c", "demo", *options, "--set", "input.max_abs_z=null")
    assert outcome.code == 0, outcome.text
    found = json.loads((tmp_path / "plan.json").read_text())
    assert 0 < found["probe"]["num_windows"] < found["windows_todo"] / 2


def test_plan_names_problems_of_the_listing(plan, tiny_corpus, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "empty.npz").touch()
    (tmp_path / "more" / "notes.txt").touch()
    _, text = plan("--local", inputs=(f"a={tiny_corpus}", f"b={tmp_path}/more", f"c={tiny_corpus}/b"))
    assert "2 files are skipped" in text
    assert "1 files are empty (empty.npz)" in text
    assert "11 files are in two inputs" in text


def test_plan_refuses_what_tokenize_refuses(command, tiny_codec, tmp_path):
    outcome = command("plan", tmp_path / "nowhere", "-c", tiny_codec)
    assert (outcome.code, "nowhere" in outcome.text) == (2, True)
