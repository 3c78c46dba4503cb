"""stats.json: what a collection of motion holds, number by number; written by `stats`, read by `train`.

Knows no Ray, torch or storage. Holds no time, host or path of a machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.contract.specs import CorpusSpec
from pipeline.errors import InputFormatError
from pipeline.hashing import canonical_json
from pipeline.stages.measure import NO_RATE, ClipTally, hours_of, next_length_bin
from pipeline.stages.moments import histogram_edges

STATISTICS_VERSION: Literal[1] = 1
STATISTICS_KIND: Literal["motion_tokens.statistics"] = "motion_tokens.statistics"

INPUT_FIELDS = ("motion_field", "clip_id_field", "columns", "fps", "resample", "max_frozen_frames", "clips")
"""Settings of the corpus that can change a statistic."""

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RateCount(_Record):
    """Clips of one frame rate."""

    fps: float | None = Field(description="frames a second; null where a clip states none")
    clips: Count
    frames: Count


class LengthCounts(_Record):
    """How long clips are, frames."""

    min: Count
    max: Count
    mean: float
    edges: tuple[int, ...]
    """Bin i holds clips of edges[i] up to edges[i + 1] - 1 frames; four bins an octave."""
    counts: tuple[Count, ...]


class Histogram(_Record):
    """Values of every dimension in bins that are the same for any motion."""

    edges: tuple[float, ...]
    """Rising. A value on an edge is counted in the bin away from zero; the bin around zero holds neither end."""
    counts: tuple[tuple[Count, ...], ...]
    """(motion_dim, len(edges) - 1)."""
    below: tuple[Count, ...]
    above: tuple[Count, ...]
    """(motion_dim,) finite values outside the edges, or on the outermost ones."""


class MotionStatistics(_Record):
    """The contents of stats.json; built by `statistics_of` or read from a file. Lists have one number a dimension."""

    kind: Literal["motion_tokens.statistics"] = STATISTICS_KIND
    schema_version: Literal[1] = STATISTICS_VERSION
    content: str
    """Hash of ids, rates and motion of all clips, whatever their order and files."""
    input: dict[str, Any]
    motion_dim: Annotated[int, Field(ge=1)]
    num_clips: Count
    num_frames: Count
    hours: float
    """Of the clips that state a rate."""
    non_finite_clips: Count
    """Clips with NaN or infinity: their other values count here, while `tokenize` drops them."""
    dropped: dict[str, Count]
    """Clips by reason."""
    other_dims: dict[str, Count]
    """Clips of other dims, which are dropped as `wrong_dim`."""
    fps: tuple[RateCount, ...]
    lengths: LengthCounts
    constant_dims: tuple[Count, ...]
    """Dimensions with one value, or none: their std is 1."""
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    min: tuple[float | None, ...]
    """Null where no value is finite."""
    max: tuple[float | None, ...]
    nan_counts: tuple[Count, ...]
    inf_counts: tuple[Count, ...]
    histogram: Histogram

    @model_validator(mode="after")
    def _fits(self) -> MotionStatistics:
        for name in ("mean", "std", "min", "max", "nan_counts", "inf_counts"):
            if len(getattr(self, name)) != self.motion_dim:
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers, motion_dim is {self.motion_dim}")
        return self

    def to_bytes(self) -> bytes:
        """Return the text of stats.json: canonical, one line a key."""
        tree = self.model_dump(mode="json")
        lines = ",\n".join(f"{canonical_json(name)}:{canonical_json(value)}" for name, value in tree.items())
        return f"{{\n{lines}\n}}\n".encode()


def statistics_from_bytes(data: bytes, name: str) -> MotionStatistics:
    """Return the statistics of a stats.json.

    Args:
        name: of the file, for messages.

    Raises:
        InputFormatError: it is none, or of another schema version.
    """
    try:
        tree = json.loads(data)
        if not isinstance(tree, Mapping) or tree.get("kind") != STATISTICS_KIND:
            raise ValueError(f"no key kind {STATISTICS_KIND!r}")
        return MotionStatistics.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        finding = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except ValueError as error:
        finding = str(error)
    raise InputFormatError(f"{name} is no statistics file: {finding}. Next: make one with motion-tokens stats")


def input_settings(corpus: CorpusSpec) -> dict[str, Any]:
    """Return the settings of a corpus that can change a statistic."""
    return {name: value for name, value in corpus.model_dump(mode="json").items() if name in INPUT_FIELDS}


def statistics_of(
    tally: ClipTally, settings: Mapping[str, Any], dropped: Mapping[str, int], other_dims: Mapping[int, int]
) -> MotionStatistics:
    """Return the statistics of counted clips.

    Args:
        settings: how the input was read.
        dropped: clips by reason.
        other_dims: clips by dims, of those that were not counted for their dims.
    """
    moments = tally.moments
    has_values = moments.count > 0
    is_constant = ~(moments.low < moments.high) | (moments.std.astype(np.float32) == 0)
    std = moments.std.copy()
    std[is_constant] = 1.0
    return MotionStatistics(
        content=f"{tally.content:032x}",
        input=dict(settings),
        motion_dim=len(moments.mean),
        num_clips=tally.clips,
        num_frames=tally.frames,
        hours=hours_of(tally.rate_frames),
        non_finite_clips=tally.non_finite_clips,
        dropped=dict(sorted(dropped.items())),
        other_dims={str(dims): clips for dims, clips in sorted(other_dims.items())},
        fps=_rates(tally),
        lengths=_lengths(tally),
        constant_dims=tuple(is_constant.nonzero()[0].tolist()),
        mean=tuple(moments.mean.tolist()),
        std=tuple(std.tolist()),
        min=tuple(_known(moments.low.tolist(), has_values.tolist())),
        max=tuple(_known(moments.high.tolist(), has_values.tolist())),
        nan_counts=tuple(moments.nans.tolist()),
        inf_counts=tuple(moments.infs.tolist()),
        histogram=Histogram(
            edges=tuple(histogram_edges()),
            counts=tuple(tuple(row) for row in moments.histogram[:, 1:-1].tolist()),
            below=tuple(moments.histogram[:, 0].tolist()),
            above=tuple(moments.histogram[:, -1].tolist()),
        ),
    )


def _known(values: list[float], is_known: list[bool]) -> list[float | None]:
    return [value if known else None for value, known in zip(values, is_known, strict=True)]


def _rates(tally: ClipTally) -> tuple[RateCount, ...]:
    known = sorted((float(rate), rate) for rate in tally.rate_clips if rate != NO_RATE)
    rates: list[tuple[float | None, str]] = [*known]
    if NO_RATE in tally.rate_clips:
        rates.append((None, NO_RATE))
    return tuple(
        RateCount(fps=fps, clips=tally.rate_clips[text], frames=tally.rate_frames[text]) for fps, text in rates
    )


def _lengths(tally: ClipTally) -> LengthCounts:
    first, last = min(tally.lengths), max(tally.lengths)
    edges = [first]
    while edges[-1] <= last:
        edges.append(next_length_bin(edges[-1]))
    return LengthCounts(
        min=tally.shortest,
        max=tally.longest,
        mean=tally.frames / tally.clips,
        edges=tuple(edges),
        counts=tuple(tally.lengths[edge] for edge in edges[:-1]),
    )
