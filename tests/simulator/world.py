"""A world to try histories in: storage by the rules of a local disk or of S3, processes on hosts, and their time.

Everything happens in one thread at a time. A process (a command, in a thread) stands still before each question to,
or change of, its storage until the history lets it go on; it can be killed or paused there. Time passes only where a
process waits. What a place promises is all that it keeps:

- `disk`: a file appears whole; of several creators one wins; a lock ends with its process; after a power cut, files
  that were moved and not synced are as before.
- `s3`: a file appears whole; of several creators one wins; a write can be bound to what stands; an upload that was
  ended by someone else never appears; an answer can be lost after the server acted.
- `bare`: as `s3`, but no write is bound to anything: creators overwrite each other.

One thing is taken for granted of `s3` and `bare`: a deletion reaches the server right after the look that allows it.
"""

from __future__ import annotations

import errno
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count

import pytest

from pipeline.job import request
from pipeline.run import ownership
from pipeline.run.ownership import Heartbeat, Ticker
from pipeline.stages.codec import open_codec
from pipeline.storage import StoredFile
from pipeline.storage.folder import SCHEMES
from pipeline.storage.remote import RemoteFiles
from pipeline.storage.retries import RETRY_POLICY, RetryPolicy

SCHEME = "sim"
OP_S = 0.02
"""What an operation takes."""
BEAT_S = 5.0
SKEW_S = {"near": 0.0, "far": 90.0}
"""By how much the clock of a host is ahead."""
PLACES = (("near", "1"), ("near", "2"), ("far", "1"))
"""Hosts, and namespaces of processes on them."""
PATIENCE_S = 60.0
"""Real seconds after which a history that hangs is a failure of the simulator."""
WORLDS: dict[str, World] = {}


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Fault:
    """What befalls the next operations of a process."""

    kind: str
    """`full`: writes fail; `lost`: one write is done, and its answer lost; `refused`: one operation fails."""
    left: int


class Process:
    """A command in a thread, which goes on only while the history lets it."""

    def __init__(self, world: World, name: str, place: tuple[str, str], work: Callable[[], object]) -> None:
        self.world, self.name, self.place = world, name, place
        self.pid = 10 + sum(other.place == place for other in world.processes.values())
        self.is_over = self.is_killed = self.is_paused = self.was_paused = False
        self.error: BaseException | None = None
        self.wakes_at = 0.0
        self.next_op = ""
        self.fault: Fault | None = None
        self.locks = 0
        self.beats: SimTicker | None = None
        self._goes, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._await()

    def _run(self) -> None:
        CURRENT.process = self
        try:
            self.stand("start")
            self._work()
        except BaseException as error:  # noqa: BLE001 - the history asks what ended it
            self.error = error
        self.is_over = True
        self.world.release_lock(self)
        if self.beats is not None:
            self.beats.is_on = False
        self._stands.release()

    def stand(self, op: str) -> None:
        """Called in the process: stand still until it may do its next operation."""
        if self.is_killed:
            raise Killed
        self.next_op = op
        self._stands.release()
        self._goes.acquire()
        if self.is_killed:
            raise Killed

    def go(self) -> None:
        """Let it do one operation; where it waits, time passes until it wakes."""
        if self.wakes_at > self.world.now:
            self.world.pass_time(self.wakes_at - self.world.now)
        self.world.now += OP_S
        self._goes.release()
        self._await()

    def kill(self) -> None:
        """End it at once."""
        self.is_killed = True
        if not self.is_over:
            self._goes.release()
            self._await()

    def sleep(self, seconds: float) -> None:
        """Called in the process: wait."""
        self.wakes_at = self.world.now + seconds
        self.stand(f"wait {seconds:.0f} s")

    def _await(self) -> None:
        assert self._stands.acquire(timeout=PATIENCE_S), f"{self.name} hangs at {self.next_op}"


class _Current(threading.local):
    process: Process | None = None


CURRENT = _Current()


class SimTicker(Ticker):
    """Beats of a process: when they are due, unless it is paused."""

    def __init__(self, world: World) -> None:
        self.world, self.is_on, self.due = world, False, 0.0

    def start(self, beat: Callable[[], bool]) -> None:
        if CURRENT.process is None:
            return  # a run alone
        self.process, self._beat = CURRENT.process, beat
        self.process.beats = self
        self.is_on, self.due = True, self.world.now + BEAT_S

    def stop(self) -> None:
        self.is_on = False

    def beat(self) -> None:
        """Beat once, at one stroke."""
        self.due = self.world.now + BEAT_S
        with self.world.at_one_stroke(self.process):
            if not self._beat():
                self.is_on = False


@dataclass
class World:
    """Files, processes and time."""

    kind: str
    files: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    unsynced: dict[str, bytes | None] = field(default_factory=dict)
    """What stood before each file that a power cut may take back."""
    temporaries: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, str] = field(default_factory=dict)
    """Upload -> path."""
    processes: dict[str, Process] = field(default_factory=dict)
    now: float = 1000.0
    on_change: Callable[[str], None] = lambda path: None
    """Told each path that was written or deleted."""
    trace: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _lock: Process | None = None
    _stroke: Process | None = None

    def start(self, name: str, place: tuple[str, str], work: Callable[[], object]) -> Process:
        """Start a process in a place: a host, and a namespace of processes on it."""
        self.processes[name] = Process(self, name, place, work)
        return self.processes[name]

    def living(self) -> list[Process]:
        """Processes that have not ended."""
        return [process for process in self.processes.values() if not process.is_over]

    def pass_time(self, seconds: float) -> None:
        """Let time pass; whoever is not paused beats meanwhile."""
        end = self.now + seconds
        while True:
            due = [
                process.beats
                for process in self.living()
                if process.beats is not None and process.beats.is_on and not process.is_paused
            ]
            following = min(due, key=lambda beats: beats.due, default=None)
            if following is None or following.due > end:
                break
            self.now = max(self.now, following.due)
            following.beat()
        self.now = max(self.now, end)

    def cut_power(self, keep: Callable[[], bool]) -> None:
        """Kill every process, and take back what was not synced, unless it is kept by chance."""
        for process in self.living():
            process.kill()
        for path, before in self.unsynced.items():
            if not keep():
                self._put(path, before)
        self.unsynced.clear()

    @contextmanager
    def at_one_stroke(self, process: Process) -> Iterator[None]:
        """Within such a block, nobody stands still."""
        before, self._stroke = self._stroke, process
        last, CURRENT.process = CURRENT.process, process
        try:
            yield
        finally:
            self._stroke, CURRENT.process = before, last

    def operation(self, op: str, path: str, writes: bool = False) -> None:
        """Called before each operation: stand still, then perhaps fail."""
        process = CURRENT.process
        if process is None:
            return
        if self._stroke is None:
            process.stand(f"{op} {path}")
        fault = process.fault
        if fault is not None and self._stroke is None:
            if fault.kind == "full" and writes:
                fault.left -= 1
                process.fault = fault if fault.left else None
                raise OSError(errno.ENOSPC, "no space left")
            if fault.kind == "refused":
                process.fault = None
                raise OSError(errno.EIO, "refused")

    def answer(self) -> None:
        """Called after each write: perhaps its answer is lost."""
        process = CURRENT.process
        if process is not None and process.fault is not None and process.fault.kind == "lost" and self._stroke is None:
            process.fault = None
            raise OSError(errno.EIO, "no answer")

    def put(self, path: str, data: bytes | None) -> None:
        """Make bytes the file, or none."""
        self.unsynced.setdefault(path, self.files.get(path))
        self._put(path, data)
        self.on_change(path)

    def sync(self, path: str) -> None:
        """From now on a file survives a power cut."""
        self.unsynced.pop(path, None)

    def _put(self, path: str, data: bytes | None) -> None:
        if data is None:
            self.files.pop(path, None)
        else:
            self.files[path] = data
            self.versions[path] = next(self._numbers)

    def take_lock(self, process: Process | None) -> None:
        """Wait for the one lock of the disk."""
        while self._lock is not None and self._lock is not process:
            assert process is not None
            process.stand("wait for the lock")
        self._lock = process
        if process is not None:
            process.locks += 1

    def release_lock(self, process: Process | None) -> None:
        """Give the lock back, all at once where the process has ended."""
        if process is None or self._lock is not process:
            return
        process.locks = 0 if process.is_over or process.is_killed else process.locks - 1
        if process.locks <= 0:
            self._lock = None

    def number(self) -> int:
        """Return a number that nobody else has."""
        return next(self._numbers)


class SimFiles(RemoteFiles):
    """The verbs of storage in a world; its URL is ``sim://<world>/..``."""

    def __init__(self, url, options, retries=RETRY_POLICY) -> None:
        super().__init__(url, {}, retries)
        rest = url.partition("://")[2]
        self.world_name, _, self.root = rest.partition("/")

    @property
    def world(self) -> World:
        return WORLDS[self.world_name]

    def at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _below(self, path: str) -> list[str]:
        prefix = f"{self.at(path)}/"
        return sorted(name for name in self.world.files if name.startswith(prefix))

    def walk(self, prefix: str) -> list[StoredFile]:
        self.world.operation("list", self.at(prefix))
        start = len(self.root) + 1
        return [self._stored(name[start:]) for name in self._below(prefix)]

    def names(self, prefix: str) -> list[str]:
        self.world.operation("list", self.at(prefix))
        start = len(self.at(prefix)) + 1
        return sorted({name[start:].partition("/")[0] for name in self._below(prefix)})

    def _stored(self, path: str) -> StoredFile:
        name = self.at(path)
        return StoredFile(path, len(self.world.files[name]), str(self.world.versions[name]))

    def stat(self, path: str) -> StoredFile | None:
        self.world.operation("look at", self.at(path))
        if self.at(path) not in self.world.files:
            raise FileNotFoundError(path)
        return self._stored(path)

    def stands(self, path: str) -> bool:
        self.world.operation("look at", self.at(path))
        return self.at(path) in self.world.files

    def read(self, path: str) -> bytes:
        self.world.operation("read", self.at(path))
        try:
            return self.world.files[self.at(path)]
        except KeyError:
            raise FileNotFoundError(path) from None

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        return self.read(path)[start:stop]

    def read_range_of(self, path: str, version: str, start: int, stop: int) -> bytes:
        return self.read(path)[start:stop]

    def publish(self, path: str, data) -> None:
        if self.world.kind == "disk":
            self.commit(path, self.stage(path, data))
            return
        self.world.operation("write", self.at(path), writes=True)
        self.world.put(self.at(path), bytes(data))
        self.world.sync(self.at(path))
        self.world.answer()

    def publish_new(self, path: str, data) -> bool:
        if self.stands(path):
            return False
        self.world.operation("create", self.at(path), writes=True)
        if self.world.kind != "bare" and self.at(path) in self.world.files:
            return self.world.kind != "disk" and self.world.files[self.at(path)] == data
        self.world.put(self.at(path), bytes(data))
        if self.world.kind == "disk":
            self.world.operation("sync", self.at(path))
        self.world.sync(self.at(path))
        self.world.answer()
        return True

    def stage(self, path: str, data) -> tuple[str, bytes]:
        self.world.operation("send", self.at(path), writes=True)
        name = f"{self.at(path)}#{self.world.number()}"
        if self.world.kind == "disk":
            self.world.temporaries[name] = bytes(data)
        else:
            self.world.uploads[name] = self.at(path)
        return name, bytes(data)

    def commit(self, path: str, staged: tuple[str, bytes]) -> None:
        name, data = staged
        self.world.operation("write", self.at(path), writes=True)
        standing = self.world.temporaries if self.world.kind == "disk" else self.world.uploads
        if standing.pop(name, None) is None:
            raise FileNotFoundError(path)
        self.world.put(self.at(path), data)
        if self.world.kind == "disk":
            self.world.operation("sync", self.at(path))
        self.world.sync(self.at(path))
        self.world.answer()

    def discard(self, path: str, staged: tuple[str, bytes]) -> None:
        self.world.temporaries.pop(staged[0], None)
        self.world.uploads.pop(staged[0], None)

    def delete(self, path: str) -> None:
        process = CURRENT.process
        if self.world.kind == "disk":
            self.world.operation("delete", self.at(path), writes=True)
        elif process is not None and process.is_killed:
            raise Killed
        if self.at(path) not in self.world.files:
            raise FileNotFoundError(path)
        self.world.put(self.at(path), None)
        self.world.sync(self.at(path))

    @contextmanager
    def locked(self) -> Iterator[None]:
        if self.world.kind != "disk" or (self.world._stroke is not None and self.world._lock is not None):
            yield
            return
        process = CURRENT.process
        self.world.take_lock(process)
        try:
            yield
        finally:
            self.world.release_lock(process)

    def swap(self, path: str, standing: bytes | None, data: bytes | None) -> bool:
        if self.world.kind == "bare" or data is None:
            return super().swap(path, standing, data)
        try:
            found: bytes | None = self.read(path)
        except FileNotFoundError:
            found = None
        if found != standing:
            return found == data
        self.world.operation("replace", self.at(path), writes=True)
        found = self.world.files.get(self.at(path))
        if found != standing:
            return found == data
        self.world.put(self.at(path), data)
        self.world.sync(self.at(path))
        self.world.answer()
        return True

    def abandon_uploads(self) -> int:
        self.world.operation("end uploads", self.root)
        ours = [name for name, path in self.world.uploads.items() if path.startswith(f"{self.root}/")]
        for name in ours:
            del self.world.uploads[name]
        return len(ours)


@contextmanager
def simulated() -> Iterator[None]:
    """Time is the world's, pools do their work at once, and `sim://` is a place."""
    SCHEMES[SCHEME] = SimFiles
    policy = {"sleep": RETRY_POLICY.sleep, "clock": RETRY_POLICY.clock}

    def sleep(seconds: float) -> None:
        process = CURRENT.process
        if process is not None and process.world._stroke is None:
            process.sleep(seconds)

    def here() -> Process | None:
        return CURRENT.process

    def clock() -> float:
        process = here()
        return process.world.now if process is not None else 0.0

    now = clock

    def heartbeat_here(run_id: str) -> Heartbeat:
        process = here()
        pid = process.pid if process is not None else 1
        return Heartbeat(run_id, platform.node(), processes_here(), pid, process_start(pid))

    def processes_here() -> str:
        process = here()
        return "/".join(process.place) if process is not None else "nowhere"

    def process_start(pid: int) -> str:
        process = here()
        if process is None:
            return "alone"
        found = [other for other in process.world.living() if other.place == process.place and other.pid == pid]
        return found[0].name if found and not found[0].is_killed else ""

    @cache
    def read_checkpoint(url: str):
        return open_codec(url)

    def read_once(url: str, **others):
        return read_checkpoint(url)

    def submit(pool, function, *arguments, **named):
        future: Future = Future()
        try:
            future.set_result(function(*arguments, **named))
        except BaseException as error:  # noqa: BLE001 - handed over as a pool does
            future.set_exception(error)
        return future

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(ThreadPoolExecutor, "submit", submit)
        patch.setattr(request, "open_codec", read_once)
        patch.setattr(RetryPolicy, "draw_waits", lambda policy: iter(policy.waits_s))
        patch.setattr(ownership, "heartbeat_here", heartbeat_here)
        patch.setattr(ownership, "processes_here", processes_here)
        patch.setattr(ownership, "process_start", process_start)
        patch.setattr(platform, "node", lambda: here().place[0] if here() else "nowhere")
        patch.setattr(time, "time", lambda: now() + SKEW_S.get(here().place[0], 0) if here() else now())
        object.__setattr__(RETRY_POLICY, "sleep", sleep)
        object.__setattr__(RETRY_POLICY, "clock", clock)
        try:
            yield
        finally:
            for name, value in policy.items():
                object.__setattr__(RETRY_POLICY, name, value)
            del SCHEMES[SCHEME]
