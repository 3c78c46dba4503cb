"""Every state that a killed run can leave: killed before each of its operations, the same command ends well."""

from __future__ import annotations

import pytest
from histories import KINDS, BrokenError, Command, History, Move, failure_of, told
from world import Killed

TO_THE_END = Move("steps", amount=3000)
TOKENIZE = Command("tokenize")
STANDING = [Move("start", command=TOKENIZE), TO_THE_END]
BROKEN, MENDED = [Move("input"), Move("input")], [Move("input")]

COMMANDS = {
    "a first run": ([], TOKENIZE),
    "a shuffled first run": ([], Command("tokenize", "global")),
    "a run over other input": ([*STANDING, Move("input")], TOKENIZE),
    "a run with other windows": (STANDING, Command("tokenize", restart=True)),
    "an export in place": (STANDING, Command("export", "global")),
    "an export elsewhere": (STANDING, Command("export_elsewhere")),
    "a replay": ([*BROKEN, *STANDING], Command("replay")),
    "cleaning": ([*STANDING, Move("start", command=Command("tokenize", "global")), TO_THE_END], Command("clean")),
}


QUICK = ("a first run", "an export in place", "cleaning")


def number_after(before):
    """Return the number of the process that starts next."""
    return sum(move.kind == "start" for move in before) + 1


def num_operations(corpus, kind, before, command):
    """Return how many operations a command does when nobody disturbs it."""
    history = History(corpus, kind, [*before, Move("start", command=command), TO_THE_END])
    history.play()
    number = number_after(before)
    told_of = [line for line in history.said if f"run{number} does" in line]
    return int(told_of[0].split(" does ")[1].split()[0])


def play(corpus, kind, moves, number):
    """Play a history in which a run is killed and started again; the second must end with 0."""
    error, history = failure_of(corpus, kind, moves)
    assert error is None, told(history, error)
    again = history.world.processes[f"run{number + 1}"]
    assert again.error is None, told(history, BrokenError(repr(again.error)))
    return history


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if name in QUICK and kind == "disk" else [pytest.mark.slow])
        for name in COMMANDS
        for kind in KINDS
    ],
)
def test_the_same_command_ends_well_wherever_it_was_killed(corpus, name, kind):
    before, command = COMMANDS[name]
    number = number_after(before)
    total = num_operations(corpus, kind, before, command)
    num_killed = 0
    for count in range(total):
        killed = [Move("start", command=command), Move("steps", amount=count), Move("kill")]
        history = play(corpus, kind, [*before, *killed, Move("start", command=command), TO_THE_END], number)
        num_killed += isinstance(history.world.processes[f"run{number}"].error, Killed)
    assert num_killed == total


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a first run", "a shuffled first run", "an export in place"])
def test_the_same_command_ends_well_wherever_the_disk_was_full(corpus, name):
    before, command = COMMANDS[name]
    number = number_after(before)
    for count in range(num_operations(corpus, "disk", before, command)):
        full = [Move("start", command=command), Move("steps", amount=count), Move("fault", amount=1, word="full")]
        play(corpus, "disk", [*before, *full, TO_THE_END, Move("start", command=command), TO_THE_END], number)


@pytest.mark.slow
def test_a_killed_run_then_no_clip_may_be_dropped_then_the_input_is_mended(corpus):
    for count in range(num_operations(corpus, "disk", BROKEN, TOKENIZE)):
        killed = [Move("start", command=TOKENIZE), Move("steps", amount=count), Move("kill")]
        strict = [Move("start", command=Command("tokenize", is_strict=True)), TO_THE_END]
        error, history = failure_of(corpus, "disk", [*BROKEN, *killed, *strict, *MENDED])
        assert error is None, told(history, error)
