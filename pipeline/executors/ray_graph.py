"""READ FIRST. Every stage of a job, in order, on one page.

    units --read--> motion --tokenize--> bits --write--> fragments    (tokenize_with_ray)
    fragments --build--> shards                                       (build_with_ray)
    fragments --deal--> slots --gather--> shards, shuffled            (build_with_ray, twice)

In the first line, a Ray Data graph, one row is one run of units: tasks read it, actors tokenize and write it; the
others need no graph, only tasks. What a stage does stands in read_units.py, tokenizer_actor.py, write_fragments.py,
export/build.py and export/shuffle.py; here is only who calls whom, and on what. plain_loop.py calls the same stages
without Ray.
Exactly-once comes from planned units and atomic commits, never from Ray: a row may pass a stage twice.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import IncompleteError, ResourcesError
from pipeline.executors.executor import (
    WRITER_CPUS,
    Answer,
    TokenizeProgress,
    Tokenizer,
    TokenizeStages,
    num_writers,
    writes_at_once,
)
from pipeline.executors.ray_errors import no_place, raised_as_own
from pipeline.executors.ray_hub import JobHub, News
from pipeline.executors.ray_rows import configure_ray_data, rows_of
from pipeline.plan.units import Unit
from pipeline.run.account import UnitAccount
from pipeline.run.flow import BEFORE_TOKENS, Flow
from pipeline.run.tasks import Builder, Result, Task
from pipeline.stages.blocks import MotionBlock, TokenBlock, units_from_text, units_to_text
from pipeline.stages.read import UnitReader
from pipeline.stages.write import FragmentWriter
from pipeline.storage import num_retries

if TYPE_CHECKING:  # it imports torch, which workers that only read or write need not wait for
    from pipeline.stages.tokenize_stage import TokenizerSettings

UnitRun = Sequence[Unit]
CALLS_AT_ONCE, CALLS_AHEAD = 2, 2
"""Rows that a tokenizer on a GPU has in work at a time; rows that one on a CPU is handed before their turn."""
FEWEST_GPU_CALLS_AHEAD, MOST_GPU_CALLS_AHEAD, GPU_AHEAD_BYTES = 4, 16, 2 << 30
"""Ray Data looks about every 0.1 s for what has finished and hands out more, and later where many rows are under way;
in that time a GPU is through with three rows of 128 MiB or more."""
READER_CPUS, READER_CPUS_BESIDE_GPUS = 0.5, 0.75
"""What a reader reserves. Beside GPUs there is about one a core then: as many processes as Ray starts at once."""
NODES_INTERVAL_S = 5.0
"""Between two questions which nodes are alive."""
CRASH_RETRIES = 2
"""Tries of a task after its process died; then its units are left to be looked at one by one."""

_RemoteHub: Any = ray.remote(num_cpus=0)(JobHub)


def tokenize_with_ray(
    runs: Sequence[UnitRun], stages: TokenizeStages, progress: TokenizeProgress
) -> Iterator[UnitAccount]:
    """Read in Ray tasks, tokenize and write in pools of actors; only accounts reach the driver."""
    if not runs:
        return
    configure_ray_data()
    hub = start_hub(stages.codec)
    rows = ray.data.from_items([{"units": units_to_text(run)} for run in runs], override_num_blocks=len(runs))
    one_row = {"batch_size": 1, "batch_format": "pyarrow"}

    reader_cpus = READER_CPUS_BESIDE_GPUS if stages.gpus_per_actor else READER_CPUS
    reader = _ReadTask(stages.reader, hub)
    motion = rows.map_batches(reader, num_cpus=reader_cpus, max_retries=CRASH_RETRIES, **one_row)
    tokens = motion.map_batches(
        _HostedTokenizer,
        fn_constructor_args=(hub, stages.tokenizer, stages.host),
        compute=_actor_pool(stages, gpu_calls_ahead(runs)),
        num_cpus=stages.cpus_per_actor,
        num_gpus=stages.gpus_per_actor,
        max_restarts=-1,
        max_task_retries=CRASH_RETRIES,
        **one_row,
    )
    accounts = tokens.map_batches(
        _HostedWriter,
        fn_constructor_args=(hub, stages.writer),
        compute=_writer_pool(stages, runs),
        num_cpus=WRITER_CPUS,
        max_restarts=-1,
        max_task_retries=CRASH_RETRIES,
        **one_row,
    )

    watch = Watch(hub, progress, stages)
    try:
        with raised_as_own(hub):
            for text in rows_of(accounts, "account", watch.look):
                watch.look()
                yield UnitAccount.from_text(text)
            watch.look()
    except IncompleteError:
        progress.check(is_drained=True)  # a stop took the workers too
        raise


def start_hub(weights: bytes) -> Any:
    """Return the hub of one graph, an actor on the driver's own node: any other may be lost, and the job goes on."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return _RemoteHub.options(scheduling_strategy=here).remote(weights)


def gpu_calls_ahead(runs: Sequence[UnitRun]) -> int:
    """Return how many rows a tokenizer on a GPU is handed before their turn: fewer where they are large."""
    largest = max(sum(unit.num_bytes for unit in run) for run in runs)
    return max(FEWEST_GPU_CALLS_AHEAD, min(MOST_GPU_CALLS_AHEAD, GPU_AHEAD_BYTES // max(1, largest)))


def _actor_pool(stages: TokenizeStages, gpu_calls: int) -> ActorPoolStrategy:
    """Return how many actors there are, and how they take rows."""
    sizes = {"min_size": stages.min_actors or stages.num_actors, "max_size": stages.num_actors}
    if stages.gpus_per_actor:
        return ActorPoolStrategy(
            **sizes,
            max_tasks_in_flight_per_actor=gpu_calls,
            enable_true_multi_threading=True,
            max_concurrent_calls_per_actor=CALLS_AT_ONCE,
        )
    return ActorPoolStrategy(**sizes, max_tasks_in_flight_per_actor=CALLS_AHEAD)


def _writer_pool(stages: TokenizeStages, runs: Sequence[UnitRun]) -> ActorPoolStrategy:
    """Return how many writers there are, and how they take rows.

    They are no tasks: a task that finds every process busy with reading has Ray start another one, dozens at a time.
    """
    at_once = writes_at_once(runs, stages.writer.contract.spec)
    return ActorPoolStrategy(
        size=num_writers(stages.num_actors),
        max_tasks_in_flight_per_actor=2 * at_once,
        enable_true_multi_threading=True,
        max_concurrent_calls_per_actor=at_once,
    )


def ask_with_ray(ask: Callable[[], Answer], each: Mapping[str, float], wait_s: float) -> Answer:
    """Call a function in a worker of its own, with a tokenizer's place on the cluster, and return its answer.

    Raises:
        ResourcesError: there is no such place in time.
        IncompleteError: the worker was lost.
    """
    host: Any = ray.remote(_Asked).options(num_gpus=each["GPU"], num_cpus=each["CPU"]).remote()
    try:
        with raised_as_own():
            ray.get(host.__ray_ready__.remote(), timeout=wait_s)
            answer: Answer = ray.get(host.answer.remote(ask))
    except ray.exceptions.GetTimeoutError as error:
        raise no_place(1, each, wait_s) from error
    finally:
        ray.kill(host)
    return answer


def survives_with_ray(reader: UnitReader, unit: Unit) -> bool:
    """Read every clip of a unit in a worker, and say whether the worker lived; an exception is no death."""
    try:
        ray.get(ray.remote(max_retries=0, num_cpus=1)(_touch).remote(reader, unit))
    except ray.exceptions.RayTaskError:
        return True
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return False
    return True


def _touch(reader: UnitReader, unit: Unit) -> None:
    reader.touch(unit)


def build_with_ray(tasks: Sequence[Task], builder: Builder[Task, Result]) -> Iterator[Result]:
    """Do the tasks of an export in Ray tasks, a few ahead of what is taken."""
    build: Any = ray.remote(num_cpus=1)(_build_remotely)
    remote_builder = ray.put(builder)
    ahead = max(2, int(2 * ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    for task in tasks:
        waiting.append(build.remote(remote_builder, task))
        if len(waiting) >= ahead:
            yield from _first_done(waiting)
    while waiting:
        yield from _first_done(waiting)


def _build_remotely(builder: Builder[Task, Result], task: Task) -> list[Result]:
    return list(builder.build(task))


def _first_done(waiting: list[Any]) -> list[Any]:
    done, rest = ray.wait(waiting, num_returns=1)
    waiting[:] = rest
    with raised_as_own():
        results: list[Any] = ray.get(done[0])
    return results


class _ReadTask:
    """The read stage as a Ray task: one row of units in, one row of motion out; none once the job stops."""

    def __init__(self, reader: UnitReader, hub: Any) -> None:
        self._reader, self._hub = reader, hub

    def __call__(self, row: pa.Table) -> pa.Table:
        if ray.get(self._hub.is_stopping.remote()):
            return self._reader.read(()).to_table()
        with followed(self._hub, "read", row):
            return self._reader.read(units_from_text(row["units"][0].as_py())).to_table()


class _HostedTokenizer:
    """The tokenizer as a Ray actor; Ray builds it once a worker and calls it once a row, on a GPU from two threads."""

    def __init__(self, hub: Any, settings: TokenizerSettings, host: Callable[..., Tokenizer]) -> None:
        self._hub = hub
        with told(hub):
            self._tokenizer = host(ray.get(hub.codec.remote()), settings, _HubListener(hub))
        self._turn: AbstractContextManager[Any] = nullcontext() if self._tokenizer.is_shared else threading.Lock()
        hub.ready.remote(ray.get_runtime_context().get_node_id())

    def __call__(self, row: pa.Table) -> pa.Table:
        with followed(self._hub, "tokenize", row), self._turn:
            return self._tokenizer.tokenize(MotionBlock.from_table(row)).to_table()


class _HostedWriter:
    """The write stage as a Ray actor, called from several threads: one row of bits in, one account out."""

    def __init__(self, hub: Any, writer: FragmentWriter) -> None:
        self._hub, self._writer = hub, writer

    def __call__(self, row: pa.Table) -> pa.Table:
        with followed(self._hub, "write", row):
            return self._writer.write(TokenBlock.from_table(row)).to_table()


@contextmanager
def told(hub: Any) -> Iterator[None]:
    """Tell the driver of an exception through the hub: Ray passes some on as text, and some not at all."""
    try:
        yield
    except Exception as error:
        ray.get(hub.fail.remote(error))
        raise


@contextmanager
def followed(hub: Any, stage: str, row: pa.Table) -> Iterator[None]:
    """Tell the hub that a row of units goes through a stage, without waiting, and of an exception there."""
    units = row["units"][0].as_py().encode()
    run, retried = zlib.crc32(units), num_retries()
    hub.enter.remote(stage, run, units.count(b'"unit_key"'))
    with told(hub):
        yield
    hub.leave.remote(stage, run, num_retries() - retried)


class _Asked:
    """Answers one question where it was placed; built and ended by `ask_with_ray`."""

    def answer(self, ask: Callable[[], Any]) -> Any:
        """Return what a function gives here."""
        return ask()


@dataclass(frozen=True)
class _HubListener:
    """Passes a tokenizer's words on to the hub, without waiting."""

    hub: Any

    def begun(self, num_windows: int, num_bytes: int) -> None:
        self.hub.begun.remote(num_windows, num_bytes)

    def encoded(self, num_windows: int) -> None:
        self.hub.encoded.remote(num_windows)


class Watch:
    """Passes on what the hub knows, and the word to stop. Built for one graph by the driver, who looks every tick.

    Reading begins while the tokenizers start, so it is here that somebody notices that they never do, or that all of
    their nodes are lost: Ray builds them again where there is a place, and waits for one without a word.

    Args:
        hub: what `start_hub` gave.
        nodes_interval_s: between two questions which nodes are alive.
    """

    def __init__(
        self,
        hub: Any,
        progress: TokenizeProgress,
        stages: TokenizeStages,
        nodes_interval_s: float = NODES_INTERVAL_S,
    ) -> None:
        self._hub, self._progress, self._stages = hub, progress, stages
        self._nodes_interval_s = nodes_interval_s
        self._min_actors = stages.min_actors or stages.num_actors
        self._deadline = time.monotonic() + stages.wait_for_resources_s
        self._flow: Flow | None = None
        self._lost_at: float | None = None
        self._moved_at = self._nodes_asked_at = -math.inf

    def look(self) -> None:
        """Take what is new.

        Raises:
            ResourcesError: too few tokenizers stood ready in time, or all were lost and none stood again in time.
            Exception: the first that a stage met.
        """
        hub, progress = self._hub, self._progress
        progress.check()
        if progress.is_stopping:
            hub.stop.remote()
        news: News = ray.get(hub.take.remote())
        if news.ready_age_s is not None:
            progress.ready(news.ready_age_s)
        progress.begun(news.begun_windows, news.begun_bytes)
        progress.encoded(news.encoded_windows)
        progress.flowed(news.flow)
        self._check_place(news.num_ready)
        if self._deadline == math.inf:
            self._check_hosts(news)

    def _check_place(self, num_ready: int) -> None:
        if num_ready >= self._min_actors:
            self._deadline = math.inf  # those that were lost later are built again
        elif time.monotonic() > self._deadline:
            raise self._no_place(self._min_actors)

    def _check_hosts(self, news: News) -> None:
        """Notice that all nodes with tokenizers are lost while units wait for one, and nothing moves any more."""
        now = time.monotonic()
        if news.encoded_windows or news.flow != self._flow:
            self._flow, self._moved_at = news.flow, now
        if not any(news.flow.in_flight[state] for state in BEFORE_TOKENS):
            self._lost_at = None  # where nothing waits, a cluster may take its nodes back
            return
        if now < self._nodes_asked_at + self._nodes_interval_s:
            return
        self._nodes_asked_at = now
        if news.hosts & {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = now
            self._progress.lost(self._stages.wait_for_resources_s)
        elif now > max(self._lost_at, self._moved_at) + self._stages.wait_for_resources_s:
            raise self._no_place(1, "the nodes of all tokenizers were lost, and ")

    def _no_place(self, num_workers: int, before: str = "") -> ResourcesError:
        each = {"GPU": self._stages.gpus_per_actor, "CPU": self._stages.cpus_per_actor}
        return no_place(num_workers, each, self._stages.wait_for_resources_s, before)
