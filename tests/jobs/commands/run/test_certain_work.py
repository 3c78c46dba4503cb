"""Whether a request will come to work, told by names alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from jobs.commands.run.certain_work import is_work_certain
from pipeline.run.observer import JobObserver
from pipeline.settings.job_config import TokenizeRequest, load_config


class Stages(JobObserver):
    def __init__(self):
        self.names = []

    def on_stage(self, name):
        self.names.append(name)


@pytest.fixture
def request_(tmp_path):
    (tmp_path / "motion").mkdir()
    (tmp_path / "motion" / "a.npz").write_bytes(b"")
    return TokenizeRequest((str(tmp_path / "motion"),), str(tmp_path / "o"), "demo", None, None, load_config(None))


def test_is_work_certain_where_nothing_is_published_and_all_is_there(request_):
    stages = Stages()
    assert is_work_certain(request_, stages)
    assert stages.names == ["session"]


@pytest.mark.parametrize(
    "inputs", ["motion/a.npz", "face=motion", "motion/*.npz", "motion/sub*/*.npz", "motion/?.npz", "by/lang=en"]
)
def test_is_work_certain_for_files_names_and_globs_in_a_folder(request_, tmp_path, monkeypatch, inputs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "by" / "lang=en").mkdir(parents=True)
    (tmp_path / "by" / "lang=en" / "a.npz").write_bytes(b"")
    assert is_work_certain(replace(request_, inputs=(inputs,)), JobObserver())


@pytest.mark.parametrize(
    "change", [{"inputs": ("motion", "missing")}, {"checkpoint": "missing.pt"}, {"checkpoint": "dem"}]
)
def test_is_work_certain_not_where_something_is_missing(request_, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    stages = Stages()
    assert not is_work_certain(replace(request_, **change), stages)
    assert stages.names == []


def test_is_work_certain_imports_neither_torch_nor_ray():
    program = "import sys; from jobs.commands.run import certain_work, tokenize_command"
    program += "; print({'torch', 'ray'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
