"""Two runs on one output, stepped in any order and killed at any step: the next run ends in the bytes of one alone.

A step is one question to, or one change of, the output's storage. Everything but the model's arithmetic is real.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pipeline.contract.specs import Numerics
from pipeline.dataset.manifest import Manifest
from pipeline.executors.executor import Executor
from pipeline.executors.plain_loop import build_here, measure_here
from pipeline.job.tokenize_job import JobControl, tokenize_dataset
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.settings.job_config import TokenizeRequest, load_config
from pipeline.stages.blocks import TokenBlock
from pipeline.stages.tokenize_stage import constants_to_npz
from pipeline.storage import Folder
from pipeline.verify.verify_dataset import verify_dataset

OPERATIONS = ("list_files", "list_names", "stat", "read", "read_range", "open", "publish", "publish_new", "delete")
WRITES = ("publish", "publish_new", "delete")
STAGES = (
    "runs/",
    "plans/",
    "fragments/",
    "parquet/",
    "webdataset/",
    "versions/",
    "published/",
    "README.md",
    "index/",
    "dataset.json",
)
"""How the paths begin that a run writes one after the other."""
CORPORA = ("before", "fewer", "now")
OWN_FOLDERS = ("_store", "runs", "report")
SETTINGS = ("gate=off", "units.files=1", "export.windows_per_shard=6", "run.when_active=take_over")
PATIENCE_S = 60


class Killed(BaseException):
    """The run's process is gone: nothing of it reaches storage any more."""


class Run:
    """A job in a thread that goes on only while it is given steps."""

    def __init__(self, work):
        self.error, self.is_over, self.is_killed = None, False, False
        self.next_write = ""
        """Path that the operation it waits for would write, or delete."""
        self._left, self._waits, self._changed = 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._work, args=(work,), daemon=True)
        self._thread.start()

    def _work(self, work):
        try:
            self.step("")
            work()
        except BaseException as error:  # noqa: BLE001 - the test asks what ended the run
            self.error = error
        with self._changed:
            self.is_over = True
            self._changed.notify_all()

    def step(self, writes):
        """Called by the run before each operation: wait until it may do it."""
        with self._changed:
            self.next_write = writes
            while not self._left and not self.is_killed:
                self._waits = True
                self._changed.notify_all()
                self._changed.wait(PATIENCE_S)
            if self.is_killed:
                raise Killed
            self._left, self._waits = self._left - 1, False

    def advance(self, num_steps):
        """Let the run do so many operations, or fewer where it ends before."""
        with self._changed:
            self._left = num_steps
            self._waits = False
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.is_over or (self._waits and not self._left), PATIENCE_S)

    def advance_to(self, stage):
        """Let the run go on until it is about to write a file whose path begins so; at least one step."""
        self.advance(1)
        while not self.is_over and not self.next_write.startswith(stage):
            self.advance(1)

    def kill(self):
        with self._changed:
            self.is_killed = True
            self._changed.notify_all()
        self._thread.join(PATIENCE_S)
        assert self.is_over


def tokenize_without_model(runs, stages, progress):
    """The stages of plain_loop.py with hashes of the windows for bits."""
    store, codec = stages.tokenizer.store, stages.tokenizer.contract.codec
    nothing = np.zeros((codec.num_tokens, codec.code_dim // 8), np.uint8)
    if not store.folder.exists("constants.npz"):
        store.folder.publish("constants.npz", constants_to_npz(nothing, nothing, np.array(codec.patch_nums, np.int32)))
    progress.ready(0.0)
    for run in runs:
        block = stages.reader.read(run)
        seed = hashlib.sha256(block.motion.tobytes()).digest()[:8]
        rows = [
            hashlib.shake_128(seed + int(start).to_bytes(8, "big")).digest(2 * codec.half_bytes)
            for start in block.start_frame
        ]
        bits = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 2, codec.half_bytes)
        yield stages.writer.write(TokenBlock(block.units, bits, block.ledger, block.start_frame))


EXECUTOR = Executor(
    name="steps",
    start=lambda: None,
    tokenize=tokenize_without_model,
    build=build_here,
    measure=measure_here,
    survives=lambda reader, unit: True,
    ask_worker=lambda ask: Numerics(device="cpu", torch="0", pyarrow="0"),
    cpus_of_nodes=(1.0,),
    num_gpus=0.0,
)


def tokenize(motion, output, checkpoint, name):
    """Run one whole job; `name` travels with each of its folders. Its lease beats once: a beat would be a step."""
    config = load_config(None, [*SETTINGS, f"run.storage_options={json.dumps({'run': name})}"])
    request = TokenizeRequest((str(motion),), str(output), str(checkpoint), None, None, config)
    return tokenize_dataset(request, EXECUTOR, JobObserver(), JobRecord(), JobControl(name, StopSwitch(), beat_s=1e6))


def files_of(output, is_promised=True):
    """Bytes by path: of what is promised, or of the fragments."""
    found = {}
    for path in sorted(output.rglob("*")):
        relative = path.relative_to(output)
        is_own = relative.parts[0] in OWN_FOLDERS
        if path.is_file() and path.suffix != ".tmp" and (not is_own if is_promised else "fragments" in relative.parts):
            found[relative.as_posix()] = path.read_bytes()
    return found


class Place:
    """A corpus at three times, a codec, and what a run alone makes of each; folders for examples."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, self.checkpoint, self.num_outputs = folder, checkpoint, 0
        self.results, self.fragments = {}, {}
        for corpus in CORPORA:
            output = folder / f"alone-{corpus}"
            tokenize(folder / corpus, output, checkpoint, "alone")
            self.results[corpus], self.fragments[corpus] = files_of(output), files_of(output, is_promised=False)
        assert len({result["dataset.json"] for result in self.results.values()}) == len(CORPORA)

    def new_output(self) -> Path:
        self.num_outputs += 1
        return self.folder / f"o{self.num_outputs}"


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_clips, tiny_codec):
    folder = tmp_path_factory.mktemp("interleavings")
    clips = {f"clip{n}": 6 + 4 * n for n in range(5)}
    write_clips(folder / "now", clips)
    write_clips(folder / "before", {**clips, "clip2": clips["clip2"] + 1})  # as many windows, files of equal size
    write_clips(folder / "fewer", {"clip0": clips["clip0"], "clip9": 12})
    for path in folder.rglob("*.npz"):
        os.utime(path, ns=(10**18, 10**18))  # what did not change keeps its stamp
    start = ThreadPoolExecutor.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        # one thread a pool: what a run does follows one order
        patch.setattr(ThreadPoolExecutor, "__init__", lambda pool, *_, **__: start(pool, 1))
        yield Place(folder, tiny_codec)


class TwoRuns(RuleBasedStateMachine):
    """Starts, steps and kills runs; in the end one more run stands alone."""

    is_changed = False
    """Whether the corpus changes between the runs."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place, self.output = place, place.new_output()
        self.runs: dict[str, Run] = {}
        self.created: Counter[str] = Counter()
        self.first_bytes: dict[str, bytes] = {}
        self.corpora = {"now"}
        self.num_started = 0
        self.patch = pytest.MonkeyPatch()
        for name in OPERATIONS:
            self.patch.setattr(Folder, name, self.stepped(name, getattr(Folder, name)))

    def stepped(self, name, function):
        def step_then_do(folder, path="", *data):
            run = self.runs.get(folder.options.get("run", ""))
            if run is None or not folder.url.startswith(str(self.output)):
                return function(folder, path, *data)
            try:
                run.step(path if name in WRITES else "")
            except Killed:
                if data:
                    self.leave_half(Path(folder.url_of(path)), data[0])
                raise
            result = function(folder, path, *data)
            if name == "publish_new":
                self.created[path] += result
            return result

        return step_then_do

    def leave_half(self, target, data):
        """What a process leaves that dies while it writes."""
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / f".{target.name}.0123456789abcdef.tmp").write_bytes(bytes(data)[: len(data) // 2])

    def living(self):
        return [run for run in self.runs.values() if not run.is_over]

    def chosen(self, number):
        return self.living()[number % len(self.living())]

    @precondition(lambda self: len(self.living()) < 2)
    @rule(corpus=st.sampled_from(CORPORA))
    def start(self, corpus):
        corpus = corpus if self.is_changed else "now"
        self.corpora.add(corpus)
        self.num_started += 1
        name, place = f"run{self.num_started}", self.place
        work = partial(tokenize, place.folder / corpus, self.output, place.checkpoint, name)
        self.runs[name] = Run(work)

    @precondition(lambda self: self.living())
    @rule(number=st.integers(0, 1), num_steps=st.integers(1, 12))
    def go_on(self, number, num_steps):
        self.chosen(number).advance(num_steps)

    @precondition(lambda self: self.living())
    @rule(number=st.integers(0, 1), stage=st.sampled_from(STAGES))
    def go_to(self, number, stage):
        """Bring a run to where it is about to write a file of a stage."""
        self.chosen(number).advance_to(stage)

    @precondition(lambda self: self.living())
    @rule(number=st.integers(0, 1))
    def kill(self, number):
        self.chosen(number).kill()

    @invariant()
    def nobody_fails(self):
        for run in self.runs.values():
            if run.is_over and run.error is not None and not run.is_killed:
                assert getattr(run.error, "exit_code", None) == 75, repr(run.error)

    @invariant()
    def fragments_stand_as_they_were_created(self):
        standing = files_of(self.output, is_promised=False) if self.output.exists() else {}
        assert all(standing.get(path) == data for path, data in self.first_bytes.items())
        wanted = {path: data for corpus in self.corpora for path, data in self.place.fragments[corpus].items()}
        assert standing.items() <= wanted.items()
        self.first_bytes = standing
        assert all(count == 1 for path, count in self.created.items() if count)

    @invariant()
    def dataset_is_whole(self):
        """Whoever reads the dataset at this moment finds everything that it names."""
        try:
            data = (self.output / "dataset.json").read_bytes()
        except FileNotFoundError:
            return
        wanted = {self.place.results[corpus]["dataset.json"]: self.place.results[corpus] for corpus in self.corpora}
        manifest = Manifest.model_validate_json(data)
        for shards in manifest.shards.values():
            for shard in shards:
                assert (self.output / shard.path).read_bytes() == wanted[data][shard.path]
        for path in wanted[data]:
            if path.startswith(f"versions/{manifest.version}"):
                assert (self.output / path).read_bytes() == wanted[data][path]

    def teardown(self):
        try:
            for run in self.living():
                run.advance(10**6)
                assert run.is_over
            self.nobody_fails()
            self.fragments_stand_as_they_were_created()
            self.dataset_is_whole()
            tokenize(self.place.folder / "now", self.output, self.place.checkpoint, "last")
            self.check_end()
        finally:
            for run in self.living():
                run.kill()
            self.patch.undo()
            shutil.rmtree(self.output, ignore_errors=True)

    def check_end(self):
        wanted, found = self.place.results["now"], files_of(self.output)
        assert {path: found.get(path) for path in wanted} == wanted
        older = {path for corpus in self.corpora for path in self.place.results[corpus]}
        assert set(found) <= older
        fragments = files_of(self.output, is_promised=False)
        assert self.place.fragments["now"].items() <= fragments.items()
        manifest = Manifest.model_validate_json(found["dataset.json"])
        assert verify_dataset(Folder(str(self.output)), manifest, lambda path: None).is_sound


class TwoRunsOfAChangedCorpus(TwoRuns):
    is_changed = True


@pytest.mark.parametrize("machine", [TwoRuns, TwoRunsOfAChangedCorpus])
def test_two_runs_in_any_order_end_in_the_bytes_of_one(place, machine):
    run_state_machine_as_test(
        partial(machine, place),
        settings=settings(
            max_examples=25,
            stateful_step_count=14,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_run_killed_before_each_of_its_steps_is_continued(place):
    """Without chance: every step of a run, one after the other, is the last of it."""
    num_steps = 0
    while True:
        machine = TwoRuns(place)
        machine.start("now")
        run = machine.chosen(0)
        run.advance(num_steps + 1)
        is_over = run.is_over
        if not is_over:
            run.kill()
        machine.dataset_is_whole()
        machine.teardown()
        if is_over:
            break
        num_steps += 3
    assert num_steps > 40


@pytest.mark.parametrize("behind", ["versions/", "README.md", "index/clips", "quarantine", "dataset.json"])
@pytest.mark.parametrize("num_more", [1, 4])
def test_a_run_that_publishes_over_another_is_mended(place, behind, num_more):
    """One run of the older corpus wakes up late, writes some of its files, and dies; the newer one ends."""
    machine = TwoRunsOfAChangedCorpus(place)
    machine.start("before")
    late = machine.chosen(0)
    late.advance_to(behind)
    machine.start("now")
    machine.chosen(1).advance_to("dataset.json")
    late.advance(num_more)
    late.kill()
    machine.dataset_is_whole()
    machine.teardown()


@pytest.mark.parametrize("num_steps", range(1, 7))
def test_a_run_that_looks_while_another_begins_is_not_refused(place, num_steps):
    """It has looked so far, when the other one writes its contract and its first shards."""
    machine = TwoRuns(place)
    machine.start("now")
    machine.start("now")
    looks, begins = machine.runs.values()
    looks.advance(num_steps)
    begins.advance_to("webdataset/")
    looks.advance(3)
    machine.nobody_fails()
    machine.teardown()
