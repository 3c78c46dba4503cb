"""Commands as jobs of a Ray cluster: handed in, followed, stopped, and told how they ended.

Talks to the cluster's job server only; knows no data, and starts no Ray.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from jobs.cluster.patience import POLL_S, SILENCE_LIMIT_S, Patience, patiently
from jobs.session.ray_environment import TOKEN_HINT, chosen
from pipeline.errors import ConfigError, IncompleteError

MEANINGS = {
    0: "complete",
    1: "ended without a word of its own: read the last lines above, and hand the same command in again",
    2: "the request cannot start: correct what it says above",
    os.EX_DATAERR: "the data is wrong: read what it says above, trying again does not help",
    os.EX_SOFTWARE: "an internal error: please report the lines above",
    os.EX_IOERR: "the output cannot be written: do what it says above, then hand the same command in again",
    os.EX_TEMPFAIL: "incomplete: hand the same command in again, what is committed stays",
    143: "stopped: hand the same command in again, what is committed stays",
}
"""Exit code of a command -> what it means and what to do."""
FOUND = "something was found: read what it says above"
"""What 1 means of a command that compares."""

SETTLED = frozenset({0, 2, os.EX_DATAERR})
"""Exit codes after which the same command is not to be handed in again."""
COMPARING = frozenset({"verify", "diff", "certify"})
"""Commands that end with 1 where they found something, and are settled then."""

STOP_WAIT_S = 600
"""A command that gets a signal ends by itself, soon after its grace time; this is for one that cannot."""
ANSWER_LIMIT_S = 30.0
_JOB_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Surroundings:
    """What a job finds on the cluster beside its command: nothing, an uploaded folder, or a container image."""

    working_dir: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class JobState:
    """What the job server knows of a job; times are seconds since 1970."""

    job_id: str
    command: str
    status: str
    is_over: bool
    exit_code: int | None
    message: str
    started_at: float | None
    ended_at: float | None


class JobServer:
    """A client of a cluster's job server: built by a command, holds no connection.

    Args:
        address: `http://HOST:8265`, or the cluster's own address as for `--address`; None: what RAY_API_SERVER_ADDRESS
            or RAY_ADDRESS names, else the Ray that runs on this machine.

    Raises:
        ConfigError: the address is none, or the cluster wants another token.
        IncompleteError: nothing answers there.
    """

    def __init__(self, address: str | None) -> None:
        _find_token()
        if address is not None:  # the environment would win over it
            os.environ.pop("RAY_API_SERVER_ADDRESS", None)
            os.environ.pop("RAY_ADDRESS", None)
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        place = address or "the default address"
        try:
            with _answering(
                f"no job server answers at {place}", "start the cluster, or say --address http://HOST:8265"
            ):
                self._client = _patient_client(JobSubmissionClient)(address)
        except AuthenticationError as error:
            raise ConfigError(f"the job server at {place} refused. {TOKEN_HINT}") from error
        except ValueError as error:
            raise ConfigError(f"{place} is no address: {_first_line(error)}. Say --address http://HOST:8265") from error

    @property
    def address(self) -> str:
        """Where it is."""
        return str(self._client.get_address())

    def submit(
        self, arguments: Sequence[str], around: Surroundings, job_id: str, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Hand in `motion-tokens ARGUMENT...` under an id; once, however often it takes to get an answer.

        Args:
            say: told once of a job server that is silent.

        Raises:
            ConfigError: the folder or the image cannot be used.
            IncompleteError: the job server has not answered for a minute; the job may have been taken.
        """
        runtime_env: dict[str, Any] = {"env_vars": job_environment()}
        if around.working_dir is not None:
            runtime_env["working_dir"] = around.working_dir
        if around.image is not None:
            runtime_env["image_uri"] = around.image

        def hand_in() -> None:
            unsure = f"no answer whether job {job_id} was taken"
            with _answering(unsure, f"the same command with --id {job_id} goes on there"):
                if job_id not in {job.submission_id for job in self._client.list_jobs()}:  # where an answer was lost
                    self._client.submit_job(
                        entrypoint=entrypoint(arguments), runtime_env=runtime_env, submission_id=job_id
                    )

        try:
            patiently(hand_in, say)
        except ValueError as error:
            raise ConfigError(f"the cluster cannot run the command in this: {_first_line(error)}") from error

    def find(self, name: str, arguments: Sequence[str]) -> tuple[str, bool]:
        """Return the id of the job that a command has under a name, and whether it is handed in already.

        A job that ended incomplete has a successor: `NAME-2`, then `NAME-3`.

        Raises:
            ConfigError: another command has it.
            IncompleteError: the job server does not answer.
        """
        known = {job.job_id: job for job in self.jobs()}
        job_id, count = name, 1
        while (job := known.get(job_id)) is not None:
            if job.command != _command_of(entrypoint(arguments)):
                raise ConfigError(f"--id {name}: job {job_id} is another command, {job.command}; say another id")
            if not job.is_over or is_settled(job):
                return job_id, True
            count += 1
            job_id = f"{name}-{count}"
        return job_id, False

    def jobs(self) -> list[JobState]:
        """Return every job that was handed in and that the cluster remembers, the latest first.

        Raises:
            IncompleteError: the job server does not answer.
        """
        with _answering():
            found = [_state(job) for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: -(job.started_at or 0))

    def job(self, job_id: str) -> JobState:
        """Return one job.

        Raises:
            ConfigError: the cluster knows none of this id.
            IncompleteError: the job server does not answer.
        """
        known = self.jobs()
        for job in known:
            if job.job_id == job_id:
                return job
        others = ", ".join(job.job_id for job in known[:5]) or "none"
        raise ConfigError(f"no job {job_id!r} at {self.address}; the latest it knows: {others}")

    def log(self, job_id: str) -> str:
        """Return all that a job has printed.

        Raises:
            IncompleteError: the job server does not answer.
        """
        with _answering():
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, emit: Callable[[str], None]) -> JobState:
        """Hand on what a job has printed and prints, until it is over; return how it ended.

        Raises:
            IncompleteError: the job server has not answered for a minute; the job may still run.
        """
        num_seen = 0
        patience = Patience()
        texts = self._tail(job_id)
        while True:
            text = next(texts)
            if text:
                emit(text)
                num_seen += len(text)
                patience = Patience()
                continue
            try:
                with _answering(f"the job server at {self.address} is silent", f"job {job_id} may still run"):
                    job = _state(self._client.get_job_info(job_id))
                    rest = str(self._client.get_job_logs(job_id))[num_seen:] if job.is_over else ""
            except IncompleteError as error:
                patience.bear(error)
                continue
            patience = Patience()
            if job.is_over:
                emit(rest)
                return job

    def _tail(self, job_id: str) -> Iterator[str]:
        """Yield what a job prints as it comes, and an empty text where nothing came for a while; without end.

        The connection lives in a thread of its own: an exception that a signal handler raises would be lost in
        an event loop.
        """
        texts: queue.SimpleQueue[str] = queue.SimpleQueue()

        async def receive() -> None:
            num_told = 0
            while True:
                try:
                    num_sent = 0  # each connection begins at the log's first line
                    async for text in self._client.tail_job_logs(job_id):
                        texts.put(text[max(0, num_told - num_sent) :])
                        num_sent += len(text)
                        num_told = max(num_told, num_sent)
                except Exception:  # noqa: BLE001 - whatever breaks it, the next connection continues
                    pass
                await asyncio.sleep(POLL_S)

        threading.Thread(target=lambda: asyncio.run(receive()), daemon=True, name="job-log").start()
        while True:
            try:
                yield texts.get(timeout=POLL_S)
            except queue.Empty:
                yield ""

    def stop(
        self, job_ids: Collection[str] | None = None, say: Callable[[str], None] = lambda _: None
    ) -> list[JobState]:
        """Ask jobs to stop, and return how they ended once they have.

        Args:
            job_ids: None: every job, those too that are handed in meanwhile.
            say: told once of each time that the job server is silent.

        Raises:
            IncompleteError: one has not ended in time, or the job server has not answered for a minute.
        """
        deadline = time.monotonic() + STOP_WAIT_S + SILENCE_LIMIT_S
        asked: set[str] = set()
        while True:
            known = [job for job in patiently(self.jobs, say) if job_ids is None or job.job_id in job_ids]
            running = [job.job_id for job in known if not job.is_over]
            if not running:
                return [job for job in known if job.job_id in asked]
            if time.monotonic() > deadline:
                raise IncompleteError(f"asked to stop and not ended: {', '.join(running)}; look at their status again")
            patiently(partial(self._ask_to_stop, running), say)
            asked.update(running)
            time.sleep(POLL_S)

    def _ask_to_stop(self, job_ids: Sequence[str]) -> None:
        with _answering(f"the job server at {self.address} is silent", f"{', '.join(job_ids)} may still run"):
            for job_id in job_ids:  # again and again: a job that is not quite there yet does not hear it
                self._client.stop_job(job_id)


def new_job_id() -> str:
    """Return an id that sorts by time and meets no other."""
    return f"job-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def check_job_id(name: str) -> None:
    """Refuse what cannot be the id of a job.

    Raises:
        ConfigError: it would not fit into addresses and file names, or be taken for an id of Ray's.
    """
    if not _JOB_ID.fullmatch(name):
        raise ConfigError(f"--id {name!r}: begin with a letter; then up to 99 letters, digits, dots, _ and -")


def entrypoint(arguments: Sequence[str]) -> str:
    """Return the shell line of a command on the cluster.

    With `exec`, no shell stands between the job server and the command: signals and exit codes pass as they are.
    """
    return f"exec python -m jobs.cli {shlex.join(arguments)}"


def meaning_of(job: JobState) -> str:
    """Return what the exit code of a job that is over means, and what to do."""
    code = job.exit_code or 0
    return FOUND if code == 1 and _compares(job) else MEANINGS[code]


def is_settled(job: JobState) -> bool:
    """Return whether a job that is over would only end as it did, were it handed in again."""
    return job.exit_code in SETTLED or (job.exit_code == 1 and _compares(job))


def _compares(job: JobState) -> bool:
    return job.command.partition(" ")[0] in COMPARING


def job_environment() -> dict[str, str]:
    """Return what is set for a job and all its workers; what a person set here stays."""
    wait_s = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", str(STOP_WAIT_S))
    return chosen() | {"RAY_JOB_STOP_WAIT_TIME_S": wait_s}  # read on the cluster, by what stops the job; else 3


def exit_code_of(status: str, driver_code: int | None, error_type: str | None) -> int:
    """Return the exit code of a job that is over, as the command itself meant it.

    Args:
        status: SUCCEEDED, FAILED or STOPPED.
        driver_code: of its process; None where the job server has seen none, negative for a signal.
        error_type: Ray's name of what failed.
    """
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED" or driver_code in (-15, -2, 130):
        return 143
    if driver_code in MEANINGS:
        return driver_code
    if driver_code is None:  # the command was not started, or its node was lost
        return 2 if error_type == "RUNTIME_ENV_SETUP_FAILURE" else os.EX_TEMPFAIL
    if driver_code in (126, 127):  # the shell found no python, or could not run it
        return 2
    return os.EX_TEMPFAIL if driver_code < 0 or driver_code > 128 else os.EX_SOFTWARE


def _patient_client(client: Any) -> Any:
    """Return Ray's client with an end to its patience: it would wait for ever for a machine that is gone."""

    class Client(client):  # type: ignore[misc]
        def _do_request(self, *args: Any, **options: Any) -> Any:
            return super()._do_request(*args, **{"timeout": ANSWER_LIMIT_S, **options})

    return Client


def _state(job: Any) -> JobState:
    status, is_over = str(job.status), job.status.is_terminal()
    error_type = str(job.error_type) if job.error_type else None
    return JobState(
        job_id=str(job.submission_id),
        command=_command_of(str(job.entrypoint)),
        status=status.lower(),
        is_over=is_over,
        exit_code=exit_code_of(status, job.driver_exit_code, error_type) if is_over else None,
        message=str(job.message or "").partition(", last available logs")[0],
        started_at=job.start_time / 1000 if job.start_time else None,
        ended_at=job.end_time / 1000 if job.end_time else None,
    )


def _command_of(line: str) -> str:
    return line.rpartition(" jobs.cli ")[2]


def _find_token() -> None:
    """Show a token where there is one and nothing is said of it: Ray's commands do the same."""
    token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" not in os.environ and (token or (Path.home() / ".ray" / "auth_token").exists()):
        os.environ["RAY_AUTH_MODE"] = "token"


@contextmanager
def _answering(finding: str = "the job server did not answer", advice: str = "try again") -> Iterator[None]:
    """Say what it means where the job server is away, or answers with an error."""
    from ray.exceptions import AuthenticationError, RayError

    try:
        yield
    except AuthenticationError:
        raise
    except (OSError, RuntimeError, RayError) as error:  # errors of requests are OSErrors
        raise IncompleteError(f"{finding} ({_first_line(error)}): {advice}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
