"""Histories: what commands do on one output in a world, drawn from a seed, checked at every step, told as prose.

The commands are the program's own; only the model's arithmetic is a hash of the motion, and storage, time and
processes are the world's. A history is a list of moves. The same moves give the same history; fewer moves, a shorter
one.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from world import CURRENT, PLACES, WORLDS, Fault, Killed, Process, SimTicker, World

from pipeline.contract.specs import Numerics
from pipeline.dataset.clean import delete_outdated
from pipeline.dataset.manifest import Manifest, require_manifest
from pipeline.dataset.open_dataset import open_dataset
from pipeline.dataset.replay import units_to_retry
from pipeline.errors import MotionTokensError, OwnershipLostError
from pipeline.executors.executor import Executor
from pipeline.executors.plain_loop import build_here, measure_here
from pipeline.job.export_job import export_datasets
from pipeline.job.tokenize_job import JobControl, tokenize_dataset
from pipeline.run.observer import JobObserver
from pipeline.run.ownership import Ownership
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.settings.job_config import TokenizeRequest, load_config
from pipeline.stages.blocks import TokenBlock
from pipeline.stages.tokenize_stage import constants_to_npz
from pipeline.storage import Folder
from pipeline.verify.verify_dataset import verify_dataset

KINDS = ("disk", "s3", "bare")
NUM_INPUTS = 4
STAGES = (
    *(
        "active.json",
        "delete",
        "in",
        "runs/",
        "plans/",
        "fragments/",
        "shuffle/",
        "parquet/",
        "versions/",
        "published/",
    ),
    *("README.md", "dataset.json"),
)
"""How the paths begin that a run writes one after the other."""
SETTINGS = ("gate=off", "units.files=1", "export.windows_per_shard=6", "export.formats=[parquet,webdataset]")
OUTPUT = "o"
MOST_WAITS = 100
"""How often a process waits in one move: longer than it takes to find another dead."""
MOST_TURNS = 8
WOVEN = 24
"""Operations of a weave."""
INCOMPLETE, DATA_WRONG, USAGE, IO_ERROR = 75, 65, 2, 74


class BrokenError(AssertionError):
    """A history that must not be."""


@dataclass(frozen=True)
class Command:
    """What a process does."""

    verb: str
    """tokenize, export, export_elsewhere, clean or replay."""
    shuffle: str = "none"
    numerics: str = "a"
    when_active: str = "wait"
    is_strict: bool = False
    """Whether no clip may be dropped."""
    restart: bool = False
    """Whether with other windows, in the place of what stands."""
    place: tuple[str, str] = PLACES[0]

    def __str__(self) -> str:
        words = [self.verb]
        words += [f"shuffled {self.shuffle}"] if self.shuffle != "none" else []
        words += [f"with numerics {self.numerics}"] if self.numerics != "a" else []
        words += ["with no clip dropped"] if self.is_strict else []
        words += ["--restart"] if self.restart else []
        words += [f"when active: {self.when_active}"] if self.when_active != "wait" else []
        words += ["on {} in namespace {}".format(*self.place)] if self.place != PLACES[0] else []
        return " ".join(words)


@dataclass(frozen=True)
class Move:
    """One move of a history."""

    kind: str
    """start, steps, to, weave, kill, pause, wait, input, fault or power."""
    number: int = 0
    """Which process, counted from the first that lives; -1: the last."""
    amount: int = 0
    word: str = ""
    command: Command | None = None


def hashes(motion: np.ndarray, starts: Sequence[int], num_bytes: int) -> np.ndarray:
    """Return what the simulated tokenizer makes of windows."""
    seed = hashlib.sha256(motion.tobytes()).digest()[:8]
    rows = [hashlib.shake_128(seed + int(start).to_bytes(8, "big")).digest(2 * num_bytes) for start in starts]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 2, num_bytes)


def tokenize_by_hash(numerics, runs, stages, progress):
    """The stages of plain_loop.py with hashes of motion and numerics for bits."""
    store, codec = stages.tokenizer.store, stages.tokenizer.contract.codec
    if stages.tokenizer.contract.numerics.torch != numerics:
        raise BrokenError(f"{numerics} computes under the contract of {stages.tokenizer.contract.numerics.torch}")
    nothing = np.zeros((codec.num_tokens, codec.code_dim // 8), np.uint8)
    constants = constants_to_npz(nothing, nothing, np.array(codec.patch_nums, np.int32))
    if not store.folder.exists("constants.npz"):
        store.folder.publish("constants.npz", constants)
    progress.ready(0.0)
    salt = numerics.encode()
    for run in runs:
        if progress.is_stopping:
            return
        block = stages.reader.read(run)
        salted = np.frombuffer(block.motion.tobytes() + salt, np.uint8)
        bits = hashes(salted, block.start_frame, codec.half_bytes)
        yield stages.writer.write(TokenBlock(block.units, bits, block.ledger, block.start_frame))


def executor_of(numerics: str) -> Executor:
    return Executor(
        name="steps",
        start=lambda: None,
        tokenize=partial(tokenize_by_hash, numerics),
        build=build_here,
        measure=measure_here,
        survives=lambda reader, unit: True,
        ask_worker=lambda ask: Numerics(device="cpu", torch=numerics, pyarrow="0"),
        cpus_of_nodes=(1.0,),
        num_gpus=0.0,
    )


def promised_files(world: World, folder: str = OUTPUT) -> dict[str, bytes]:
    """Return what a dataset promises, by path: all but its store, its runs and versions."""
    start = len(folder) + 1
    names = [name for name in world.files if name.startswith(f"{folder}/")]
    own = ("_store/", "runs/", "report/", "versions/", ".lock")
    return {name[start:]: world.files[name] for name in names if not name[start:].startswith(own)}


def is_shard(path: str) -> bool:
    """Whether a file of a dataset is named by what it holds, and stands for every version alike."""
    return path.startswith(("parquet/", "webdataset/")) and not path.endswith("shards.txt")


class Corpus:
    """An input at several times, a codec, and what a run alone makes of each; built once."""

    def __init__(self, inputs: Sequence[dict[str, bytes]], checkpoint: Path) -> None:
        self.inputs, self.checkpoint = inputs, checkpoint
        self._alone: dict[tuple[int, str, str, bool], tuple[bytes, dict[str, bytes]]] = {}
        self.origin: dict[bytes, tuple[int, str, str, bool]] = {}
        """dataset.json -> (input, shuffle, numerics, restart) that it is made from."""

    def alone(self, number: int, shuffle: str, numerics: str, restart: bool) -> dict[str, bytes]:
        """Return the files that a run alone leaves."""
        key = (number, shuffle, numerics, restart)
        if key not in self._alone:
            world = World("disk")
            name = f"alone{len(self._alone)}"
            WORLDS[name] = world
            self.set_input(world, number)
            run(self, name, Command("tokenize", shuffle, numerics, restart=restart), "alone", SimTicker(world))
            files = promised_files(world)
            self._alone[key] = (files["dataset.json"], files)
            self.origin[files["dataset.json"]] = key
        return self._alone[key][1]

    def prepare(self) -> None:
        """Make everything that a history may end in."""
        for number in range(len(self.inputs)):
            for shuffle in ("none", "global"):
                for numerics in "ab":
                    for restart in (False, True):
                        self.alone(number, shuffle, numerics, restart)

    def set_input(self, world: World, number: int) -> None:
        """Make the input what it is at a time; what did not change keeps its version."""
        for name, data in self.inputs[number].items():
            if world.files.get(f"in/{name}") != data:
                world.files[f"in/{name}"] = data
                world.versions[f"in/{name}"] = 10**6 + int(hashlib.sha256(data).hexdigest()[:8], 16)


def run(corpus: Corpus, world_name: str, command: Command, name: str, ticker: SimTicker) -> None:
    """Do what a command does, by the program's own functions."""
    base = f"sim://{world_name}"
    sets = [*SETTINGS, f"export.shuffle={command.shuffle}", f"run.when_active={command.when_active}"]
    sets += ["run.max_dropped=0"] if command.is_strict else []
    sets += ["window.stride=3", "run.restart=true"] if command.restart else []
    output = Folder(f"{base}/{OUTPUT}")
    control = JobControl(name, StopSwitch(), ticker)
    if command.verb in ("tokenize", "replay"):
        request = TokenizeRequest(
            (f"{base}/in",), output.url, str(corpus.checkpoint), None, None, load_config(None, sets)
        )
        again = None
        if command.verb == "replay":
            require_manifest(output)
            again = lambda plan: units_to_retry(open_dataset(output), plan)  # noqa: E731
        done = tokenize_dataset(request, executor_of(command.numerics), JobObserver(), JobRecord(), control, again)
        tell(output, name, done.manifest, ticker)
    elif command.verb in ("export", "export_elsewhere"):
        target = output if command.verb == "export" else Folder(f"{base}/p")
        owner = Ownership(target, name, command.when_active, ticker=ticker)
        config = load_config(None, [f"export.shuffle={command.shuffle}"])
        tell(target, name, export_datasets([output.url], owner, config, build_here, JobObserver()), ticker)
    else:
        delete_outdated(Ownership(output, name, ticker=ticker), 1)


def tell(output: Folder, name: str, manifest: Manifest, ticker: SimTicker) -> None:
    """Write what `clean` reads of a run's record: when which version was published."""
    record = {"version": manifest.version, "finished": f"{ticker.world.now:09.2f}"}
    output.publish(f"runs/{name}/run.json", json.dumps(record).encode())


@dataclass
class History:
    """One history as it goes: its world, who has ended how, and what was promised by whom."""

    corpus: Corpus
    kind: str
    moves: Sequence[Move]
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = World(self.kind, on_change=self._changed)
        self.name = "history"
        WORLDS[self.name] = self.world
        self.input = 0
        corpus_input = self.corpus
        corpus_input.set_input(self.world, 0)
        self.commands: dict[str, Command] = {}
        self.began: dict[str, int] = {}
        """Process -> the input when it started."""
        self.broken: BrokenError | None = None
        self.done: list[tuple[str, int]] = []
        """Processes that ended with 0, and the input of the dataset that stood then."""
        self.reached = -1
        """The latest input of a dataset that a process ended with 0 over."""
        self.has_restarted = False
        self.ended: set[str] = set()

    def play(self) -> None:
        """Make every move, let whoever lives end, and let one more run end alone.

        Raises:
            BrokenError: something was that must not be.
        """
        try:
            for move in self.moves:
                self._make(move)
            self._end()
        finally:
            for process in self.world.living():
                process.kill()
            del WORLDS[self.name]

    def _say(self, text: str) -> None:
        self.said.append(f"{self.world.now - 1000:8.1f} s  {text}")

    def _make(self, move: Move) -> None:
        living = self.world.living()
        if move.kind == "input":
            if self.input + 1 < len(self.corpus.inputs):
                self.input += 1
                self.corpus.set_input(self.world, self.input)
                self._say(f"the input becomes number {self.input}")
        elif move.kind == "start":
            if len(living) < 3:
                self._start(move.command)
        elif move.kind == "wait":
            self.world.pass_time(move.amount)
            self._say(f"{move.amount} s pass")
        elif move.kind == "power":
            if self.kind == "disk" and living:
                chance = random.Random(move.amount)
                self._say("the power fails")
                self.world.cut_power(lambda: chance.random() < 0.5)
                self._look()
        elif move.kind == "weave":
            self._weave(living, move)
        elif living:
            self._move(living[move.number % len(living)], move)

    def _start(self, command: Command) -> None:
        name = f"run{len(self.commands) + 1}"
        self.commands[name], self.began[name] = command, self.input
        self._say(f"{name} starts: {command}")
        self.world.start(
            name, command.place, partial(run, self.corpus, self.name, command, name, SimTicker(self.world))
        )
        self._look()

    def _move(self, process: Process, move: Move) -> None:
        if move.kind == "kill":
            self._say(f"{process.name} is killed before it would {process.next_op}")
            process.kill()
        elif move.kind == "pause":
            process.is_paused = process.was_paused = True
            self._say(f"{process.name} is paused before it would {process.next_op}")
        elif move.kind == "fault":
            process.fault = Fault(move.word, move.amount)
            self._say(f"{process.name} meets {move.word} ({move.amount})")
        else:
            process.is_paused = False
            first, count, waits = process.next_op, 0, 0
            while not process.is_over:
                if move.kind == "steps" and count == move.amount:
                    break
                if move.kind == "to" and count and move.word in process.next_op:
                    break
                waits += process.next_op.startswith("wait")
                if waits > MOST_WAITS:
                    break
                process.go()
                count += 1
                self._look()
            self._say(f"{process.name} does {count} operations, from {first} up to {process.next_op}")
        self._look()

    def _weave(self, living: Sequence[Process], move: Move) -> None:
        """Bring everybody to a stage, then let them go on in turns drawn by chance."""
        chance = random.Random(move.amount)
        for process in living:
            self._move(process, Move("to", word=move.word))
        turns: list[str] = []
        while len(turns) < WOVEN and (ready := [process for process in living if not process.is_over]):
            process = chance.choice(ready)
            turns.append(f"{process.name}: {process.next_op}")
            process.go()
            self._look()
        self._say("; ".join(turns))

    def _changed(self, path: str) -> None:
        """Called after each change: the dataset that stands must be whole, and not older than what was promised."""
        if self.broken is not None or not path.startswith(f"{OUTPUT}/"):
            return
        process = CURRENT.process
        name = process.name if process is not None else "?"
        try:
            self._check_versions(path, name)
            self._check(path, name)
        except BrokenError as error:
            self.broken = error

    def _check(self, path: str, name: str) -> None:
        data = self.world.files.get(f"{OUTPUT}/dataset.json")
        if data is None:
            if path == f"{OUTPUT}/dataset.json":
                raise BrokenError(f"{name} deleted dataset.json")
            return
        origin = self.corpus.origin.get(data)
        if origin is None:
            raise BrokenError(
                f"after {name} wrote {path}, dataset.json is of no run alone: its bits are of other motion"
            )
        wanted = self.corpus.alone(*origin)
        if path == f"{OUTPUT}/dataset.json":
            self._say(f"{name} publishes input {origin[0]}, shuffled {origin[1]}, numerics {origin[2]}")
            if self.commands[name].verb in ("tokenize", "replay") and origin[0] < self.began[name]:
                raise BrokenError(f"{name} publishes input {origin[0]}, and began when it was {self.began[name]}")
            if origin[0] < self.reached:
                raise BrokenError(
                    f"{name} publishes input {origin[0]}; a run had ended with 0 over input {self.reached}"
                )
            names = wanted
        else:
            names = [path[len(OUTPUT) + 1 :]] if path[len(OUTPUT) + 1 :] in wanted else []
        version = hashlib.sha256(data).hexdigest()[:16]
        for file in names:
            standing = self.world.files.get(f"{OUTPUT}/{file}")
            copy = self.world.files.get(f"{OUTPUT}/versions/{version}/{file}")
            if wanted[file] not in (standing, copy):
                raise BrokenError(f"after {name} changed {path}, {file} of the dataset is missing or altered")

    def _check_versions(self, path: str, name: str) -> None:
        """Every version that has a record must have its files, whichever is the current one."""
        record = re.fullmatch(rf"{OUTPUT}/versions/([0-9a-f]{{16}})\.json", path)
        versions = [record[1]] if record else self._recorded()
        for version in versions:
            data = self.world.files.get(f"{OUTPUT}/versions/{version}.json")
            if data is None or data not in self.corpus.origin:
                continue
            for file, content in self.corpus.alone(*self.corpus.origin[data]).items():
                kept = f"{OUTPUT}/{file}" if is_shard(file) else f"{OUTPUT}/versions/{version}/{file}"
                if file == "dataset.json" or (record is None and path != kept):
                    continue
                if self.world.files.get(kept) != content:
                    raise BrokenError(f"after {name} changed {path}, version {version} names {kept}, which is missing")

    def _recorded(self) -> list[str]:
        begin = f"{OUTPUT}/versions/"
        names = [name[len(begin) :] for name in self.world.files if name.startswith(begin)]
        return [name.removesuffix(".json") for name in names if "/" not in name]

    def _look(self) -> None:
        """Look at who has ended, and how."""
        if self.broken is not None:
            raise self.broken
        for name, process in self.world.processes.items():
            if not process.is_over or name in self.ended:
                continue
            self.ended.add(name)
            self._ended(process, self.commands[name])

    def _ended(self, process: Process, command: Command) -> None:
        error = process.error
        if process.is_killed or isinstance(error, Killed):
            return
        if error is None:
            self._say(f"{process.name} ends with 0")
            data = self.world.files.get(f"{OUTPUT}/dataset.json")
            if command.verb != "export_elsewhere":
                if data is None:
                    raise BrokenError(f"{process.name} ended with 0, and there is no dataset")
                self.reached = max(self.reached, self.corpus.origin[data][0])
            return
        code = getattr(error, "exit_code", None) if isinstance(error, MotionTokensError) else None
        self._say(f"{process.name} ends with {code}: {str(error)[:160]}")
        if isinstance(error, OwnershipLostError) and not (process.was_paused or self._may_be_taken_over(process)):
            raise BrokenError(f"{process.name} was beating all the time, and was taken over: {error}")
        allowed = {INCOMPLETE, IO_ERROR}
        if command.is_strict:
            allowed.add(DATA_WRONG)
        if command.verb != "tokenize" or command.numerics != "a" or command.restart or self._differ():
            allowed.add(USAGE)
        if code not in allowed:
            raise BrokenError(f"{process.name} ended with {error!r}")

    def _may_be_taken_over(self, process: Process) -> bool:
        """Whether another was told to take over, or the server does not say who was first."""
        others = [command for name, command in self.commands.items() if name != process.name]
        return self.kind == "bare" or any(other.when_active == "take_over" for other in others)

    def _differ(self) -> bool:
        """Whether commands of other numerics or windows were started."""
        return any(command.numerics != "a" or command.restart for command in self.commands.values())

    def _end(self) -> None:
        """Let everybody end, then run alone: it must end with 0, in the bytes of a run alone."""
        for _ in range(MOST_TURNS):
            for process in self.world.living():
                self._move(process, Move("steps", amount=3000))
        if self.world.living():
            raise BrokenError("some processes do not end")
        self._check_lists()
        restart, numerics = self._standing()
        last = Command("tokenize", numerics=numerics, restart=restart)
        self._start(last)
        process = list(self.world.processes.values())[-1]
        self._move(process, Move("steps", amount=3000))
        if not process.is_over:
            raise BrokenError("the same command does not end")
        if process.error is not None:
            raise BrokenError(f"the same command ended with {process.error!r}")
        wanted, found = self.corpus.alone(self.input, "none", numerics, restart), promised_files(self.world)
        for path, data in wanted.items():
            if found.get(path) != data:
                raise BrokenError(f"at the end {path} is missing or altered")
        extra = [path for path in found if path not in wanted and not is_shard(path)]
        if extra:
            raise BrokenError(f"at the end there are {extra}")
        self._prove()

    def _check_lists(self) -> None:
        """Once all have ended well, the files of fixed names must be those of the dataset that stands."""
        data = self.world.files.get(f"{OUTPUT}/dataset.json")
        if data is None or any(process.error is not None for process in self.world.processes.values()):
            return
        wanted, found = self.corpus.alone(*self.corpus.origin[data]), promised_files(self.world)
        for path, content in wanted.items():
            if found.get(path) != content:
                raise BrokenError(f"all ended with 0, and {path} is missing or altered")

    def _prove(self) -> None:
        output = Folder(f"sim://{self.name}/{OUTPUT}")
        manifest = Manifest.model_validate_json(self.world.files[f"{OUTPUT}/dataset.json"])
        result = verify_dataset(output, manifest, lambda path: None)
        if not result.is_sound:
            raise BrokenError(f"at the end verify finds {result.findings[:3]}")

    def _standing(self) -> tuple[bool, str]:
        """Return which command continues what stands: with other windows or not, and of which numerics."""
        data = self.world.files.get(f"{OUTPUT}/dataset.json")
        if data is not None:
            _, _, numerics, restart = self.corpus.origin[data]
            return restart, numerics
        for name in sorted(self.world.files):
            if name.startswith(f"{OUTPUT}/_store/") and name.endswith("/contract.json"):
                tree = json.loads(self.world.files[name])
                return tree["corpus"]["window"]["stride"] == 3, tree["numerics"]["torch"]
        for name in sorted(self.world.files):
            if "/fragments/" in name:
                import pyarrow.parquet as pq

                tree = json.loads(
                    pq.read_metadata(io.BytesIO(self.world.files[name])).metadata[b"motion_tokens.contract"]
                )
                return tree["corpus"]["window"]["stride"] == 3, tree["numerics"]["torch"]
        return False, "a"


THEMES = {
    "mixed": ([6, 2, 1, 2, 1], [4, 1, 2], [3, 1]),
    "cleaning": ([4, 0, 0, 4, 0], [1, 0, 3], [1, 1]),
    "waiting": ([6, 2, 0, 0, 0], [6, 1, 0], [4, 1]),
    "taking over": ([6, 2, 0, 1, 1], [1, 0, 6], [2, 1]),
    "strict": ([6, 0, 0, 0, 0], [4, 0, 1], [3, 1]),
    "idle": ([6, 0, 0, 0, 0], [2, 1, 1], [1, 1]),
    "shuffling": ([6, 1, 0, 0, 0], [2, 0, 4], [0, 1]),
    "beginning": ([6, 1, 0, 1, 0], [6, 1, 0], [2, 1]),
    "ending": ([6, 1, 0, 1, 0], [1, 0, 4], [1, 0]),
}
"""Weights of verbs, of what to do when another run is active, and of shuffles."""
MOVES = ("start", "steps", "to", "weave", "kill", "pause", "wait", "input", "fault", "power")
WEIGHTS = (7, 6, 8, 3, 2, 2, 2, 3, 1, 0.4)
OWN_WEIGHTS = {"shuffling": (7, 3, 3, 6, 1, 1, 1, 4, 1, 0.4), "idle": (7, 3, 3, 6, 0, 0, 1, 0, 0, 0)}
OWN_WEIGHTS |= {"beginning": (9, 3, 2, 9, 1, 0, 1, 3, 0, 0), "ending": (7, 3, 9, 3, 1, 0, 1, 3, 0, 0)}
OWN_WEIGHTS |= {"cleaning": (7, 6, 6, 2, 1, 2, 1, 0.3, 1, 0.4)}
OWN_STAGES = {"shuffling": ("shuffle/",), "idle": ("windows.parquet",)}
OWN_STAGES |= {"beginning": ("active.json", "runs/"), "ending": ("delete o/runs/", "write o/dataset.json")}
OWN_STAGES |= {"cleaning": ("delete", "read o/_store")}
OVERTAKING = 0.2
"""Share of moves that are whole overtakings."""
VERBS = ("tokenize", "export", "export_elsewhere", "clean", "replay")


def draw_moves(seed: int) -> tuple[str, list[Move]]:
    """Return a kind of place and the moves of a history."""
    chance = random.Random(seed)
    kind, theme = chance.choice(KINDS), chance.choice(list(THEMES))
    moves: list[Move] = []
    for number in range(2 if theme == "cleaning" else chance.choice([0, 0, 1, 2])):  # what stands already
        shuffle = chance.choices(["none", "global"], THEMES[theme][2])[0]
        if theme == "cleaning":  # versions of one input, so that an older one may come again
            shuffle = ("none", "global")[number]
        moves += [Move("start", command=Command("tokenize", shuffle)), Move("steps", amount=3000)]
    if theme == "strict":  # a clip is broken, and an export may have been killed
        moves = [Move("input"), Move("input"), Move("start", command=Command("tokenize"))]
        moves += [
            Move("to", word=chance.choice(STAGES)),
            Move("kill" if chance.random() < 0.5 else "steps", amount=3000),
        ]
    moves.append(Move("start", command=_draw_command(chance, theme)))
    for _ in range(chance.randint(4, 12)):
        moves += _draw_overtaking(chance, theme) if chance.random() < OVERTAKING else [_draw_move(chance, theme)]
    return kind, moves


def _draw_overtaking(chance: random.Random, theme: str) -> list[Move]:
    """Return moves by which a process stands still at a stage, while another works, or dies over it."""
    number = chance.randint(0, 2)
    moves = [_draw_stage(chance, theme, "to", number)]
    moves += [Move("steps", number, amount=chance.randint(1, 12))] if chance.random() < 0.3 else []
    moves += [Move("pause", number)] if chance.random() < 0.5 else []
    moves += [Move("input")] if chance.random() < (0.1 if theme == "cleaning" else 0.7) else []
    moves.append(Move("start", command=_draw_command(chance, theme)))
    if chance.random() < 0.5:
        return [*moves, Move("steps", -1, amount=3000)]
    moves.append(Move("steps", -1, amount=chance.randint(5, 100)))
    return [*moves, Move("kill", -1)] if chance.random() < 0.5 else moves


def _draw_command(chance: random.Random, theme: str) -> Command:
    verbs, whens, shuffles = THEMES[theme]
    verb = chance.choices(VERBS, verbs)[0]
    return Command(
        verb,
        shuffle=chance.choices(["none", "global"], shuffles)[0],
        numerics=chance.choices("ab", [9, 1])[0],
        when_active=chance.choices(["wait", "leave", "take_over"], whens)[0],
        is_strict=chance.random() < (0.5 if theme == "strict" else 0.1),
        restart=verb == "tokenize" and chance.random() < 0.05,
        place=chance.choices(PLACES, [3, 1, 1])[0],
    )


def _draw_move(chance: random.Random, theme: str) -> Move:
    kind = chance.choices(MOVES, OWN_WEIGHTS.get(theme, WEIGHTS))[0]
    number = chance.randint(0, 2)
    if kind == "start":
        return Move(kind, command=_draw_command(chance, theme))
    if kind == "steps":
        return Move(kind, number, amount=chance.choice([1, 2, 3, 5, 9, 20, 60, 3000, 3000, 3000]))
    if kind in ("to", "weave"):
        return _draw_stage(chance, theme, kind, number)
    if kind == "wait":
        return Move(kind, amount=chance.choice([3, 30, 130]))
    if kind == "fault":
        return Move(kind, number, amount=chance.choice([1, 40]), word=chance.choice(["full", "lost", "refused"]))
    return Move(kind, number, amount=chance.randint(0, 10**6))


def _draw_stage(chance: random.Random, theme: str, kind: str, number: int) -> Move:
    own = OWN_STAGES.get(theme, ()) * len(STAGES)
    return Move(kind, number, amount=chance.randint(0, 10**6), word=chance.choice([*STAGES, *own]))


def failure_of(corpus: Corpus, kind: str, moves: Sequence[Move]) -> tuple[BrokenError | None, History]:
    """Play moves; return what was broken, if anything, and the history as it was told."""
    history = History(corpus, kind, moves)
    try:
        history.play()
    except BrokenError as error:
        return error, history
    return None, history


def shrink(corpus: Corpus, kind: str, moves: Sequence[Move]) -> list[Move]:
    """Return fewer and smaller moves that break something still."""
    best = list(moves)
    is_shorter = True
    while is_shorter:
        is_shorter = False
        for index in reversed(range(len(best))):
            fewer = [*best[:index], *best[index + 1 :]]
            if failure_of(corpus, kind, fewer)[0] is not None:
                best, is_shorter = fewer, True
        for index, move in enumerate(best):
            if move.kind == "steps" and move.amount > 1:
                smaller = [*best[:index], replace(move, amount=move.amount // 2), *best[index + 1 :]]
                if failure_of(corpus, kind, smaller)[0] is not None:
                    best, is_shorter = smaller, True
    return best


def told(history: History, error: BrokenError | None) -> str:
    """Return a history as prose."""
    place = {"disk": "a local disk", "s3": "S3", "bare": "S3 without conditions"}[history.kind]
    return "\n".join([f"On {place}:", *history.said, f"Then: {error}" if error else "All is well."])


Judge = Callable[[int], None]
