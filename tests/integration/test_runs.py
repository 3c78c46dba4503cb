"""Time limits, several runs on one output, and a dataset that takes another's place."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import pytest
import torch

from bitwise_vae.inference.encoder import WindowEncoder
from pipeline.run.ownership import HEARTBEAT_PATH, heartbeat_here
from pipeline.storage import Folder


@pytest.fixture
def arguments(tiny_corpus, tiny_codec, tmp_path):
    sets = ("--set", "units.files=1", "--set", "export.windows_per_shard=60")
    sets += ("--set", "gate=off", "--set", "run.report=false")  # also where another process runs it
    return ("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, *sets, "--local")


@pytest.fixture
def reference(command, arguments, tools, tmp_path):
    elsewhere = (*arguments[:2], tmp_path / "reference", *arguments[3:])
    assert command(*elsewhere).code == 0
    return tools.tree_of(tmp_path / "reference")


@pytest.mark.parametrize("limit", [("--max-runtime", "0s"), ("--set", "run.max_runtime=0.0s")])
def test_a_run_whose_time_is_over_exits_75_and_continues(command, arguments, tools, reference, tmp_path, limit):
    outcome = command(*arguments, *limit)
    assert outcome.code == 75, outcome.text
    assert "continues" in outcome.text
    assert not (tmp_path / "o" / "dataset.json").exists()
    assert command(*arguments).code == 0
    assert tools.tree_of(tmp_path / "o") == reference


def test_limits_that_cannot_be_are_refused(command, arguments, tmp_path):
    for limit in (("--deadline", "25:61"), ("--max-runtime", "soon"), ("--deadline", "2020-01-01T00:00")):
        outcome = command(*arguments, *limit)
        assert outcome.code == 2, outcome.text
    assert not (tmp_path / "o").exists()


def write_heartbeat(output, **changes):
    Folder(str(output)).publish(HEARTBEAT_PATH, replace(heartbeat_here("other"), **changes).to_bytes())


def test_a_second_run_leaves_where_it_is_told_to(command, arguments, tmp_path):
    write_heartbeat(tmp_path / "o")
    outcome = command(*arguments, "--set", "run.when_active=leave")
    assert (outcome.code, "other" in outcome.text) == (75, True)
    assert "run.when_active=take_over" in outcome.text
    assert command(*arguments, "--set", "run.when_active=take_over").code == 0
    assert not (tmp_path / "o" / HEARTBEAT_PATH).exists()


def test_a_second_run_takes_over_from_the_dead_at_once(command, arguments, tmp_path):
    write_heartbeat(tmp_path / "o", pid=2**22 + 1, process_start="1")
    assert command(*arguments).code == 0


def test_a_second_run_waits_and_finds_the_work_done(command, arguments, tools, reference, tmp_path):
    write_heartbeat(tmp_path / "o")

    def finish():
        time.sleep(1.5)
        for path in (tmp_path / "reference").rglob("*"):
            target = tmp_path / "o" / path.relative_to(tmp_path / "reference")
            if path.is_file() and "runs" not in path.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        (tmp_path / "o" / HEARTBEAT_PATH).unlink()

    other = threading.Thread(target=finish)
    other.start()
    outcome = command(*arguments)
    other.join()
    assert outcome.code == 0, outcome.text
    assert "waiting" in outcome.text
    assert "already complete" in outcome.text
    assert tools.tree_of(tmp_path / "o") == reference


def test_runs_at_once_end_in_the_same_bytes(arguments, tools, reference, tmp_path):
    """Four processes that all take over: whatever the interleaving, one dataset."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments), "--set", "run.when_active=take_over"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(4)
    ]
    codes = [run.wait() for run in runs if run.communicate() is not None]
    assert set(codes) <= {0, 75}
    assert 0 in codes
    assert tools.tree_of(tmp_path / "o") == reference


def test_restart_puts_another_dataset_in_its_place(command, arguments, tools, reference, tmp_path):
    assert command(*arguments).code == 0
    other = (*arguments, "--stride", "3")
    outcome = command(*other)
    assert (outcome.code, "corpus.window.stride" in outcome.text, "--restart" in outcome.text) == (2, True, True)
    assert command(*other, "--restart").code == 0
    assert command("verify", tmp_path / "o").code == 0
    assert len(list((tmp_path / "o" / "_store").iterdir())) == 2
    assert "already complete" in command(*other).text
    assert command(*arguments).code == 2
    assert command(*arguments, "--restart").code == 0
    before = {name: data for name, data in reference.items() if not name.startswith("versions/")}
    after = tools.tree_of(tmp_path / "o")
    assert {name: after[name] for name in before} == before


def test_a_device_without_memory_for_a_batch_ends_resumable(
    command, arguments, tools, reference, tmp_path, monkeypatch
):
    def full(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(WindowEncoder, "encode", full)
        outcome = command(*arguments)
    assert (outcome.code, "no memory for a batch of 32 windows" in outcome.text) == (75, True), outcome.text
    assert command(*arguments).code == 0
    assert tools.tree_of(tmp_path / "o") == reference
