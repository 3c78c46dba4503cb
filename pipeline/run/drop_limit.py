"""How many clips a dataset may drop before its run fails.

Knows nothing of clips or storage, only counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import DataError


class TooManyDroppedError(DataError):
    """More clips were dropped than the run allows."""


def check_dropped(counts: Mapping[str, int], drops: Mapping[str, int], limit: int | float | None) -> None:
    """Refuse a dataset that drops more clips than allowed.

    Args:
        counts: `counts` of the manifest: `clips` (kept) and `dropped_clips`.
        drops: dropped clips by reason.
        limit: a count (int), or a share of all clips (float); None allows any number.

    Raises:
        TooManyDroppedError: more were dropped.
    """
    if limit is None:
        return
    dropped = counts["dropped_clips"]
    total = counts["clips"] + dropped
    allowed = limit if isinstance(limit, int) else limit * total
    if dropped <= allowed:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(drops.items(), key=lambda item: -item[1]))
    wanted = f"{limit:,}" if isinstance(limit, int) else f"{limit:.6g} of all ({100 * limit:.4g} %)"
    raise TooManyDroppedError(
        f"{dropped:,} of {total:,} clips are dropped ({reasons}), run.max_dropped allows {wanted}: nothing was"
        " published. Next: mend the input, or allow more with --set run.max_dropped=NUMBER"
    )
