"""The kill campaign: a job is harmed at a random moment in a random way, run again, and compared byte for byte.

    python tests/faults/campaign.py --kills 100 --seed 0 --json out/campaign.json

Each trial starts the same command on a fresh output, does its harm, lets the command run again until it exits with
0, and then asks: are all promised files those of an undisturbed run; does `verify` find the dataset sound; is every
window there once; was no committed unit computed again; did each run end with a code that is promised for the harm.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from campaign_cluster import ThreeNodes
from campaign_harm import (
    ALLOWED_EXITS,
    EXECUTORS,
    KINDS,
    MARK,
    NUM_UNITS,
    PLACES,
    Disturbed,
    Harm,
    Pace,
    disturbed_run,
    draw_harm,
    end_leftovers,
    end_of,
    span_s,
    start,
    wait_for_moment,
)
from campaign_places import (
    RAY_ENVIRONMENT,
    Gateway,
    Place,
    local_place,
    num_fragments,
    s3_place,
    tree_of,
    units_computed,
    window_names,
    windows_in_index,
)
from typer.testing import CliRunner

from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint
from jobs.cli import app
from pipeline.dataset.manifest import read_manifest
from pipeline.storage import Folder
from pipeline.verify.verify_dataset import verify_dataset

MAX_RUNS = 5


@dataclass(frozen=True)
class Trial:
    """What was done to one run, and how it ended."""

    harm: Harm
    disturbed: Disturbed
    exits: tuple[int, ...]
    committed_units: int
    lost_in_flight: int | None
    """Units that the struck run had read, and that have no fragment; None where reading leaves no trace."""
    is_same: bool
    is_sound: bool
    lost_windows: int
    doubled_windows: int
    recomputed_units: int
    seconds: float

    @property
    def is_exit_allowed(self) -> bool:
        """Whether every run ended with a code that the documents promise for what was done to it."""
        first, *others = self.exits
        taker = self.disturbed.taker
        if taker is not None and taker.exit_code != 0:
            return False
        allowed = {0, *ALLOWED_EXITS[self.harm.kind]}
        if self.harm.kind.startswith("term") and not self.disturbed.is_begun:
            allowed.add(-15)  # before Python could set a handler
        return first in allowed and set(others) <= {0, 75} and self.exits[-1] == 0

    @property
    def is_good(self) -> bool:
        """Whether the promise held."""
        is_complete = self.is_same and self.is_sound and not (self.lost_windows or self.doubled_windows)
        return is_complete and self.recomputed_units == 0 and self.is_exit_allowed

    def as_line(self) -> str:
        """The trial in a line of JSON."""
        return json.dumps({"good": self.is_good, **asdict(self)})


@dataclass(frozen=True)
class Corpus:
    """Motion, codec, and the undisturbed dataset made from them."""

    folder: Path

    def command(self, place: Place, output: Folder, executor: str) -> list[str]:
        """The command under test."""
        command = [sys.executable, "-m", "jobs.cli", "tokenize", place.motion, output.url]
        command += ["-c", str(self.folder / "codec.safetensors"), "--set", "units.files=1"]
        command += ["--set", "export.windows_per_shard=60", "--set", "gate=off", "--set", "run.report=false"]
        how = {"local": ["--local"], "call": ["--local"], "ray": [], "cluster": ["--set", "run.workers=2"]}
        return command + how[executor]

    @cached_property
    def reference(self) -> dict[str, bytes]:
        """Every promised file of an undisturbed run."""
        return tree_of(Folder(str(self.folder / "reference")))

    @cached_property
    def num_windows(self) -> int:
        """How many windows it holds."""
        return windows_in_index(self.reference)


def make_corpus(folder: Path) -> Corpus:
    """Write motion for a job of a few seconds, and run it undisturbed."""
    (folder / "motion").mkdir(parents=True)
    for number in range(NUM_UNITS):
        motion = np.random.default_rng(number).normal(size=(500 + 20 * number, 106)).astype(np.float32)
        np.savez(folder / "motion" / f"clip{number:02}.npz", motion=motion, fps=25)
    config = BitwiseVAEConfig(hidden_dim=192, depth=2)
    write_checkpoint(random_checkpoint(config, np.zeros(106), np.ones(106), 0), folder / "codec.safetensors")
    corpus = Corpus(folder)
    place = local_place(folder / "motion", folder)
    subprocess.run(corpus.command(place, place.folder("reference"), "local"), check=True, capture_output=True)
    return corpus


class Grounds:
    """What trials need around them, each started when first asked for; `close` ends it all."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self._folder = corpus, folder
        self.place = cache(self._place)
        self.pace = cache(self._pace)

    @cached_property
    def gateway(self) -> Gateway:
        """The S3 server."""
        gateway = Gateway(self._folder / "s3")
        gateway.start()
        return gateway

    @cached_property
    def cluster(self) -> ThreeNodes:
        """The cluster; its workers know the S3 server."""
        return ThreeNodes({**RAY_ENVIRONMENT, **self.gateway.environment})

    def environment(self, harm: Harm) -> dict[str, str]:
        """What a run of a harm's executor needs at its place."""
        cluster = self.cluster.environment if harm.executor == "cluster" else {}
        return {**RAY_ENVIRONMENT, **self.place(harm.place).environment, **cluster}

    def command(self, harm: Harm, output: Folder) -> list[str]:
        """The command under test, as a harm's executor runs it."""
        return self.corpus.command(self.place(harm.place), output, harm.executor)

    def restore(self) -> None:
        """Bring back nodes that a trial took away."""
        if "cluster" in self.__dict__:
            self.cluster.fill()

    def close(self) -> None:
        """End what runs."""
        if "cluster" in self.__dict__:
            self.cluster.close()
        if "gateway" in self.__dict__:
            self.gateway.kill()

    def _place(self, name: str) -> Place:
        motion = self.corpus.folder / "motion"
        return s3_place(motion, self.gateway) if name == "s3" else local_place(motion, self._folder / "outputs")

    def _pace(self, executor: str, place: str) -> Pace:
        """Watch an undisturbed run."""
        at, output = self.place(place), self.place(place).folder(f"pace-{executor}")
        watch = Harm("none", executor, place, files=1, extra_s=0.0)
        begin = time.monotonic()
        mark = f"pace-{begin}"
        process = start(self.corpus.command(at, output, executor), {**self.environment(watch), MARK: mark})
        try:
            wait_for_moment(process, watch, at, output)
            first_s = time.monotonic() - begin
            wait_for_moment(process, replace(watch, files=NUM_UNITS), at, output)
            last_s = time.monotonic() - begin
            exit_code = end_of(process)
        finally:
            end_leftovers(mark)
        pace = Pace(round(first_s, 2), round(last_s, 2), round(time.monotonic() - begin, 2))
        if exit_code != 0 or tree_of(output) != self.corpus.reference:
            raise AssertionError(f"an undisturbed run with {executor} on {place} ended with {exit_code} or other bytes")
        print(f"undisturbed: {executor} on {place}: {pace}", flush=True)
        return pace


@contextmanager
def grounds_for(corpus: Corpus, folder: Path) -> Iterator[Grounds]:
    """Give the surroundings of trials, and end them."""
    grounds = Grounds(corpus, folder)
    try:
        yield grounds
    finally:
        grounds.close()


def run_trial(grounds: Grounds, harm: Harm, name: str) -> Trial:
    """Do one harm and mend it.

    Args:
        name: of its output, new each time.
    """
    begin = time.monotonic()
    corpus, place = grounds.corpus, grounds.place(harm.place)
    output = place.folder(name)
    place.forget_reads()
    disturbed = disturbed_run(grounds.command(harm, output), harm, place, output, grounds)
    num_read, committed = place.num_read(), num_fragments(output)
    _, records = units_computed(output)
    grounds.restore()
    exits = [disturbed.exit_code]
    while exits[-1] != 0 and len(exits) < MAX_RUNS:
        exits.append(_run_again(grounds, harm, output))
    computed, _ = units_computed(output, records)
    tree = tree_of(output)
    names = window_names(tree)
    return Trial(
        harm=harm,
        disturbed=disturbed,
        exits=tuple(exits),
        committed_units=committed,
        lost_in_flight=None if num_read is None or num_read < committed else num_read - committed,
        is_same=tree == corpus.reference,
        is_sound=_is_sound(output),
        lost_windows=corpus.num_windows - len(set(names)),
        doubled_windows=len(names) - len(set(names)),
        recomputed_units=_num_computed_again(disturbed, committed, computed),
        seconds=round(time.monotonic() - begin, 1),
    )


def _num_computed_again(disturbed: Disturbed, committed: int, computed: int) -> int:
    """Return how many units were computed whose fragments stood.

    Args:
        committed: fragments that stood when the disturbed run had ended.
        computed: by runs after it.
    """
    taker = disturbed.taker
    if taker is not None:
        return max(taker.committed_units + taker.computed_units + computed - NUM_UNITS, 0)
    return 0 if disturbed.exit_code == 0 else committed + computed - NUM_UNITS


def _run_again(grounds: Grounds, harm: Harm, output: Folder) -> int:
    again = replace(harm, executor=harm.again)
    command = grounds.command(again, output)
    if again.executor == "call":
        return CliRunner().invoke(app, command[3:]).exit_code
    mark = f"again-{time.monotonic_ns()}"
    process = start(command, {**grounds.environment(again), MARK: mark})
    try:
        return end_of(process)
    finally:
        end_leftovers(mark)


def _is_sound(output: Folder) -> bool:
    manifest = read_manifest(output)
    return manifest is not None and verify_dataset(output, manifest, lambda path: None).is_sound


def draw_harms(
    grounds: Grounds, kills: int, seed: int, kinds: list[str], places: list[str], executors: list[str]
) -> Iterator[Harm]:
    """Yield harms, kinds in turn; the one of a number depends on seed and kinds alone, but for its seconds."""
    for number in range(kills):
        chance = random.Random(f"{seed}-{number}")
        kind = kinds[number % len(kinds)]
        place = "s3" if kind == "s3_restart" else chance.choice(places)
        harm = draw_harm(kind, place, NUM_UNITS + len(grounds.corpus.reference), chance, executors)
        extra_s = harm.extra_s * span_s(harm, grounds.pace(harm.executor, place))
        yield replace(harm, extra_s=round(extra_s, 2))


def run_campaign(grounds: Grounds, harms: Iterator[Harm]) -> list[Trial]:
    """Run trials one after the other, telling each as it ends."""
    trials = []
    for number, harm in enumerate(harms):
        trial = run_trial(grounds, harm, f"trial{number}")
        trials.append(trial)
        print(f"{number + 1:4} {'good' if trial.is_good else 'BAD '} {trial.as_line()}", flush=True)
    return trials


def summary(trials: list[Trial]) -> str:
    """Return the table that docs/reliability.md shows."""
    heads = ["what was done", "runs", "struck while it ran", "ended before the end", "same bytes", "verified"]
    heads += ["windows lost or doubled", "units computed again", "units lost in flight, mean", "exit codes seen"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    groups = collections.defaultdict(list)
    for trial in trials:
        groups[f"{trial.harm.kind}, {trial.harm.executor}, {trial.harm.place}"].append(trial)
    for name, group in sorted(groups.items()):
        seen = collections.Counter(trial.exits[0] for trial in group)
        lost = [trial.lost_in_flight for trial in group if trial.lost_in_flight is not None and trial.exits[0] != 0]
        cells = [
            len(group),
            sum(trial.disturbed.is_struck for trial in group),
            sum(trial.exits[0] != 0 for trial in group),
            sum(trial.is_same for trial in group),
            sum(trial.is_sound for trial in group),
            sum(abs(trial.lost_windows) + trial.doubled_windows for trial in group),
            sum(trial.recomputed_units for trial in group),
            f"{sum(lost) / len(lost):.1f}" if lost else "",
            ", ".join(f"{code} ({count})" for code, count in sorted(seen.items())),
        ]
        lines.append(f"| {name} | " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the campaign and say whether the promise held every time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of " + ", ".join(KINDS))
    parser.add_argument("--places", default=",".join(PLACES), help="some of " + ", ".join(PLACES))
    parser.add_argument("--executors", default=",".join(EXECUTORS), help="some of " + ", ".join(EXECUTORS))
    arguments = parser.parse_args()
    kinds, places = arguments.kinds.split(","), arguments.places.split(",")
    executors = arguments.executors.split(",")
    unknown = [*(set(kinds) - set(KINDS)), *(set(places) - set(PLACES)), *(set(executors) - set(EXECUTORS))]
    kinds = [kind for kind in kinds if kind != "s3_restart" or "s3" in places]
    if unknown or not kinds:
        parser.error(f"not to be had: {', '.join(unknown) or 's3_restart without s3'}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with grounds_for(make_corpus(folder / "corpus"), folder) as grounds:
            harms = draw_harms(grounds, arguments.kills, arguments.seed, kinds, places, executors)
            trials = run_campaign(grounds, harms)
    print(summary(trials))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1))
    return 0 if all(trial.is_good for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
