"""How long to retry a server that does not answer, such as one that is just starting.

Knows clocks only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import IncompleteError

POLL_S = 1.0
SILENCE_LIMIT_S = 60.0
"""A head node that starts again takes less."""

Answer = TypeVar("Answer")


class Patience:
    """How long to retry a server that does not answer; built anew after every answer.

    Args:
        limit_s: seconds to retry a server that does not answer.
    """

    def __init__(self, limit_s: float = SILENCE_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._deadline: float | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether the server has answered every time so far."""
        return self._deadline is None

    def bear(self, error: IncompleteError) -> None:
        """Note a failed try: the first one starts the limit.

        Raises:
            IncompleteError: the limit is over; the error itself.
        """
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._limit_s
        elif now > self._deadline:
            raise error


def patiently(
    ask: Callable[[], Answer],
    say: Callable[[str], None] = lambda _: None,
    *,
    limit_s: float = SILENCE_LIMIT_S,
    poll_s: float = POLL_S,
) -> Answer:
    """Ask until there is an answer: a head node may be starting.

    Args:
        say: told once that there is none yet, and why.
        limit_s: seconds to retry a server that does not answer.
        poll_s: seconds between one try and the next.

    Raises:
        IncompleteError: there is none for so long.
    """
    patience = Patience(limit_s)
    while True:
        try:
            return ask()
        except IncompleteError as error:
            if patience.is_fresh:
                say(f"{error}; trying again for {limit_s:g} s")
            patience.bear(error)
        time.sleep(poll_s)
