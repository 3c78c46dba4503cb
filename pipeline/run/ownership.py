"""One owner at a time of an output: names that runs share change through it alone, and only while it is the owner.

The owner's heartbeat stands in the output. Whoever takes over replaces it; whoever finds another's, or none, has lost
the output and changes nothing more. Knows no Ray or torch.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.errors import ActiveRunError, OwnershipLostError, StorageError
from pipeline.storage import Folder

HEARTBEAT_PATH = "runs/active.json"
BEAT_S = 5.0
"""Seconds between two beats of a run."""
STALE_S = 60.0
"""A heartbeat that somebody has watched for so long without a change is of a dead run."""
POLL_S = 1.0
_LEAP_S = 5.0
"""What counts of the time between two looks at most: the watcher itself may have been paused."""


@dataclass(frozen=True)
class Heartbeat:
    """Who works on an output."""

    run_id: str
    host: str
    processes: str
    """Where its number counts: this boot of the host, and the namespace of processes; empty where nobody can say."""
    pid: int
    process_start: str
    """Tells a process from a later one with its number."""
    beat: int = 0
    """Counts; no clock of another host is trusted."""

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to be gone."""
        return self._is_of_here and process_start(self.pid) != self.process_start

    @property
    def is_alive(self) -> bool:
        """Whether its process is known to be there, if paused."""
        return self._is_of_here and process_start(self.pid) == self.process_start

    @property
    def _is_of_here(self) -> bool:
        return bool(self.processes) and self.processes == processes_here()

    def to_bytes(self) -> bytes:
        """Return what stands in the output."""
        return json.dumps(asdict(self)).encode()


def heartbeat_here(run_id: str) -> Heartbeat:
    """Return the first heartbeat of a run in this process."""
    pid = os.getpid()
    return Heartbeat(run_id, platform.node(), processes_here(), pid, process_start(pid))


def heartbeat_of(data: bytes | None) -> Heartbeat | None:
    """Return the heartbeat that a file holds, None where that is nobody's."""
    try:
        return None if data is None else Heartbeat(**json.loads(data))
    except (ValueError, TypeError):
        return None


def read_heartbeat(output: Folder) -> Heartbeat | None:
    """Return the heartbeat of the run that owns an output, None where there is none or it cannot be read."""
    return heartbeat_of(_read(output))


def watch(output: Folder) -> Heartbeat | None:
    """Return the heartbeat of a run that lives; looks for a minute at one of which nothing else can be known."""
    watcher = _Watcher(output)
    while True:
        data = _read(output)
        heartbeat = heartbeat_of(data)
        if data is None or heartbeat is None or watcher.has_seen_enough(data) or heartbeat.is_dead:
            return None
        if heartbeat.is_alive or watcher.has_changed:
            return heartbeat
        output.retries.sleep(POLL_S)


class Ticker:
    """Beats in a thread of its own, every so many seconds; an owner builds it unless it is given another."""

    def __init__(self, seconds: float = BEAT_S) -> None:
        self._seconds, self._over = seconds, threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, beat: Callable[[], bool]) -> None:
        """Call `beat` again and again, until it returns False or `stop`."""

        def keep_beating() -> None:
            while not self._over.wait(self._seconds):
                try:
                    if not beat():
                        return
                except Exception:  # noqa: BLE001 - the work itself will meet storage that is gone, and say so
                    continue

        self._thread = threading.Thread(target=keep_beating, daemon=True, name="heartbeat")
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


class Ownership:
    """Built by a command for its run, which owns the output within `held`; used once.

    Args:
        when_active: what to do while another run lives: `wait`, `leave` or `take_over`.
        on_wait: told once whom it waits for.
        on_lost: told that another run took over, perhaps in the thread that beats.
        ticker: makes it beat.
    """

    def __init__(
        self,
        output: Folder,
        run_id: str,
        when_active: str = "leave",
        *,
        on_wait: Callable[[Heartbeat], None] = lambda other: None,
        on_lost: Callable[[str], None] = lambda why: None,
        ticker: Ticker | None = None,
    ) -> None:
        self.output, self.run_id, self._when_active = output, run_id, when_active
        self._on_wait, self._on_lost = on_wait, on_lost
        self._ticker = ticker or Ticker()
        self._mine = heartbeat_here(run_id)
        self._lost = ""
        self.has_waited = False
        """Whether another run owned the output since this one asked for it."""

    @contextmanager
    def held(self) -> Iterator[Ownership]:
        """Own the output while the block runs, after waiting for another run where that was asked for.

        Raises:
            ActiveRunError: another run lives and `when_active` is `leave`.
            OwnershipLostError: another run took over; also where the block failed in any way after that.
        """
        self._acquire()
        self._ticker.start(self._beat)
        try:
            self.output.abandon_uploads()  # of an earlier owner, who may be paused just before they are seen
            yield self
        except Exception as error:
            if not isinstance(error, OwnershipLostError):
                self._blame_the_other(error)
            raise
        finally:
            self._ticker.stop()
            if not self._lost:
                with suppress(StorageError):  # the next run finds out that this one has ended
                    self._release()

    def make_sure(self) -> None:
        """Ask storage whether this run owns the output still.

        Raises:
            OwnershipLostError: it does not; what it has published so far may be replaced already.
            StorageError: storage did not answer after all retries.
        """
        if not self._lost:
            owner = read_heartbeat(self.output)
            if owner is not None and owner.run_id == self._mine.run_id:
                return
            self._lose(owner)
        raise OwnershipLostError(f"{self._lost} {self.output}: the same command continues where this run ended")

    def publish(self, contents: Mapping[str, bytes | memoryview], folder: Folder | None = None) -> None:
        """Write files whose names runs share, as the owner: all are sent first, then seen one after the other.

        Args:
            folder: where their paths count from, in the output; the output itself where it is not given.

        Raises:
            OwnershipLostError: another run has taken over; files that were not seen yet will not be.
            StorageError: storage did not answer after all retries.
        """
        where = self._prefix(folder)
        try:
            self.output.publish_guarded({f"{where}{path}": data for path, data in contents.items()}, self.make_sure)
        except StorageError:
            self.make_sure()  # a file that another run stopped looks like storage that fails
            raise

    def delete(self, paths: Iterable[str], folder: Folder | None = None) -> None:
        """Remove files as the owner; missing ones are no error.

        Raises:
            OwnershipLostError: another run has taken over; some may be gone.
            StorageError: storage did not answer after all retries.
        """
        where = self._prefix(folder)
        self.output.delete_guarded((f"{where}{path}" for path in paths), self.make_sure)

    def _blame_the_other(self, error: Exception) -> None:
        """Raise OwnershipLostError for a failure after another run took over: it may have deleted what was read."""
        with suppress(StorageError):
            try:
                self.make_sure()
            except OwnershipLostError as lost:
                raise lost from error

    def _prefix(self, folder: Folder | None) -> str:
        below = "" if folder is None else folder.path_below(self.output)
        if below is None:
            raise ValueError(f"{folder} is not in {self.output}")
        return f"{below}/" if below else ""

    def _release(self) -> None:
        standing = _read(self.output)
        owner = heartbeat_of(standing)
        if owner is not None and owner.run_id == self._mine.run_id:
            self.output.swap(HEARTBEAT_PATH, standing, None)

    def _acquire(self) -> None:
        watcher = _Watcher(self.output)
        while True:
            standing = _read(self.output)
            if standing is None or self._may_take_over(standing, watcher):
                if self.output.swap(HEARTBEAT_PATH, standing, self._mine.to_bytes()):
                    return
                continue
            self.has_waited = True
            self.output.retries.sleep(POLL_S)

    def _may_take_over(self, standing: bytes, watcher: _Watcher) -> bool:
        """Return whether the owner is known to be dead, or to be taken over from.

        Raises:
            ActiveRunError: it lives, and is to be left alone.
        """
        if self._when_active == "take_over" or watcher.has_seen_enough(standing):
            return True
        other = heartbeat_of(standing)
        if other is None:
            return False
        if other.is_dead:
            return True
        if self._when_active == "leave" and (other.is_alive or watcher.has_changed):
            raise ActiveRunError(
                f"run {other.run_id} on {other.host} (process {other.pid}) is active on {self.output}:"
                " try again later, or take over with --set run.when_active=take_over"
            )
        if not self.has_waited:
            self._on_wait(other)
        return False

    def _beat(self) -> bool:
        following = replace(self._mine, beat=self._mine.beat + 1)
        if self.output.swap(HEARTBEAT_PATH, self._mine.to_bytes(), following.to_bytes()):
            self._mine = following
            return True
        self._lose(read_heartbeat(self.output))
        return False

    def _lose(self, owner: Heartbeat | None) -> None:
        whose = "another run owned and released" if owner is None else f"run {owner.run_id} on {owner.host} took over"
        self._lost = whose
        self._on_lost(f"{whose} {self.output}")


class _Watcher:
    """Looks at a heartbeat from time to time, and says whether it has stood unchanged for too long."""

    def __init__(self, output: Folder) -> None:
        self._clock = output.retries.clock
        self._seen: bytes | None = None
        self._looked_at = 0.0
        self._unchanged_s = 0.0
        self.has_changed = False
        """Since the first look."""

    def has_seen_enough(self, data: bytes) -> bool:
        """Note one more look, and return whether what it saw is of a dead run."""
        now = self._clock()
        if data == self._seen:
            self._unchanged_s += min(now - self._looked_at, _LEAP_S)
        else:
            self.has_changed = self._seen is not None
            self._seen, self._unchanged_s = data, 0.0
        self._looked_at = now
        return self._unchanged_s >= STALE_S


def _read(output: Folder) -> bytes | None:
    try:
        return output.read(HEARTBEAT_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None


def processes_here() -> str:
    """Return what tells the process numbers of this process from others': boot and namespace; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Return when a process of this host started, in ticks of its clock; empty where it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
