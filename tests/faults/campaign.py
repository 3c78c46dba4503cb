"""The kill campaign: a job is killed at a random moment in a random way, run again, and compared byte for byte.

    python tests/faults/campaign.py --kills 100 --seed 0 --json out/campaign.json

Each trial starts the same command on a fresh output, does its harm, lets the command run again until it exits with
0, and then asks four things: are all promised files those of an undisturbed run; does `verify` find the dataset sound;
was no committed unit computed again; did nothing half-written stay under a final name.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint

KINDS = ("kill_group", "term", "kill_actor", "kill_worker")
NUM_UNITS = 24
MARK = "MOTION_TOKENS_CAMPAIGN"
RUN_LIMIT_S = 180
MAX_RUNS = 5


@dataclass(frozen=True)
class Trial:
    """What was done to one run, and how it ended."""

    kind: str
    executor: str
    after_s: float
    first_exit: int
    committed_units: int
    runs: int
    is_same: bool
    is_sound: bool
    recomputed_units: int
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether the promise held."""
        return self.is_same and self.is_sound and self.recomputed_units == 0


@dataclass(frozen=True)
class Corpus:
    """Motion, codec, and the undisturbed dataset made from them."""

    folder: Path

    def command(self, output: Path, *options: str) -> list[str]:
        """The command under test."""
        command = [sys.executable, "-m", "jobs.cli", "tokenize", str(self.folder / "motion"), str(output)]
        command += ["-c", str(self.folder / "codec.safetensors"), "--set", "units.files=1"]
        return [*command, "--set", "export.windows_per_shard=60", *options]

    @property
    def reference(self) -> dict[str, bytes]:
        """Every promised file of an undisturbed run."""
        return tree_of(self.folder / "reference")


def make_corpus(folder: Path) -> Corpus:
    """Write motion for a job of a few seconds, and run it undisturbed."""
    (folder / "motion").mkdir(parents=True)
    for number in range(NUM_UNITS):
        motion = np.random.default_rng(number).normal(size=(500 + 20 * number, 106)).astype(np.float32)
        np.savez(folder / "motion" / f"clip{number:02}.npz", motion=motion, fps=25)
    config = BitwiseVAEConfig(hidden_dim=192, depth=2)
    write_checkpoint(random_checkpoint(config, np.zeros(106), np.ones(106), 0), folder / "codec.safetensors")
    corpus = Corpus(folder)
    subprocess.run(corpus.command(folder / "reference", "--local"), check=True, capture_output=True)
    return corpus


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file whose bytes are promised, by relative path; versions may hold more after a disturbed run."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] not in ("_store", "runs", "report", "versions"):
            found["/".join(parts)] = path.read_bytes()
    return found


def run_trial(corpus: Corpus, output: Path, kind: str, executor: str, after_s: float) -> Trial:
    """Do one harm and mend it."""
    begin = time.monotonic()
    first_exit = _disturbed_run(corpus, output, kind, executor, after_s)
    committed = {path.name for path in output.glob("_store/*/fragments/*/*.parquet")}
    before = set(output.glob("runs/*/run.json"))
    runs, computed = 1, 0
    exit_code = first_exit
    while exit_code != 0 and runs < MAX_RUNS:
        done = subprocess.run(corpus.command(output, "--local"), capture_output=True, timeout=RUN_LIMIT_S, check=False)
        exit_code, runs = done.returncode, runs + 1
    for record in set(output.glob("runs/*/run.json")) - before:
        computed += json.loads(record.read_text())["counts"].get("units", 0)
    recomputed = 0 if first_exit == 0 else len(committed) + computed - NUM_UNITS
    verify = [sys.executable, "-m", "jobs.cli", "verify", str(output)]
    is_sound = subprocess.run(verify, capture_output=True, check=False).returncode == 0
    return Trial(
        kind=kind,
        executor=executor,
        after_s=round(after_s, 2),
        first_exit=first_exit,
        committed_units=len(committed),
        runs=runs,
        is_same=tree_of(output) == corpus.reference,
        is_sound=is_sound,
        recomputed_units=recomputed,
        seconds=round(time.monotonic() - begin, 1),
    )


def _disturbed_run(corpus: Corpus, output: Path, kind: str, executor: str, after_s: float) -> int:
    mark = f"{output.name}-{time.monotonic_ns()}"
    environment = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}
    options = ["--local"] if executor == "local" else []
    process = psutil.Popen(
        corpus.command(output, *options),
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(after_s)
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        _harm(process, kind)
    try:
        exit_code = process.wait(RUN_LIMIT_S)
    finally:
        _end_leftovers(mark)
    return int(exit_code or 0)


def _harm(process: psutil.Process, kind: str) -> None:
    if kind == "kill_group":
        os.killpg(process.pid, signal.SIGKILL)
    elif kind == "term":
        process.send_signal(signal.SIGTERM)
    else:
        name = "ray::MapWorker" if kind == "kill_actor" else "ray::"
        for child in process.children(recursive=True):
            if " ".join(child.cmdline()[:1]).startswith(name):
                child.send_signal(signal.SIGKILL)
                if kind == "kill_worker":
                    return


def _end_leftovers(mark: str) -> None:
    """End what a killed driver's Ray left behind, so that trials do not disturb each other."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.kill()


def run_campaign(corpus: Corpus, folder: Path, kills: int, seed: int) -> list[Trial]:
    """Run seeded trials one after the other, telling each as it ends."""
    chance = random.Random(seed)
    trials = []
    for number in range(kills):
        kind = KINDS[number % len(KINDS)]
        executor = "ray" if kind in ("kill_actor", "kill_worker") or chance.random() < 0.5 else "local"
        after_s = chance.uniform(4, 16) if executor == "ray" else chance.uniform(1, 7)
        with tempfile.TemporaryDirectory(dir=folder) as output:
            trial = run_trial(corpus, Path(output) / "tokens", kind, executor, after_s)
        trials.append(trial)
        print(f"{number + 1:4} {'good' if trial.is_good else 'BAD '} {asdict(trial)}", flush=True)
    return trials


def summary(trials: list[Trial]) -> str:
    """Return the table that docs/reliability.md shows."""
    lines = ["| what was done | runs | killed before the end | same bytes | verified | units computed again |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    groups = collections.defaultdict(list)
    for trial in trials:
        groups[f"{trial.kind}, {trial.executor}"].append(trial)
    for name, group in sorted(groups.items()):
        cells = [
            len(group),
            sum(trial.first_exit != 0 for trial in group),
            sum(trial.is_same for trial in group),
            sum(trial.is_sound for trial in group),
            sum(trial.recomputed_units for trial in group),
        ]
        lines.append(f"| {name} | " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the campaign and say whether the promise held every time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus")
        trials = run_campaign(corpus, Path(folder), arguments.kills, arguments.seed)
    print(summary(trials))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1))
    return 0 if all(trial.is_good for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
