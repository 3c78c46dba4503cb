"""Where units stand between the stages, and what had to be repeated: told by the stages, asked by the driver.

Knows counts only: no Ray, storage or data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

STATES = ("reading", "read", "tokenizing", "tokenized", "writing")
"""Of a run of units that is in flight, in order; what is read waits for a tokenizer, what is tokenized for a writer."""
BEFORE_TOKENS = STATES[:3]
"""Of what has yet to pass a tokenizer."""
_ENTERED = {"read": 0, "tokenize": 2, "write": 4}


@dataclass(frozen=True)
class Flow:
    """Where units stand between the stages, and what had to be repeated since the last look."""

    in_flight: Mapping[str, int]
    """State -> units in it; every state is named."""
    retries: Mapping[str, int]
    """task: stages begun again after a process died; storage: requests that were repeated; none, not named."""


class FlowBook:
    """Built by what all stages of a job share; holds a line for each run of units that is in flight."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[int, int]] = {}
        self._retries: Counter[str] = Counter()

    def enter(self, stage: str, run: int, num_units: int) -> None:
        """A run of units begins a stage (read, tokenize, write); one that was there before begins it again."""
        state = _ENTERED[stage]
        if run in self._runs and self._runs[run][0] >= state:
            self._retries["task"] += 1
        self._runs[run] = (state, num_units)

    def leave(self, stage: str, run: int, storage_retries: int) -> None:
        """A run of units has passed a stage, in which so many requests were repeated."""
        self._retries["storage"] += storage_retries
        state, (_, num_units) = _ENTERED[stage] + 1, self._runs.get(run, (0, 0))
        if state < len(STATES):
            self._runs[run] = (state, num_units)
        else:
            self._runs.pop(run, None)

    def take(self) -> Flow:
        """Return how things stand, with the repetitions since the last call."""
        units = Counter[int]()
        for state, num_units in self._runs.values():
            units[state] += num_units
        retries = {kind: count for kind, count in self._retries.items() if count}
        self._retries.clear()
        return Flow({name: units[state] for state, name in enumerate(STATES)}, retries)
