"""The one retry of the project: which storage errors may pass, how long to wait, what to say at the end.

Knows no file and no filesystem.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import StorageError

Result = TypeVar("Result")

RETRY_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)

_CALLERS_BUSINESS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PERMANENT = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSYS)


def with_retries(operation: Callable[[], Result], what: str) -> Result:
    """Return the operation's result, trying again with growing waits while the error may pass.

    A file that is missing, exists already or is a folder is the caller's business: that error passes.

    Args:
        operation: safe to repeat.
        what: verb and location for the message, without credentials.

    Raises:
        StorageError: every try failed, or the error cannot pass (access denied, disk full).
    """
    waits_s = iter(RETRY_WAITS_S)
    while True:
        try:
            return operation()
        except _CALLERS_BUSINESS:
            raise
        except Exception as error:
            may_pass = _may_pass(error)
            if may_pass is None:
                raise
            wait_s = next(waits_s, None) if may_pass else None
            if wait_s is None:
                raise StorageError(f"cannot {what}: {_reason(error)}; {_next_step(error, may_pass)}") from error
        time.sleep(wait_s)


def without_secrets(text: str) -> str:
    """Return a message or URL without user and password and, of web addresses, without signature."""
    text = re.sub(r"://[^/@\s'\"]*@", "://", text)
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def _may_pass(error: Exception) -> bool | None:
    """Return whether waiting may help; None where storage is not to blame."""
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


def _next_step(error: Exception, may_pass: bool) -> str:
    if may_pass:
        return f"tried {len(RETRY_WAITS_S) + 1} times: run the same command again when storage answers"
    if isinstance(error, OSError) and error.errno in _FULL:
        return "free space there, then run the same command again"
    return "check credentials, permissions and the location, then run the same command again"
