"""stats.png: statistics of motion as one picture, for a person.

Knows matplotlib and stats.json, nothing of files.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.motion_statistics import MotionStatistics

WIDTH_IN, HEIGHT_IN, DPI = 13, 11, 100
SYMLOG_RATIO = 20.0
"""Ranges of dimensions that differ by more are drawn on a symmetric logarithmic scale."""

LIGHT, MIDDLE, DARK, WARN = "#c9d7e8", "#5b8dbf", "#173a5e", "#c0392b"


def picture_of(statistics: MotionStatistics) -> bytes:
    """Return the picture as PNG: mean, deviation and range a dimension; histograms; lengths and rates of clips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 3, height_ratios=(1.1, 1.3, 0.7))
    figure.suptitle(_title(statistics), fontsize=12)
    ranges = figure.add_subplot(grid[0, :])
    _draw_ranges(ranges, statistics)
    heat = figure.add_subplot(grid[1, :], sharex=ranges)
    _draw_heat(figure, heat, statistics)
    _draw_lengths(figure.add_subplot(grid[2, :2]), statistics)
    _draw_rates(figure.add_subplot(grid[2, 2]), statistics)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def _title(statistics: MotionStatistics) -> str:
    parts = [
        f"{statistics.num_clips:,} clip{'s' * (statistics.num_clips != 1)}",
        f"{statistics.num_frames:,} frames",
        f"{statistics.hours:,.2f} h of known rate",
        f"{statistics.motion_dim} dimensions",
    ]
    if statistics.constant_dims:
        parts.append(f"{len(statistics.constant_dims)} of them constant")
    if statistics.dropped:
        parts.append(f"{sum(statistics.dropped.values()):,} dropped")
    return "  ·  ".join(parts)


def _draw_ranges(axes: Any, statistics: MotionStatistics) -> None:
    dims = np.arange(statistics.motion_dim)
    mean, std = np.array(statistics.mean), np.array(statistics.std)
    low, high = (_numbers(values) for values in (statistics.min, statistics.max))
    is_constant = np.isin(dims, statistics.constant_dims)
    moving = ~is_constant
    width = max(0.8, min(6.0, 420 / len(dims)))
    axes.vlines(dims[moving], low[moving], high[moving], color=LIGHT, linewidth=width, label="min to max")
    axes.vlines(
        dims[moving],
        (mean - std)[moving],
        (mean + std)[moving],
        color=MIDDLE,
        linewidth=width,
        label="mean ± deviation",
    )
    axes.plot(dims[moving], mean[moving], "_", color=DARK, markersize=width + 1, label="mean")
    if is_constant.any():
        axes.plot(dims[is_constant], mean[is_constant], "x", color=WARN, markersize=4, label="constant")
    spans = (high - low)[moving]
    spans = spans[spans > 0]
    if len(spans) and spans.max() > SYMLOG_RATIO * np.median(spans):
        axes.set_yscale("symlog", linthresh=float(np.median(spans)))
    axes.set_ylabel("value")
    axes.set_xlim(-0.7, len(dims) - 0.3)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper right", ncols=4, fontsize=8, framealpha=0.9)
    axes.set_title("Values by dimension", fontsize=10, loc="left")


def _draw_heat(figure: Any, axes: Any, statistics: MotionStatistics) -> None:
    from matplotlib.colors import LogNorm

    histogram = statistics.histogram
    slots = np.column_stack([histogram.below, np.array(histogram.counts), histogram.above]).T
    share = slots / np.maximum(slots.sum(axis=0), 1)
    used = np.flatnonzero(slots.any(axis=1))
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, len(slots) - 1)
    shown = np.ma.masked_equal(share[first : last + 1], 0)
    image = axes.imshow(
        shown,
        aspect="auto",
        origin="lower",
        cmap="viridis",
        norm=LogNorm(vmin=float(shown.min()), vmax=1),
        extent=(-0.5, statistics.motion_dim - 0.5, first - 0.5, last + 0.5),
        interpolation="nearest",
    )
    ticks, labels = _value_ticks(np.array(histogram.edges), first, last)
    axes.set_yticks(ticks, labels)
    axes.set_ylabel("value (logarithmic on both sides of zero)")
    axes.set_xlabel("dimension")
    axes.set_title("Histogram by dimension: share of its values in each bin", fontsize=10, loc="left")
    figure.colorbar(image, ax=axes, pad=0.01, aspect=30)


def _value_ticks(edges: NDArray[np.float64], first: int, last: int) -> tuple[list[float], list[str]]:
    """Return where powers of ten, and zero, stand among the slots `first` to `last`."""
    zero = len(edges) / 2
    above = [10.0**power for power in range(-2, 4)]
    values = [*(-value for value in reversed(above)), 0.0, *above]
    places = [zero if not value else float(_place(edges, value)) for value in values]
    inside = [(place, f"{value:g}") for place, value in zip(places, values, strict=True) if first <= place <= last]
    return [place for place, _ in inside], [text for _, text in inside]


def _place(edges: NDArray[np.float64], value: float) -> float:
    return float(np.interp(value, edges, np.arange(len(edges)) + 0.5))


def _draw_lengths(axes: Any, statistics: MotionStatistics) -> None:
    lengths = statistics.lengths
    edges = np.array(lengths.edges, np.float64)
    axes.bar(edges[:-1], lengths.counts, np.diff(edges), align="edge", color=MIDDLE, edgecolor="white", linewidth=0.5)
    if edges[-1] > 8 * edges[0]:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.axvline(lengths.mean, color=DARK, linewidth=1)
    axes.set_xlabel("frames a clip")
    axes.set_ylabel("clips")
    found = f"{lengths.min:,} to {lengths.max:,} frames, mean {lengths.mean:,.0f} (line)"
    axes.set_title(f"Lengths: {found}", fontsize=10, loc="left")
    axes.yaxis.get_major_locator().set_params(integer=True)


def _draw_rates(axes: Any, statistics: MotionStatistics) -> None:
    rates = sorted(statistics.fps, key=lambda rate: -rate.clips)[:8]
    names = ["none" if rate.fps is None else f"{rate.fps:g}" for rate in rates]
    colours = [WARN if rate.fps is None else MIDDLE for rate in rates]
    bars = axes.barh(names, [rate.clips for rate in rates], color=colours)
    axes.bar_label(bars, [f"{rate.clips:,}" for rate in rates], padding=3, fontsize=8)
    axes.set_ylim(max(3, len(rates)) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.set_xlabel("clips")
    more = len(statistics.fps) - len(rates)
    axes.set_title("Frames a second" + (f" ({more} more rates)" if more else ""), fontsize=10, loc="left")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _numbers(values: tuple[float | None, ...]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)
