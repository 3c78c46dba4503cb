"""The summary of motion statistics that stats and inspect print.

Knows no data.
"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.output.display import counted
from pipeline.contract.drop_reasons import NEXT_STEP, DropReason
from pipeline.statistics.motion_statistics import MotionStatistics

DIMS_SHOWN = 12


def print_statistics(statistics: MotionStatistics, console: Console) -> None:
    """Print what a person wants to know of a collection first."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    frames = statistics.lengths
    lengths = f"{frames.min:,} to {frames.max:,} frames, mean {frames.mean:,.0f}"
    table.add_row("clips", f"{statistics.num_clips:,}  [dim]{lengths}[/dim]")
    table.add_row("frames", f"{statistics.num_frames:,}  [dim]{statistics.hours:,.2f} h of known rate[/dim]")
    table.add_row("fps", ", ".join(f"{_rate_text(rate.fps)} [dim]({rate.clips:,})[/dim]" for rate in statistics.fps))
    dims = f"{statistics.motion_dim}"
    if statistics.constant_dims:
        dims += f"  [yellow]{_dims_text(statistics.constant_dims)} constant[/yellow] [dim](std set to 1)[/dim]"
    if None in statistics.min:
        dims += f"  [yellow]{statistics.min.count(None)} without a finite value[/yellow]"
    table.add_row("dimensions", dims)
    lows = [value for value in statistics.min if value is not None]
    highs = [value for value in statistics.max if value is not None]
    if lows:
        table.add_row("values", f"{min(lows):.4g} to {max(highs):.4g}  [dim]{_deviations(statistics)}[/dim]")
    outside = sum(statistics.histogram.below) + sum(statistics.histogram.above)
    if outside:
        table.add_row("", f"[yellow]{outside:,} values outside the histogram's {_span_text(statistics)}[/yellow]")
    if statistics.non_finite_clips:
        bad = f"{sum(statistics.nan_counts):,} NaN, {sum(statistics.inf_counts):,} infinite"
        clips = f"in {counted(statistics.non_finite_clips, 'clip')}: left out here, while tokenize drops such clips"
        table.add_row("[yellow]not finite[/yellow]", f"{bad}  [dim]{clips}[/dim]")
    for reason, count in statistics.dropped.items():
        step = NEXT_STEP[DropReason(reason)]
        if reason == DropReason.WRONG_DIM and statistics.other_dims:
            found = ", ".join(f"{clips:,} of {dims}" for dims, clips in statistics.other_dims.items())
            step = f"dims are {statistics.motion_dim} in most frames, but {found}"
        table.add_row("[yellow]dropped[/yellow]", f"{count:,} {reason}  [dim]{escape(step)}[/dim]")
    console.print(table)


def _rate_text(fps: float | None) -> str:
    return "[yellow]none stated[/yellow]" if fps is None else f"{fps:g}"


def _dims_text(dims: tuple[int, ...]) -> str:
    shown = ", ".join(str(dim) for dim in dims[:DIMS_SHOWN])
    return f"{len(dims)} ({shown}{', ..' if len(dims) > DIMS_SHOWN else ''})"


def _deviations(statistics: MotionStatistics) -> str:
    constant = set(statistics.constant_dims)
    std = [value for dim, value in enumerate(statistics.std) if dim not in constant]
    return f"std {min(std):.3g} to {max(std):.3g}" if std else "no dimension moves"


def _span_text(statistics: MotionStatistics) -> str:
    edges = statistics.histogram.edges
    return f"{edges[0]:g} to {edges[-1]:g}"
