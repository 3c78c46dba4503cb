"""The pictures of a report, as PNG bytes.

Knows numbers and matplotlib, no storage or HTML. Names of clips come from strangers: they are drawn as plain text.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from bitwise_vae.config import MotionGroup
from pipeline.report.measure import NUM_WORST, Codes, Decoded, Report

ORIGINAL, DECODED, QUIET, ALERT = "#1f3b57", "#e07a1f", "#9fb3c8", "#b3261e"
PALETTE = ("#1f6fb2", "#e07a1f", "#2e8b57", "#8e5ea2", "#c2185b", "#6b7280", "#b8860b", "#0097a7")
WIDTH = 9.6
"""Inches; 100 dots each."""


def draw_pictures(report: Report) -> dict[str, bytes]:
    """Return name -> PNG of every picture that the report has numbers for."""
    pictures = {
        "corpus": _corpus(report),
        "codes": _codes(report.codes, report.dataset.manifest.contract.codec.patch_nums),
        "correlations": _correlations(report.codes, report.dataset.manifest.contract.codec.patch_nums),
        "raster": _raster(report.codes, report),
    }
    if report.decoded is not None:
        pictures["curves"] = _curves(report.decoded)
        pictures["scales"] = _scales(report.decoded)
        pictures["worst"] = _worst(report.decoded)
        pictures["stability"] = _stability(report.decoded)
    if report.drops:
        pictures["drops"] = _drops(report)
    if any(run.get("seconds") for run in report.runs):
        pictures["time"] = _time(report)
    return pictures


def _curves(decoded: Decoded) -> bytes:
    """The window of median error: of every group the column that moves most."""
    clips = decoded.clips
    clip = clips[len(clips) // 2]
    groups = decoded.model.config.motion_groups
    figure, axes = _figure(1.75 * len(groups) + 0.5, len(groups))
    for axis, group in zip(axes, groups, strict=True):
        motion = decoded.sample.motion[clip.row][:, group.start : group.stop]
        column = group.start + int(motion[decoded.sample.is_real[clip.row]].std(axis=0).argmax())
        _draw_window(axis, decoded, clip.row, column)
        axis.set_ylabel(_column_name(group, column), fontsize=8)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 0.98), fontsize=8, ncol=2, frameon=False)
    axes[-1].set_xlabel("seconds; at 0 prev ends and this begins")
    _title(axes[0], clip.clip_id)
    return _png(figure)


def _worst(decoded: Decoded) -> bytes:
    """Ten clips of the largest error: of each the column that is furthest off."""
    clips = decoded.clips[:NUM_WORST]
    num_rows = (len(clips) + 1) // 2
    figure = Figure(figsize=(WIDTH, 1.6 * num_rows + 0.4), layout="constrained", dpi=100)
    axes = figure.subplots(num_rows, 2, squeeze=False).reshape(-1)
    std = decoded.model.motion_std.numpy()
    for axis, clip in zip(axes, clips, strict=False):
        is_compared = decoded.sample.is_compared[clip.row]
        lost = np.abs(decoded.motion[clip.row] - decoded.sample.motion[clip.row])[is_compared] / std
        column = int(lost.mean(axis=0).argmax())
        group = _group_of(decoded.model.config.motion_groups, column)
        _draw_window(axis, decoded, clip.row, column)
        _title(axis, f"{_short(clip.clip_id, 34)}   error {clip.normalised_l1:.2f}", 8)
        axis.set_ylabel(_column_name(group, column), fontsize=7)
        axis.tick_params(labelsize=7)
    for axis in axes[len(clips) :]:
        axis.remove()
    return _png(figure)


def _draw_window(axis: Any, decoded: Decoded, row: int, column: int) -> None:
    config, is_real = decoded.model.config, decoded.sample.is_real[row]
    time = np.arange(-config.window_frames, config.window_frames) / config.fps
    axis.axvline(0, color=QUIET, linewidth=0.8)
    for motion, colour, label in (
        (decoded.sample.motion, ORIGINAL, "recorded"),
        (decoded.motion, DECODED, "decoded"),
    ):
        axis.plot(time[is_real], motion[row, is_real, column], color=colour, linewidth=1.2, label=label)
    _bare(axis)


def _scales(decoded: Decoded) -> bytes:
    """Error by number of scales used, by group."""
    figure, (axis,) = _figure(3.2, 1)
    names = [name for name, _ in decoded.by_scales]
    places = np.arange(len(names))
    for index, group in enumerate(decoded.model.config.motion_groups):
        errors = [figures.groups[index].fraction_of_mean for _, figures in decoded.by_scales]
        if all(error is not None for error in errors):
            axis.plot(places, np.array(errors, float), "o-", color=PALETTE[index % len(PALETTE)], label=group.name)
    overall = np.array([figures.as_trained.fraction_of_mean for _, figures in decoded.by_scales])
    axis.plot(places, overall, "o--", color="black", linewidth=1, label="all columns")
    axis.axhline(1, color=ALERT, linewidth=0.8)
    axis.text(len(names) - 1, 1, "keeping the mean", color=ALERT, fontsize=8, ha="right", va="bottom")
    axis.set_xticks(places, names)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel("tokens a scale that were decoded, coarse to fine")
    axis.set_ylabel("error, share of keeping the mean")
    axis.legend(fontsize=8, frameon=False)
    _bare(axis)
    return _png(figure)


def _codes(codes: Codes, patch_nums: Sequence[int]) -> bytes:
    """Share of ones and entropy of every bit at every scale."""
    figures = codes.figures
    height = 0.32 * len(patch_nums)
    figure, axes = _figure(2 * height + 2.2, 2)
    panels = (
        ("share of ones", figures.share_of_ones, "RdBu_r"),
        ("information, bits a bit", figures.entropy, "viridis"),
    )
    for axis, (title, values, colours) in zip(axes, panels, strict=True):
        image = axis.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.set_yticks(range(len(patch_nums)), [_tokens(count) for count in patch_nums], fontsize=8)
        axis.set_title(title, fontsize=9, loc="left")
        figure.colorbar(image, ax=axis, fraction=0.03, pad=0.01)
    axes[-1].set_xlabel("bit of a token")
    dead = np.array(figures.dead_bits).reshape(-1, 2)
    axes[1].plot(dead[:, 1], dead[:, 0], "x", color=ALERT, markersize=7)
    return _png(figure)


def _correlations(codes: Codes, patch_nums: Sequence[int]) -> bytes:
    """Correlation of the bits of one token, a square a scale."""
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained", dpi=100)
    axes = figure.subplots(1, len(patch_nums), squeeze=False)[0]
    image: Any = None
    for axis, matrix, count in zip(axes, codes.figures.correlation, patch_nums, strict=True):
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(_tokens(count), fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(image, ax=list(axes), fraction=0.02, pad=0.01)
    return _png(figure)


def _raster(codes: Codes, report: Report) -> bytes:
    """The bits of one half over one time axis, scale under scale."""
    codec = report.dataset.manifest.contract.codec
    scales = np.split(codes.window, np.cumsum(codec.patch_nums)[:-1])
    figure = Figure(figsize=(WIDTH, 0.95 * len(scales) + 0.7), layout="constrained", dpi=100)
    axes = figure.subplots(len(scales), 1, sharex=True, squeeze=False)[:, 0]
    seconds = codec.window_frames / codec.fps
    for axis, scale in zip(axes, scales, strict=True):
        extent = (0.0, seconds, 0.0, float(codec.code_dim))
        axis.imshow(scale.T, cmap="Greys", vmin=0, vmax=1.3, aspect="auto", interpolation="nearest", extent=extent)
        axis.set_yticks([])
        axis.set_ylabel(_tokens(len(scale)), fontsize=8, rotation=0, ha="right", va="center")
    axes[-1].set_xlabel("seconds")
    _title(axes[0], f"{codes.clip_id}, from frame {codes.start_frame}")
    return _png(figure)


def _stability(decoded: Decoded) -> bytes:
    """How many bits lie how near zero, and which of them flipped."""
    certificate = decoded.certificate
    figure, (axis,) = _figure(3.4, 1)
    edges = certificate.edges
    places = np.arange(len(edges) + 1)
    labels = [f"< {edges[0]:.0e}", *(f"{edge:.0e}" for edge in edges)]
    axis.bar(places, np.maximum(certificate.near_zero, 0.5), color=QUIET, width=0.9, label="all bits")
    shown = [item for item in certificate.comparisons if item.near_zero is not None]
    for index, item in enumerate(shown):
        width = 0.7 / max(len(shown), 1)
        counts = np.asarray(item.near_zero)
        at = places - 0.35 + width * (index + 0.5)
        axis.bar(at[counts > 0], counts[counts > 0], width=width, color=PALETTE[index], label=f"flipped, {item.name}")
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.5)
    axis.set_xticks(places, labels, fontsize=7)
    axis.set_xlabel("distance from zero of the number whose sign is the bit, from this power of ten on")
    axis.set_ylabel("bits")
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    _bare(axis)
    return _png(figure)


def _corpus(report: Report) -> bytes:
    """Hours by split and by source."""
    manifest = report.dataset.manifest
    splits = [(name, part.hours, part.windows) for name, part in manifest.splits.items()]
    sources = [(source.name, source.hours, source.windows) for source in report.sources]
    heights = [len(splits) + 0.8, len(sources) + 0.8]
    figure = Figure(figsize=(WIDTH, 0.26 * sum(heights) + 1.1), layout="constrained", dpi=100)
    axes = figure.subplots(2, 1, height_ratios=heights)
    for axis, rows, title in zip(axes, (splits, sources), ("by split", "by source"), strict=True):
        _hours(axis, rows, title)
    axes[-1].set_xlabel("hours of motion")
    return _png(figure)


def _hours(axis: Any, rows: Sequence[tuple[str, float, int]], title: str) -> None:
    places = np.arange(len(rows))[::-1]
    hours = np.array([row[1] for row in rows])
    axis.barh(places, hours, color=PALETTE[0], height=0.7)
    for place, (_, value, windows) in zip(places, rows, strict=True):
        axis.text(value, place, f"  {value:.3g} h, {windows:,} windows", fontsize=8, va="center")
    axis.set_yticks(places, [_short(row[0], 40) for row in rows], fontsize=8, parse_math=False)
    axis.set_xlim(0, max(float(hours.max(initial=0)), 1e-6) * 1.35)
    axis.set_title(title, fontsize=9, loc="left")
    _bare(axis)


def _drops(report: Report) -> bytes:
    """Dropped clips by reason."""
    figure, (axis,) = _figure(0.3 * len(report.drops) + 0.8, 1)
    places = np.arange(len(report.drops))[::-1]
    axis.barh(places, [count for _, count, _ in report.drops], color=ALERT, height=0.6)
    for place, (_, count, _) in zip(places, report.drops, strict=True):
        axis.text(count, place, f"  {count:,}", fontsize=8, va="center")
    axis.set_yticks(places, [reason for reason, _, _ in report.drops], fontsize=8)
    axis.set_xlabel("clips")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _bare(axis)
    return _png(figure)


def _time(report: Report) -> bytes:
    """Seconds of the last runs by stage, one bar a run."""
    runs = [run for run in report.runs if run.get("seconds")]
    stages = list(dict.fromkeys(name for run in runs for name in run["seconds"]))
    figure, (axis,) = _figure(0.4 * len(runs) + 1.1, 1)
    places = np.arange(len(runs))[::-1]
    left: NDArray[np.float64] = np.zeros(len(runs))
    for index, stage in enumerate(stages):
        seconds = np.array([float(run["seconds"].get(stage, 0)) for run in runs])
        axis.barh(places, seconds, left=left, height=0.6, color=PALETTE[index % len(PALETTE)], label=stage)
        left += seconds
    axis.set_yticks(places, [str(run.get("run_id", "")) for run in runs], fontsize=8, parse_math=False)
    axis.set_xlabel("seconds")
    axis.legend(fontsize=8, frameon=False, ncol=len(stages), loc="lower right", bbox_to_anchor=(1, 1))
    _bare(axis)
    return _png(figure)


def _figure(height: float, num_rows: int) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=100)
    return figure, list(figure.subplots(num_rows, 1, squeeze=False)[:, 0])


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a clip's name may be in any script
        figure.savefig(sink, format="png")
    return sink.getvalue()


def _title(axis: Any, text: str, size: int = 9) -> None:
    axis.set_title(_short(text, 90), fontsize=size, loc="left", parse_math=False)


def _bare(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _group_of(groups: Sequence[MotionGroup], column: int) -> MotionGroup:
    inside = (group for group in groups if group.start <= column < group.stop)
    return next(inside, MotionGroup("column", 0, column + 1, ""))


def _column_name(group: MotionGroup, column: int) -> str:
    return f"{group.name} {column - group.start}" + (f", {group.unit}" if group.unit else "")


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count > 1)}"


def _short(text: str, length: int) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= length else f"{shown[: length - 9]}…{shown[-8:]}"
