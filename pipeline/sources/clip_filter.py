"""Which clips belong to a corpus, by lists of their ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.hashing import digest_of
from pipeline.settings.job_config import ClipList
from pipeline.storage import read_text


@dataclass(frozen=True)
class ClipFilter:
    """Clip ids that lists of clips name: only `include` where it is given, never `exclude`."""

    include: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """Hash of the lists, empty where there are none."""
        if self.include is None and not self.exclude:
            return ""
        return digest_of([sorted(self.include or ()), self.include is None, sorted(self.exclude)])

    @classmethod
    def read(cls, lists: ClipList, options: Mapping[str, Any]) -> ClipFilter:
        """Return the ids that lists of clips name.

        Args:
            options: for fsspec.

        Raises:
            InputNotFoundError: a file is missing.
        """
        return cls(
            include=_ids_of(lists.include, options) if lists.include is not None else None,
            exclude=_ids_of(lists.exclude, options) if lists.exclude is not None else frozenset(),
        )

    def admits(self, clip_id: str) -> bool:
        """Say whether a clip belongs to the corpus."""
        return clip_id not in self.exclude and (self.include is None or clip_id in self.include)


def _ids_of(path: str, options: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(line.strip() for line in read_text(path, options).splitlines() if line.strip())
