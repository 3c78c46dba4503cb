"""Quarantined clips tried again: fragments of units with drops that may pass are given free, and what came back.

Knows no Ray or torch. Mended files have another stamp, and tokenize reads them again by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.counts import count_drops
from pipeline.dataset.open_dataset import OpenDataset
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import OutputMismatchError
from pipeline.plan.plan import Plan
from pipeline.plan.units import Unit

PASSING_REASONS = ("unreadable", "truncated", "crashed")
"""Reasons that may be gone although the file looks the same: it was read badly, or the reader was to blame."""


@dataclass(frozen=True)
class Replayed:
    """What became of the quarantine: clips that came back, and drops by reason that are left."""

    returned: Sequence[str]
    dropped: dict[str, int]


def units_to_retry(dataset: OpenDataset, plan: Plan) -> list[Unit]:
    """Return the units that hold quarantined clips whose reason may pass, and whose files look the same.

    Args:
        plan: of the inputs as they are now.

    Raises:
        OutputMismatchError: the dataset has no token store.
    """
    store = TokenStore.of(dataset.folder, dataset.manifest.spec_id)
    if store.read_contract() is None:
        raise OutputMismatchError(f"{dataset.folder} has no token store: replay into the dataset that tokenize wrote")
    published = store.plan_of_version(dataset.manifest.version)
    may_pass = pc.is_in(dataset.clips["drop_reason"], value_set=pa.array(PASSING_REASONS))
    rows = np.flatnonzero(may_pass.to_numpy())
    sources = set(dataset.clips["source"].take(pa.array(rows)).to_pylist())
    now = {(unit.key, unit.stamp) for unit in plan.units}
    return [
        unit
        for unit in published.units
        if (unit.key, unit.stamp) in now and any(part.source in sources for part in unit.parts)
    ]


def what_came_back(before: OpenDataset, after: OpenDataset) -> Replayed:
    """Compare the quarantine of two versions: clips that are kept now, of sources that had drops before."""
    dropped = before.clips.filter(pc.not_equal(before.clips["drop_reason"], ""))
    from_there = after.kept.filter(pc.is_in(after.kept["source"], value_set=pc.unique(dropped["source"])))
    kept_before = pc.is_in(from_there["clip_id"], value_set=before.kept["clip_id"].combine_chunks())
    returned = from_there["clip_id"].filter(pc.invert(kept_before)).to_pylist()
    return Replayed(returned, dict(count_drops(after.clips["drop_reason"]).most_common()))
