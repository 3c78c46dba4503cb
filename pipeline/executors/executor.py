"""Who runs the stages, and what is told meanwhile: the meeting point of a job and its executor.

Knows no Ray: ray_graph.py and plain_loop.py are the two ways to run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline.contract.columns import motion_bytes_a_window, token_row_bytes
from pipeline.contract.specs import Numerics, TokenSpec
from pipeline.plan.units import Unit
from pipeline.run.account import UnitAccount
from pipeline.run.flow import Flow
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.run.tasks import RunTasks
from pipeline.stages.blocks import MotionBlock, TokenBlock
from pipeline.stages.isolation import Survives
from pipeline.stages.measure import UnitMeasurer, UnitStatistics
from pipeline.stages.read import UnitReader
from pipeline.stages.write import FragmentWriter

if TYPE_CHECKING:  # tokenize_stage.py imports torch, which tasks that only read or write need not wait for
    from pipeline.stages.tokenize_stage import TokenizeListener, TokenizerSettings


TOKENIZERS_A_WRITER = 2
"""A row of 3,000 windows is written in 0.02 s of a core; remote storage may take ten times as long to answer."""
WRITER_CPUS = 0.01
"""What a writer reserves: next to nothing, for where there is but one core, and not nothing, or it may land where no
work is wanted."""
MOST_WRITES_AT_ONCE, WRITE_BYTES = 8, 2 << 30
"""Rows that a writer has in work at a time, for storage answers late, and bytes of tokens that they may come to."""


def num_writers(num_actors: int) -> int:
    """Return how many writers stand behind so many tokenizers."""
    return math.ceil(num_actors / TOKENIZERS_A_WRITER)


def writes_at_once(runs: Sequence[Sequence[Unit]], spec: TokenSpec) -> int:
    """Return how many rows a writer has in work at a time: fewer where they become large.

    At a stride of one frame, tokens are several times as large as the motion they come from.
    """
    largest = max(sum(unit.num_bytes for unit in run) for run in runs)
    token_bytes = max(1.0, largest / motion_bytes_a_window(spec) * token_row_bytes(spec))
    return max(1, min(MOST_WRITES_AT_ONCE, int(WRITE_BYTES / token_bytes)))


class Tokenizer(Protocol):
    """What the graph hosts: motion of a run of units in, its tokens out."""

    @property
    def is_shared(self) -> bool:
        """Whether several threads may call `tokenize`."""

    def tokenize(self, block: MotionBlock) -> TokenBlock:
        """Return the tokens of a block."""


def tokenizer_of(codec: bytes, settings: TokenizerSettings, listener: TokenizeListener) -> Tokenizer:
    """Return the tokenizer of a job."""
    from pipeline.stages.tokenize_stage import TokenizerActor

    return TokenizerActor(codec, settings, listener)


@dataclass(frozen=True)
class TokenizeStages:
    """The three stages of a job and what they run on; built by the driver."""

    reader: UnitReader
    codec: bytes
    tokenizer: TokenizerSettings
    writer: FragmentWriter
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    make_tokenizer: Callable[[bytes, TokenizerSettings, TokenizeListener], Tokenizer] = tokenizer_of
    """Builds the tokenizer where it works."""
    min_actors: int | None = None
    """So many are started at once and must stand in time, more may follow up to `num_actors`; None: all."""
    wait_for_resources_s: float = 600.0
    """How long until they must stand; work begins with the first of them."""


class TokenizeProgress:
    """Hears from the tokenizers while they work, and tells them to stop; built by the driver for one job."""

    def __init__(self, observer: JobObserver, record: JobRecord, stop: StopSwitch) -> None:
        """Args: observer: who watches; record: where the time is booked; stop: asked between units."""
        self._observer, self._record, self._stop = observer, record, stop
        self._is_ready = False
        observer.on_stage("workers")

    @property
    def is_stopping(self) -> bool:
        """Whether no more units are to be handed out."""
        return self._stop.is_set

    @property
    def was_signalled(self) -> bool:
        """Whether a signal asked to stop: then nothing more is to be begun, not even an export."""
        return self._stop.was_signalled

    def check(self, is_drained: bool = False) -> None:
        """Leave, where stopping was asked for and the grace time is over or nothing is in flight any more.

        Raises:
            Stopped: a signal asked for it.
            IncompleteError: deadline or longest run time asked for it.
        """
        self._stop.check(is_drained)

    def ready(self, age_s: float) -> None:
        """The first tokenizer stood ready so many seconds ago."""
        if not self._is_ready:
            self._is_ready = True
            self._record.lap("workers", age_s)
            self._observer.on_stage("tokenize")

    def lost(self, limit_s: float) -> None:
        """All tokenizers are lost with their nodes; the job ends where none stands again within so many seconds."""
        self._observer.on_lost_tokenizers(limit_s)

    def begun(self, num_windows: int, num_bytes: int) -> None:
        """So many windows, read from so many bytes of input, are taken up."""
        self._observer.on_begun(num_windows, num_bytes)

    def encoded(self, num_windows: int) -> None:
        """So many more windows are encoded."""
        self._observer.on_windows(num_windows)

    def flowed(self, flow: Flow) -> None:
        """Units stand so between the stages."""
        self._record.counts.update({f"{kind}_retries": count for kind, count in flow.retries.items()})
        self._observer.on_flow(flow)

    def committed(self, account: UnitAccount) -> None:
        """A run of units has its fragments."""
        self._record.book(account)
        self._observer.on_account(account)


Answer = TypeVar("Answer")


class AskWorker(Protocol):
    """How a function is called where a tokenizer would work: on its device, and on its kind of machine."""

    def __call__(self, ask: Callable[[], Answer]) -> Answer:
        """Return what a function gives there.

        Args:
            ask: can be pickled, as its answer can.

        Raises:
            ResourcesError: a cluster has no place for a tokenizer within `run.wait_for_resources_s`.
            IncompleteError: the worker was lost.
        """


RunStages = Callable[[Sequence[Sequence[Unit]], TokenizeStages, TokenizeProgress], Iterator[UnitAccount]]
MeasureUnits = Callable[[Sequence[Sequence[Unit]], UnitMeasurer, int | None], Iterator[UnitStatistics]]
"""Measure runs of units in so many tasks at once (None: as many as there is room for), in any order."""


@dataclass(frozen=True)
class Executor:
    """Who runs the stages: this process, or Ray with so many CPUs and GPUs."""

    name: str
    start: Callable[[], None]
    """Called once there is work; a second call does nothing."""
    tokenize: RunStages
    build: RunTasks
    """Runs the tasks of an export."""
    measure: MeasureUnits
    survives: Survives
    ask_worker: AskWorker
    cpus_of_nodes: Sequence[float]
    """CPUs of each machine, 0 where it runs no tasks."""
    num_gpus: float

    @property
    def num_cpus(self) -> float:
        """CPUs that are left when the largest machine is lost: what tokenizers may reserve, or reading starves."""
        total = sum(self.cpus_of_nodes)
        return (total - max(self.cpus_of_nodes) if self.num_machines > 1 else total) or 1.0

    @property
    def num_machines(self) -> int:
        """Machines that run tasks, one at least."""
        return max(1, sum(cpus > 0 for cpus in self.cpus_of_nodes))

    @property
    def cores_a_machine(self) -> int:
        """CPUs of the smallest machine that runs tasks: what one tokenizer can count on."""
        return max(1, int(min((cpus for cpus in self.cpus_of_nodes if cpus > 0), default=1)))

    def numerics(self) -> Numerics:
        """Return what tokenizers compute with.

        Raises:
            ResourcesError, IncompleteError: as `ask_worker` says.
        """
        return self.ask_worker(_numerics_there)


def _numerics_there() -> Numerics:
    from pipeline.stages.codec import numerics_here, pick_device

    return numerics_here(pick_device())
