"""The file of --json."""

from __future__ import annotations

import json

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
