"""The file of --json."""

from __future__ import annotations

import json
import os
import stat
import subprocess

import pytest

from jobs.output.json_file import write_json
from pipeline.errors import OutputError


def test_write_json_makes_its_folder(tmp_path):
    write_json(str(tmp_path / "new" / "a.json"), {"größe": [1, 2.5, None]})
    assert json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8")) == {"größe": [1, 2.5, None]}


@pytest.mark.parametrize("place", ["file/a.json", "folder"])
def test_write_json_refuses_a_place_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write"):
        write_json(str(tmp_path / place), {})


def test_write_json_writes_through_a_pipe_a_device_and_a_link(tmp_path):
    (tmp_path / "real.json").write_text("")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json(str(tmp_path / "link.json"), [1])
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text()) == [1]
    (tmp_path / "null").symlink_to("/dev/null")
    write_json(str(tmp_path / "null"), [2])
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_json(str(tmp_path / "pipe"), [3])
    assert json.loads(reader.communicate(timeout=10)[0]) == [3]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_write_json_to_a_full_device_cannot_be_written(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        write_json(str(tmp_path / "full"), [1])
