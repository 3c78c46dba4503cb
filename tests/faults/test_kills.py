"""Six seeded kills; `make campaign` runs a hundred."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("campaign", Path(__file__).with_name("campaign.py"))
campaign = importlib.util.module_from_spec(SPEC)
sys.modules["campaign"] = campaign
SPEC.loader.exec_module(campaign)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return campaign.make_corpus(tmp_path_factory.mktemp("campaign") / "corpus")


TRIALS = [
    ("kill_group", "local"),
    ("term", "local"),
    ("kill_group", "ray"),
    ("term", "ray"),
    ("kill_actor", "ray"),
    ("kill_worker", "ray"),
]


@pytest.mark.parametrize(("number", "trial"), list(enumerate(TRIALS)), ids=["-".join(trial) for trial in TRIALS])
def test_a_killed_run_ends_in_the_same_bytes(corpus, tmp_path, number, trial):
    kind, executor = trial
    after_s = random.Random(number).uniform(*((5, 12) if executor == "ray" else (2, 5)))
    result = campaign.run_trial(corpus, tmp_path / "tokens", kind, executor, after_s)
    assert result.is_same, result
    assert result.is_sound, result
    assert result.recomputed_units == 0, result
