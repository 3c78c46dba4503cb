"""The command replay: quarantined clips read again."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from jobs.commands.run.tokenize_command import console_of, run_tokenize
from jobs.session.session import open_session
from pipeline.dataset.clean import refuse_active_run
from pipeline.dataset.open_dataset import OpenDataset, open_dataset
from pipeline.dataset.replay import give_free, units_to_retry, what_came_back
from pipeline.job.request import prepare
from pipeline.plan.plan import make_plan
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

    def give_quarantined_free() -> None:
        before = open_dataset(folder)
        refuse_active_run(folder)
        with open_session(config) as executor:
            job = prepare(request, executor)
        units = units_to_retry(before, make_plan(job.roots, job.contract.corpus))
        text.print(f"  {len(units):,} units are read again, beside those whose files changed", highlight=False)
        give_free(before, units)
        standing.append(before)

    run_tokenize(request, console, give_quarantined_free)
    replayed = what_came_back(standing[0], open_dataset(folder))
    text.print(f"  came back  {len(replayed.returned):,} clips", highlight=False)
    for clip in replayed.returned[:CLIPS_SHOWN]:
        text.print(f"    [dim]{escape(clip)}[/dim]", highlight=False, soft_wrap=True)
    if replayed.dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in replayed.dropped.items())
        text.print(f"  still quarantined  {reasons}", highlight=False, soft_wrap=True)
