"""Five hundred histories of commands on one output, drawn from seeds; `make simulate` plays ten thousand."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from histories import KINDS, BrokenError, Command, History, Move, draw_moves, failure_of, shrink, told

SEEDS = range(int(os.environ.get("FIRST_SEED", "0")), int(os.environ.get("SEEDS", "500")))
PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_that_was_published_is_undone_in_any_history(corpus, part):
    for seed in SEEDS[part::PARTS]:
        kind, moves = draw_moves(seed)
        error, _ = failure_of(corpus, kind, moves)
        if error is not None:
            shorter = shrink(corpus, kind, moves)
            error, history = failure_of(corpus, kind, shorter)
            pytest.fail(f"seed {seed}, {len(shorter)} moves\n{told(history, error)}")


def test_a_history_replays_exactly(corpus):
    for seed in range(20):
        kind, moves = draw_moves(seed)
        assert failure_of(corpus, kind, moves)[1].said == failure_of(corpus, kind, moves)[1].said


def test_a_broken_history_is_found_shrunk_and_told(corpus, monkeypatch):
    """A history in which somebody publishes an older input over a newer one."""
    moves = [
        Move("start", command=Command("tokenize")),
        Move("steps", amount=3000),
        Move("wait", amount=30),
        Move("input"),
        Move("start", command=Command("tokenize")),
        Move("steps", amount=3000),
    ]
    assert failure_of(corpus, "disk", moves)[0] is None
    check = History._check

    def refuse_newer(self, path, name):
        check(self, path, name)
        if path == "o/dataset.json" and self.input:
            raise BrokenError("planted")

    monkeypatch.setattr(History, "_check", refuse_newer)
    shorter = shrink(corpus, "disk", moves)
    error, history = failure_of(corpus, "disk", shorter)
    assert [move.kind for move in shorter] == ["input"]
    text = told(history, error)
    assert "On a local disk:" in text
    assert "starts: tokenize" in text
    assert text.endswith("Then: planted")


TOKENIZE, SHUFFLE = Command("tokenize"), Command("tokenize", "global")
MET = {
    "a run that was taken over writes its dealt rows over the newer run's": [
        Move("start", command=SHUFFLE),
        Move("to", word="write o/_store/shuffle/"),
        Move("pause"),
        Move("input"),
        Move("start", command=replace(SHUFFLE, when_active="take_over")),
        Move("to", number=1, word="read o/_store/shuffle/"),
        Move("steps", amount=2),
        Move("steps", number=1, amount=3000),
    ],
    "a killed export, then no clip may be dropped, then the input is mended": [
        Move("input"),
        Move("input"),
        Move("start", command=TOKENIZE),
        Move("to", word="versions/"),
        Move("kill"),
        Move("start", command=replace(TOKENIZE, is_strict=True)),
        Move("steps", amount=3000),
        Move("input"),
    ],
    "a run with nothing to do looks for stale lists while another publishes": [
        Move("start", command=TOKENIZE),
        Move("steps", amount=3000),
        Move("start", command=TOKENIZE),
        Move("to", word="look at o/index/windows.parquet"),
        Move("start", command=SHUFFLE),
        Move("to", number=1, word="write o/webdataset/train/shards.txt"),
        Move("steps", amount=3000),
        Move("steps", amount=3000),
    ],
    "a run is paused between its look and its write, and another takes over": [
        Move("start", command=TOKENIZE),
        Move("to", word="write o/dataset.json"),
        Move("pause"),
        Move("input"),
        Move("start", command=replace(TOKENIZE, when_active="take_over")),
        Move("steps", number=1, amount=3000),
        Move("steps", amount=3000),
        Move("steps", amount=3000),
    ],
    "a first run of other numerics dies, and another had looked before": [
        Move("start", command=TOKENIZE),
        Move("to", word="active.json"),
        Move("start", command=replace(TOKENIZE, numerics="b")),
        Move("to", number=1, word="fragments/"),
        Move("steps", number=1, amount=6),
        Move("kill", number=1),
        Move("steps", amount=3000),
    ],
    "a run beats while it ends the uploads of others": [
        Move("start", command=replace(TOKENIZE, when_active="take_over")),
        Move("to", word="end uploads"),
        Move("start", command=replace(TOKENIZE, place=("far", "1"))),
        Move("steps", number=1, amount=3000),
        Move("steps", amount=3000),
    ],
    "a run that is taken over at its end releases nothing": [
        Move("start", command=TOKENIZE),
        Move("to", word="write o/dataset.json"),
        Move("to", word="look at o/index"),
        Move("to", word="read o/runs/active.json"),
        Move("steps", amount=1),
        Move("input"),
        Move("start", command=replace(TOKENIZE, when_active="take_over")),
        Move("steps", number=1, amount=60),
        Move("steps", amount=3000),
    ],
    "two first runs of other numerics": [
        Move("start", command=TOKENIZE),
        Move("to", word="_store"),
        Move("start", command=replace(TOKENIZE, numerics="b", when_active="take_over")),
        Move("steps", number=1, amount=30),
        Move("steps", amount=3000),
        Move("steps", amount=3000),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MET)
def test_a_history_that_was_met_ends_well(corpus, name, kind):
    error, history = failure_of(corpus, kind, MET[name])
    assert error is None, told(history, error)
