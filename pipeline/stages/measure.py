"""Statistics of one unit: what a task measures, how it travels, and how units are added up.

Knows no Ray or torch. Clips of different dims are kept apart: which of them counts is known at the end only.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.contract.drop_reasons import ClipProblem, DropReason
from pipeline.hashing import canonical_json
from pipeline.plan.units import Unit
from pipeline.sources.clip import RawClip, clip_to_measure, motion_digest
from pipeline.sources.plausible import frozen_run
from pipeline.stages.moments import MOMENT_FIELDS, Moments, merged, moments_of, no_moments
from pipeline.stages.read import UnitReader

NO_RATE = ""
"""Stands for the rate of a clip that has none."""

CONTENT_BITS = 128


@dataclass
class ClipTally:
    """Counts and moments of clips of equal dims; grows clip by clip, and unit by unit."""

    moments: Moments
    clips: int = 0
    frames: int = 0
    non_finite_clips: int = 0
    shortest: int = 0
    longest: int = 0
    content: int = 0
    """Sum of the clips' hashes, modulo 2 ** CONTENT_BITS: no order, no place and no cut changes it."""
    rate_clips: Counter[str] = field(default_factory=Counter)
    """Clips by rate, as text of six digits: float16 and float64 state the same one."""
    rate_frames: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    """Clips by the bin of their length."""

    def add(self, clip: RawClip) -> None:
        """Count a clip in."""
        frames = len(clip.motion)
        moments = moments_of(clip.motion)
        rate = NO_RATE if clip.fps is None else f"{clip.fps:.6g}"
        text = f"{clip.clip_id}\0{rate}\0{motion_digest(clip.motion)}".encode()
        one = ClipTally(
            moments,
            clips=1,
            frames=frames,
            non_finite_clips=int((moments.count < frames).any()),
            shortest=frames,
            longest=frames,
            content=int.from_bytes(hashlib.sha256(text).digest()[: CONTENT_BITS // 8], "big"),
            rate_clips=Counter({rate: 1}),
            rate_frames=Counter({rate: frames}),
            lengths=Counter({length_bin(frames): 1}),
        )
        self.merge(one)

    def merge(self, other: ClipTally) -> None:
        """Add clips that come behind these."""
        self.moments = merged(self.moments, other.moments)
        self.shortest = min(self.shortest, other.shortest) if self.clips else other.shortest
        self.longest = max(self.longest, other.longest)
        self.clips += other.clips
        self.frames += other.frames
        self.non_finite_clips += other.non_finite_clips
        self.content = (self.content + other.content) % 2**CONTENT_BITS
        self.rate_clips.update(other.rate_clips)
        self.rate_frames.update(other.rate_frames)
        self.lengths.update(other.lengths)


@dataclass
class UnitStatistics:
    """What one unit holds; of several once they are merged."""

    unit_key: str
    num_bytes: int
    by_dims: dict[int, ClipTally] = field(default_factory=dict)
    drops: Counter[str] = field(default_factory=Counter)

    def tally(self, dims: int) -> ClipTally:
        """Return the tally of clips of so many dims, begun where there was none."""
        return self.by_dims.setdefault(dims, ClipTally(no_moments(dims)))

    def merge(self, other: UnitStatistics) -> None:
        """Add a unit that comes behind this one."""
        for dims, tally in sorted(other.by_dims.items()):
            self.tally(dims).merge(tally)
        self.drops.update(other.drops)
        self.num_bytes += other.num_bytes

    def to_bytes(self) -> bytes:
        """Return the statistics as an npz archive; every number survives exactly."""
        arrays = {
            f"{dims}/{name}": getattr(tally.moments, name)
            for dims, tally in self.by_dims.items()
            for name in MOMENT_FIELDS
        }
        tallies = {str(dims): _plain(tally) for dims, tally in self.by_dims.items()}
        facts = {"unit_key": self.unit_key, "num_bytes": self.num_bytes, "tallies": tallies, "drops": self.drops}
        sink = io.BytesIO()
        np.savez(sink, facts=np.array(canonical_json(facts)), **arrays)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> UnitStatistics:
        """Return the statistics that `to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"]))
            by_dims = {
                int(dims): _tally(plain, Moments(**{name: arrays[f"{dims}/{name}"] for name in MOMENT_FIELDS}))
                for dims, plain in facts["tallies"].items()
            }
        return cls(facts["unit_key"], facts["num_bytes"], by_dims, Counter(facts["drops"]))


@dataclass(frozen=True)
class UnitMeasurer:
    """Built by the driver, sent to every task; owns only addresses and settings.

    Args:
        fps: the rate of a codec, whose rules for rates then apply; None takes every clip at its own.
    """

    reader: UnitReader
    fps: float | None = None

    def measure(self, unit: Unit) -> UnitStatistics:
        """Read a unit's clips once and return their statistics.

        Raises:
            StorageError: storage did not answer after all retries, or the unit was changed since the plan.
        """
        found = UnitStatistics(unit.key, unit.num_bytes)
        for clip in self._clips(unit):
            if isinstance(clip, ClipProblem):
                found.drops[clip.reason.value] += 1
            else:
                found.tally(clip.motion.shape[1]).add(clip)
        self.reader.check_unchanged(unit)
        return found

    def _clips(self, unit: Unit) -> Iterator[RawClip | ClipProblem]:
        corpus = self.reader.spec.corpus
        for raw in self.reader.raw_clips(unit):
            clip = raw if isinstance(raw, ClipProblem) else clip_to_measure(raw, corpus, self.fps)
            if isinstance(clip, RawClip) and corpus.max_frozen_frames is not None:
                fault = frozen_run(clip.motion, corpus.max_frozen_frames)
                if fault:
                    clip = ClipProblem(clip.clip_id, clip.source, clip.where, DropReason.FROZEN, fault)
            yield clip


def length_bin(num_frames: int) -> int:
    """Return the first length of a clip's bin: four bins an octave, the lengths up to 7 each by itself."""
    step = 1 << max(0, num_frames.bit_length() - 3)
    return num_frames // step * step


def next_length_bin(first: int) -> int:
    """Return the bin behind one that `length_bin` gave."""
    return first + (1 << max(0, first.bit_length() - 3))


def hours_of(rate_frames: Mapping[str, int]) -> float:
    """Return the hours of motion whose rate is known."""
    seconds = [frames / float(rate) for rate, frames in sorted(rate_frames.items()) if rate != NO_RATE]
    return math.fsum(seconds) / 3600


_PLAIN_FIELDS = ("clips", "frames", "non_finite_clips", "shortest", "longest", "content")


def _plain(tally: ClipTally) -> dict[str, object]:
    lengths = {str(first): count for first, count in tally.lengths.items()}
    counts = {name: getattr(tally, name) for name in _PLAIN_FIELDS}
    return {**counts, "rate_clips": tally.rate_clips, "rate_frames": tally.rate_frames, "lengths": lengths}


def _tally(plain: Mapping[str, object], moments: Moments) -> ClipTally:
    counts = {name: int(str(plain[name])) for name in _PLAIN_FIELDS}
    by_rate = {name: _counter(plain[name]) for name in ("rate_clips", "rate_frames")}
    lengths = Counter({int(first): count for first, count in _counter(plain["lengths"]).items()})
    return ClipTally(moments, **counts, **by_rate, lengths=lengths)  # type: ignore[arg-type]


def _counter(value: object) -> Counter[str]:
    return Counter(value) if isinstance(value, Mapping) else Counter()
