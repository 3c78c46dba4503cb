"""The one retry of the project: which storage errors may pass, how long to wait and try, what to say at the end.

Knows no file and no filesystem. Its waits are drawn by chance, so that many workers do not come back together; nothing
else here is.
"""

from __future__ import annotations

import errno
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import OutputError, StorageError

Result = TypeVar("Result")

RETRY_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Mean waits between tries; each is drawn from half to one and a half times as long."""
TRY_S = 100.0
"""How long one try of a remote operation may last, besides the time that its bytes need."""
SLOWEST_BYTES_PER_S = 1 << 20
DEADLINE_S = 300.0
"""How long an operation may last with all its tries; none begins when less than TRY_S is left."""

_retried = Counter[str]()
_CHANCE = random.SystemRandom()  # the operating system's: draws nothing from seeded generators, differs after a fork
_CALLERS_BUSINESS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DAMAGED_ON_THE_WAY = ("BadDigest", "IncompleteBody", "NoSuchUpload", "OperationAborted", "RequestTimeout")
_PERMANENT = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSYS)


@dataclass(frozen=True)
class RetryPolicy:
    """How long an operation is tried and waited for, in seconds, and by which clock; anyone builds it.

    Args:
        waits_s: mean waits between tries; each is drawn from half to one and a half times as long.
        try_s: how long one try of a remote operation may last, besides the time that its bytes need.
        deadline_s: how long an operation may last with all its tries; none begins when less than `try_s` is left.
        sleep: waits for so many seconds.
        clock: returns seconds since some moment.
    """

    waits_s: tuple[float, ...] = RETRY_WAITS_S
    try_s: float = TRY_S
    deadline_s: float = DEADLINE_S
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def draw_waits(self) -> Iterator[float]:
        """Yield the seconds to wait before each further try."""
        for mean_s in self.waits_s:
            yield mean_s * _CHANCE.uniform(0.5, 1.5)

    def limit_s(self, num_bytes: int) -> float:
        """Return how long one try may last that moves so many bytes."""
        return self.try_s + num_bytes / SLOWEST_BYTES_PER_S


RETRY_POLICY = RetryPolicy()


def with_retries(
    operation: Callable[[], Result], what: str, policy: RetryPolicy = RETRY_POLICY, writes: bool = False
) -> Result:
    """Return the operation's result, trying again with growing waits while the error may pass.

    A file that is missing is the caller's business, and to one that reads, also that it is a folder: these errors pass.

    Args:
        operation: safe to repeat; it abandons itself when a try lasts too long.
        what: verb and location for the message, without credentials.
        policy: how long to wait and try.
        writes: whether the operation changes what is stored.

    Raises:
        StorageError: every try failed, the deadline is near, or the error cannot pass (access denied).
        OutputError: the same, of an operation that writes, where the error cannot pass (disk full, access denied).
    """
    began_s, tries = policy.clock(), 0
    waits_s = policy.draw_waits()
    while True:
        tries += 1
        try:
            return operation()
        except Exception as error:
            may_pass = _may_pass(error)
            if may_pass is None and writes and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                may_pass = False  # a file stands where a folder is to be, or a folder where the file is
            if may_pass is None:
                raise
            spent_s = policy.clock() - began_s
            wait_s = next(waits_s, math.inf)
            if not may_pass or spent_s + wait_s > policy.deadline_s - policy.try_s:
                failed = f"tried {tries} times in {spent_s:.0f} s: run the same command again when storage answers"
                step = failed if may_pass else _next_step(error)
                kind = OutputError if writes and not may_pass else StorageError
                raise kind(f"cannot {what}: {_reason(error)}; {step}") from error
        _retried["all"] += 1
        policy.sleep(wait_s)


def num_retries() -> int:
    """Return how many tries this process has repeated so far."""
    return _retried["all"]


def server_code(error: BaseException) -> str:
    """Return the S3 server's name for an error that it answered, "" for any other error."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def without_secrets(text: str) -> str:
    """Return a message or URL without user and password and, of web addresses, without signature."""
    text = re.sub(r"://(?:[^/:@\s'\"]*:[^@\s'\"]*|[^/@\s'\"]*)@", "://", text)  # a password may hold a slash
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def _may_pass(error: Exception) -> bool | None:
    """Return whether waiting may help; None where storage is not to blame."""
    if server_code(error) in _DAMAGED_ON_THE_WAY:
        return True
    if isinstance(error, _CALLERS_BUSINESS):
        return None
    if isinstance(error, OSError):
        return not isinstance(error, PermissionError) and error.errno not in _PERMANENT
    from aiohttp import ClientError
    from botocore import exceptions as boto  # type: ignore[import-untyped]

    if isinstance(error, ClientError | boto.HTTPClientError | boto.ConnectionError):
        return True
    return False if isinstance(error, boto.BotoCoreError) else None


def _reason(error: Exception) -> str:
    """Return the kind of error, and what system or server said."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {without_secrets(said)}" if said else type(error).__name__


def _next_step(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _FULL:
        return "free space there, then run the same command again"
    return "check credentials, permissions and the location, then run the same command again"
