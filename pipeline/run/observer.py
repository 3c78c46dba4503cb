"""What a running job tells whoever watches: a display, a log, or nobody.

Knows nothing but counts and names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.plan.plan import Plan
from pipeline.run.account import UnitAccount
from pipeline.run.flow import Flow
from pipeline.run.ownership import Heartbeat


class JobObserver:
    """Watches silently; a display overrides what it wants to show. Called from the driver's thread only."""

    def on_stage(self, name: str) -> None:
        """A stage of the job begins: session, plan, checksums, start, workers, tokenize, gate, export, verify."""

    def on_plan(self, plan: Plan, num_done: int, num_skipped: int) -> None:
        """The plan stands; `num_done` of its units need no work, `num_skipped` files are of no known kind."""

    def on_wait(self, other: Heartbeat) -> None:
        """Another run is active on the output; this one waits for it."""

    def on_begun(self, num_windows: int, num_bytes: int) -> None:
        """Tokenizers took up so many windows, read from so many bytes of input."""

    def on_windows(self, num_windows: int) -> None:
        """So many more windows were encoded."""

    def on_account(self, account: UnitAccount) -> None:
        """A run of units is committed."""

    def on_unknown_ids(self, setting: str, ids: Sequence[str]) -> None:
        """A list of clips, which a setting names, has these ids that no clip has; at least one."""

    def on_damaged(self, paths: Sequence[str]) -> None:
        """These fragments of the store, at least one, hold other bytes than were written; they are computed again."""

    def on_lost_tokenizers(self, limit_s: float) -> None:
        """All nodes with tokenizers are lost; the job waits so many seconds for others."""

    def on_flow(self, flow: Flow) -> None:
        """Told about four times a second while Ray runs the stages."""

    def on_layout(self, num_shards: int, num_windows: int) -> None:
        """So many shards of so many windows will be written, or so many files read for their checksums."""

    def on_shard(self, path: str) -> None:
        """A shard or another file was written, or read while verifying or for its checksum."""


class Audience(JobObserver):
    """Several observers of one job, told one after the other; built by a command."""

    def __init__(self, observers: Sequence[JobObserver]) -> None:
        """Args: observers: in the order in which they are told."""
        for name in vars(JobObserver):
            if name.startswith("on_"):
                setattr(self, name, _told_all([getattr(observer, name) for observer in observers]))


def _told_all(listeners: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*event: object) -> None:
        for listener in listeners:
            listener(*event)

    return tell
