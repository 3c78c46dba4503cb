"""What inspect prints of motion: stored fields, clips, dims, rates, lengths, ranges by group of columns.

Knows no data.
"""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitwise_vae.config import FLAME_GROUPS, MotionGroup
from jobs.output.display import size_text
from pipeline.contract.drop_reasons import NEXT_STEP, DropReason
from pipeline.inspect.motion_file import MAX_BYTES, MAX_CLIPS, MotionGlimpse, StoredField, glimpse_of, stored_fields
from pipeline.inspect.recognise import Found
from pipeline.settings.job_config import JobConfig
from pipeline.sources.registry import SUFFIXES, format_of
from pipeline.stages.measure import NO_RATE, ClipTally, hours_of
from pipeline.storage import Folder, StoredFile

FIELDS_SHOWN = 12


def print_motion(found: Found, config: JobConfig, console: Console) -> None:
    """Print what a motion file holds.

    Raises:
        StorageError: storage does not answer.
    """
    file = found.folder.stat(found.name)
    if file is not None:
        _print_file(found.folder, file, config, console)


def print_motion_folder(found: Found, config: JobConfig, console: Console) -> None:
    """Print which motion files a folder holds, and what the first one holds."""
    files = [file for file in found.folder.list_files() if file.path.lower().endswith(tuple(SUFFIXES))]
    counts = Counter(format_of(file.path) for file in files)
    formats = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    size = size_text(sum(file.num_bytes for file in files))
    console.print(f"  {formats}; {size} in all. Numbers of all of it: motion-tokens stats", highlight=False)
    console.print(f"[bold]the first[/bold]  {escape(files[0].path)}", highlight=False, soft_wrap=True)
    _print_file(found.folder, files[0], config, console)


def _print_file(folder: Folder, file: StoredFile, config: JobConfig, console: Console) -> None:
    fields = stored_fields(folder, file.path, config)
    glimpse = glimpse_of(folder, file, config)
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_row("size", size_text(file.num_bytes))
    for item in fields[:FIELDS_SHOWN]:
        table.add_row("stored", f"{escape(item.name)}  [dim]{escape(item.kind)}[/dim]")
    if len(fields) > FIELDS_SHOWN:
        table.add_row("", f"[dim]and {len(fields) - FIELDS_SHOWN} more[/dim]")
    tallies = sorted(glimpse.statistics.by_dims.items())
    for dims, tally in tallies:
        _add_tally(table, dims, tally, glimpse)
    if not tallies and not glimpse.problems:
        table.add_row("clips", "[yellow]none[/yellow]")
    for problem in glimpse.problems:
        what = f"{problem.reason}: {problem.detail}"
        place = f" [dim]{escape(problem.where)}[/dim]" if problem.where else ""
        table.add_row("[yellow]not usable[/yellow]", f"{escape(problem.clip_id)}{place}  {escape(what)}")
    for reason in glimpse.statistics.drops:
        table.add_row("", f"[dim]{_next_step(reason, fields)}[/dim]")
    if not glimpse.is_whole:
        table.add_row("", f"[dim]only the first {MAX_CLIPS:,} clips or {size_text(MAX_BYTES)} were read[/dim]")
    console.print(table)
    for dims, tally in tallies:
        if dims:
            console.print(_ranges(dims, tally))


def _add_tally(table: Table, dims: int, tally: ClipTally, glimpse: MotionGlimpse) -> None:
    lengths = f"{tally.shortest:,} to {tally.longest:,} frames" if tally.clips > 1 else f"{tally.frames:,} frames"
    table.add_row("clips", f"{tally.clips:,} of {dims} dims  [dim]{lengths}, {hours_of(tally.rate_frames):.3f} h[/dim]")
    rates = (f"{rate if rate != NO_RATE else 'none stated'} ({clips:,})" for rate, clips in tally.rate_clips.items())
    table.add_row("fps", ", ".join(rates))
    names = [clip.clip_id for clip in glimpse.clips if clip.motion.shape[1] == dims]
    more = ", .." if tally.clips > len(names) else ""
    if names:
        table.add_row("clip ids", f"[dim]{escape(', '.join(names))}{more}[/dim]")
    nans, infs = int(tally.moments.nans.sum()), int(tally.moments.infs.sum())
    if nans or infs:
        table.add_row("[yellow]not finite[/yellow]", f"{nans:,} NaN, {infs:,} infinite: tokenize drops such clips")


def _next_step(reason: str, fields: list[StoredField]) -> str:
    """Return what to do about a problem; where a field looks like motion, it is named."""
    candidates = [item.name for item in fields if item.is_motion_like]
    if reason == DropReason.MISSING_FIELD and candidates:
        return f"perhaps --set input.motion_field={escape(candidates[0].removesuffix('.npy'))}"
    return escape(NEXT_STEP[DropReason(reason)])


def _ranges(dims: int, tally: ClipTally) -> Table:
    """Return smallest and largest value, and mean deviation, of groups of columns."""
    groups = FLAME_GROUPS if dims == FLAME_GROUPS[-1].stop else (MotionGroup("all columns", 0, dims, ""),)
    table = Table(box=None, padding=(0, 2))
    for head in ("columns", "from", "to", "min", "max", "mean std", "constant"):
        table.add_column(head, justify="left" if head == "columns" else "right")
    moments = tally.moments
    for group in groups:
        part = slice(group.start, group.stop)
        unit = f" [dim]{group.unit}[/dim]" if group.unit else ""
        low, high = float(moments.low[part].min()), float(moments.high[part].max())
        constant = int((~(moments.low[part] < moments.high[part])).sum())
        numbers = [f"{low:.4g}", f"{high:.4g}", f"{moments.std[part].mean():.4g}"]
        table.add_row(f"{group.name}{unit}", str(group.start), str(group.stop - 1), *numbers, str(constant))
    return table
