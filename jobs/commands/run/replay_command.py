"""The command replay: quarantined clips read again."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from jobs.commands.run.tokenize_command import console_of, run_tokenize
from pipeline.dataset.open_dataset import OpenDataset, open_dataset
from pipeline.dataset.replay import units_to_retry, what_came_back
from pipeline.plan.plan import Plan
from pipeline.plan.units import Unit
from pipeline.settings.job_config import TokenizeRequest
from pipeline.storage import Folder

CLIPS_SHOWN = 20


def run_replay(request: TokenizeRequest, console: Console) -> None:
    """Read quarantined clips again, and say which came back.

    Raises:
        MotionTokensError: the job cannot start, or ended incomplete.
    """
    config = request.config.run
    folder, text = Folder(request.output, config.storage_options), console_of(config, console)
    standing: list[OpenDataset] = []

    def require_store() -> None:
        units_to_retry(open_dataset(folder), Plan(()))

    def quarantined(plan: Plan) -> Sequence[Unit]:
        standing.append(open_dataset(folder))
        units = units_to_retry(standing[-1], plan)
        text.print(f"  {len(units):,} units are read again, beside those whose files changed", highlight=False)
        return units

    run_tokenize(request, console, require_store, quarantined)
    replayed = what_came_back(standing[-1], open_dataset(folder))
    text.print(f"  came back  {len(replayed.returned):,} clips", highlight=False)
    for clip in replayed.returned[:CLIPS_SHOWN]:
        text.print(f"    [dim]{escape(clip)}[/dim]", highlight=False, soft_wrap=True)
    if replayed.dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in replayed.dropped.items())
        text.print(f"  still quarantined  {reasons}", highlight=False, soft_wrap=True)
