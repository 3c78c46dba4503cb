"""The read stage: units -> motion of their clips, with a ledger that accounts for every one.

Knows no Ray or torch. Bad clips end here, one by one, each under a named reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.contract.columns import clip_schema
from pipeline.contract.drop_reasons import ClipProblem, DropReason
from pipeline.contract.specs import TokenSpec
from pipeline.contract.windows import window_starts
from pipeline.errors import StorageError
from pipeline.plan.units import Unit, listed_of
from pipeline.sources.clip import Part, PreparedClip, RawClip, prepare_clip
from pipeline.sources.clip_filter import ClipFilter
from pipeline.sources.plausible import Statistics, check_plausible
from pipeline.sources.registry import finest_parts, read_part
from pipeline.stages.blocks import RUN_LEDGER_SCHEMA, MotionBlock
from pipeline.storage import Folder


@dataclass(frozen=True)
class UnitReader:
    """Built by the driver, sent to every read task; owns only addresses and settings.

    Args:
        mean: (motion_dim,) of the codec's statistics; exploding motion is looked for where both are given.
        std: (motion_dim,) likewise, above 0.
    """

    folders: Mapping[str, Folder]
    spec: TokenSpec
    clips: ClipFilter = field(default_factory=ClipFilter)
    mean: np.ndarray | None = field(default=None, compare=False, repr=False)
    std: np.ndarray | None = field(default=None, compare=False, repr=False)
    crashing: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    """unit key -> the smallest parts of it whose reading kills the process; see isolation.py."""

    def read(self, units: Sequence[Unit]) -> MotionBlock:
        """Return the motion of a run of units, windows planned, dropped clips named in the ledger.

        Raises:
            StorageError: storage did not answer after all retries.
        """
        begin, begin_cpu = time.perf_counter(), time.process_time()
        rows: list[dict[str, object]] = []
        motion: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        carried: list[dict[str, Any]] = []
        for index, unit in enumerate(units):
            for clip in self._clips(unit):
                if isinstance(clip, ClipProblem):
                    rows.append(_row_of_problem(clip, index))
                    continue
                num_frames = len(clip.motion)
                clip_starts = self._starts(clip)
                too_short = "" if len(clip_starts) else self._too_short(num_frames)
                if not too_short:
                    motion.append(clip.motion)
                    starts.append(clip_starts)
                    carried.append(self._clip_row(clip))
                rows.append(
                    {
                        "clip_id": clip.clip_id,
                        "source": clip.source,
                        "where": clip.where,
                        "num_frames": num_frames,
                        "num_windows": len(clip_starts),
                        "motion_digest": clip.motion_digest,
                        "drop_reason": DropReason.TOO_SHORT.value if too_short else "",
                        "drop_detail": too_short,
                        "unit": index,
                    }
                )
            self.check_unchanged(unit)
        empty = np.zeros((0, self.spec.codec.motion_dim), np.float32)
        return MotionBlock(
            units=tuple(units),
            motion=np.concatenate(motion) if motion else empty,
            ledger=pa.Table.from_pylist(rows, schema=RUN_LEDGER_SCHEMA),
            start_frame=np.concatenate(starts) if starts else np.zeros(0, np.int64),
            seconds=_read_seconds(time.perf_counter() - begin, time.process_time() - begin_cpu),
            clip_columns=pa.Table.from_pylist(carried, schema=clip_schema(self.spec.corpus)),
        )

    def _clip_row(self, clip: PreparedClip) -> dict[str, Any]:
        """Return what is carried along of a clip: a row of `clip_schema`."""
        if clip.audio is None:
            return dict(clip.carried)
        samples = clip.audio.samples
        sound = {"audio_path": clip.audio.path} if samples is None else {"audio": samples.astype("<i2").tobytes()}
        return {**clip.carried, **sound, "audio_rate_hz": clip.audio.rate_hz, "audio_drift_s": clip.audio.drift_s}

    def check_unchanged(self, unit: Unit) -> None:
        """Make sure that what was read is what the plan saw: with checksums too, by size and version.

        Raises:
            StorageError: a file was changed or removed since the plan.
        """
        files = [self.folders[part.input_name].stat(part.path) for part in unit.parts]
        if listed_of([file for file in files if file is not None]) != unit.listed:
            sources = ", ".join(part.source for part in unit.parts[:5])
            raise StorageError(f"input changed while it was read ({sources}): run the same command again")

    def touch(self, unit: Unit) -> None:
        """Read every clip of a unit and keep none."""
        for _ in self._clips(unit):
            pass

    def _parts(self, unit: Unit) -> Iterable[Part]:
        if unit.key not in self.crashing:
            return unit.parts
        return finest_parts(self.folders, unit.parts, self.spec.corpus)

    def raw_clips(self, unit: Unit) -> Iterator[RawClip | ClipProblem]:
        """Yield every clip of a unit as it is stored, those left out that `clips` does not admit."""
        crashing = self.crashing.get(unit.key, ())
        for part in self._parts(unit):
            if part in crashing:
                where = f"from {part.start or 0} on" if part.stop or part.start else ""
                yield part.problem(part.stem, where, DropReason.CRASHED, "reading it killed the process")
                continue
            for raw in read_part(self.folders[part.input_name], part, self.spec.corpus, self.spec.codec):
                if isinstance(raw, ClipProblem):
                    yield raw  # even where ids are listed: it may stand for clips whose ids cannot be read
                elif self.clips.admits(raw.clip_id):
                    yield raw

    def _clips(self, unit: Unit) -> Iterator[PreparedClip | ClipProblem]:
        corpus, codec = self.spec.corpus, self.spec.codec
        statistics = None if self.mean is None or self.std is None else Statistics(self.mean, self.std)
        for raw in self.raw_clips(unit):
            clip = raw if isinstance(raw, ClipProblem) else prepare_clip(raw, corpus, codec)
            yield clip if isinstance(clip, ClipProblem) else check_plausible(clip, corpus, statistics)

    def _starts(self, clip: PreparedClip) -> np.ndarray:
        frames = self.spec.codec.window_frames
        return window_starts(clip.clip_id, len(clip.motion), frames, self.spec.corpus.window)

    def _too_short(self, num_frames: int) -> str:
        return f"{num_frames} frames at {self.spec.codec.fps:g} fps, a window has {self.spec.codec.window_frames}"


def _read_seconds(wall_s: float, cpu_s: float) -> dict[str, float]:
    """Return the time of a read, and what of it this process computed: the rest waited for storage."""
    return {"read": wall_s, "decode": min(wall_s, cpu_s)}


def _row_of_problem(problem: ClipProblem, unit: int) -> dict[str, object]:
    return {
        "clip_id": problem.clip_id,
        "source": problem.source,
        "where": problem.where,
        "num_frames": 0,
        "num_windows": 0,
        "motion_digest": "",
        "drop_reason": problem.reason.value,
        "drop_detail": problem.detail,
        "unit": unit,
    }
