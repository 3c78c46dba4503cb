"""Seeded kills; `make campaign` runs a hundred."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parent))
    import campaign
    import campaign_harm

KILLS = [
    ("kill_group", "local", "local"),
    ("term", "local", "s3"),
    ("kill_actor", "ray", "local"),
]
SLOW_KILLS = [
    ("kill_group", "ray", "local"),
    ("kill_worker", "ray", "local"),
    ("term_group", "ray", "local"),  # in test_cli.py SIGTERM meets the driver alone
]


@pytest.fixture(scope="module")
def grounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    with campaign.grounds_for(campaign.make_corpus(folder / "corpus"), folder) as grounds:
        yield grounds


@pytest.mark.parametrize(
    ("number", "kill"),
    [
        pytest.param(number, kill, id="-".join(kill), marks=[pytest.mark.slow] * (kill in SLOW_KILLS))
        for number, kill in enumerate(KILLS + SLOW_KILLS)
    ],
)
def test_a_killed_run_ends_in_the_same_bytes(grounds, number, kill):
    chance = random.Random(number)
    files, extra_s = chance.randint(1, 18), chance.uniform(0, 0.5)
    again = "call" if kill[2] == "local" else "local"  # a call does not know the S3 server
    harm = campaign_harm.Harm(*kill, files=files, extra_s=extra_s, again=again, seed=number)
    result = campaign.run_trial(grounds, harm, f"trial{number}")
    assert result.is_same, result
    assert result.is_sound, result
    assert (result.lost_windows, result.doubled_windows) == (0, 0), result
    assert result.recomputed_units == 0, result
    assert result.is_exit_allowed, result
    assert result.is_good, result
    if harm.kind == "kill_actor":
        assert result.exits == (0,), "Ray starts killed actors again"


@pytest.mark.parametrize("kind", campaign_harm.KINDS)
def test_draw_harm_strikes_before_during_and_after_the_fragments(kind):
    drawn = [campaign_harm.draw_harm(kind, "s3", 40, random.Random(seed)) for seed in range(300)]
    only = campaign_harm.EXECUTOR_OF.get(kind)
    assert {harm.executor for harm in drawn} == ({only} if only else {"ray", "local"})
    during = sum(1 <= harm.files < campaign_harm.NUM_UNITS for harm in drawn)
    assert 0.6 < during / len(drawn) < 0.95
    assert any(harm.files == 0 for harm in drawn)
    assert all(harm.files < 40 for harm in drawn)
    assert all((1 <= harm.outage_s <= 20) == (kind == "s3_restart") for harm in drawn)
    assert all((1 <= harm.pause_s <= 20) == (kind == "pause") for harm in drawn)


def good_trial(kind, *exits, is_begun=True):
    harm = campaign_harm.Harm(kind, "ray", "local", files=1, extra_s=0.0)
    disturbed = campaign_harm.Disturbed(exits[0], 1.0, is_struck=True, victim="", stood=1, is_begun=is_begun)
    return campaign.Trial(harm, disturbed, exits, 12, 0, True, True, 0, 0, 0, 1.0)


@pytest.mark.parametrize(
    ("kind", "exits"),
    [
        ("kill_group", (-9, 0)),
        ("term", (143, 0)),
        ("term", (0,)),
        ("kill_worker", (75, 0)),
        ("s3_restart", (75, 75, 0)),
    ],
)
def test_a_trial_is_good_with_a_promised_exit_code(kind, exits):
    assert good_trial(kind, *exits).is_good


@pytest.mark.parametrize(
    ("kind", "exits"),
    [
        ("kill_actor", (1, 0)),
        ("term", (-15, 0)),
        ("kill_group", (75, 0)),
        ("term", (143, 1)),
        ("remove_node", (124, 0)),
    ],
)
def test_a_trial_is_bad_with_another_exit_code(kind, exits):
    assert not good_trial(kind, *exits).is_good


def test_a_trial_may_end_by_the_signal_itself_before_anything_stands():
    assert good_trial("term", -15, 0, is_begun=False).is_good


@pytest.mark.parametrize("wrong", ["lost_windows", "doubled_windows", "recomputed_units"])
def test_a_trial_is_bad_where_something_is_lost_or_done_twice(wrong):
    assert not replace(good_trial("term", 143, 0), **{wrong: 1}).is_good
