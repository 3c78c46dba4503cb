"""Motion for a training: every clip of the inputs, read once into memory, as the codec to be will take it.

Knows no Ray or torch. Readers, columns, resampling and drop reasons are those of `tokenize`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bitwise_vae.training.clips import Motion, MotionClips, MotionStatistics, TrainingDataError
from pipeline.contract.drop_reasons import NEXT_STEP, ClipProblem, DropReason
from pipeline.contract.resolve import codec_to_be, corpus_spec
from pipeline.contract.specs import CodecSpec, TokenSpec
from pipeline.errors import ConfigError, DataError, NoClipLeftError
from pipeline.hashing import hash64
from pipeline.plan.plan import make_plan
from pipeline.plan.units import Unit
from pipeline.run.drop_limit import check_dropped
from pipeline.settings.job_config import JobConfig
from pipeline.sources.clip import PreparedClip, clip_to_measure, prepare_clip
from pipeline.sources.clip_filter import ClipFilter
from pipeline.sources.plausible import Statistics, check_plausible
from pipeline.sources.registry import open_readable
from pipeline.stages.read import UnitReader
from pipeline.statistics.motion_statistics import statistics_from_bytes
from pipeline.storage import read_bytes

MAX_MOTION_BYTES = 8 << 30
"""Motion held in memory, float32: 225 hours of 106 columns at 25 fps. Of more, a share of the clips is drawn."""


@dataclass(frozen=True)
class MotionRequest:
    """What to read.

    Args:
        fps: rate of the codec; clips of other rates are resampled or dropped as `input.resample` says.
        motion_dim: columns of the codec; None: those of the first clip that can be read.
        max_bytes: of motion, more is drawn from by a hash of the clip id.
    """

    inputs: tuple[str, ...]
    config: JobConfig
    fps: float
    motion_dim: int | None = None
    statistics: MotionStatistics | None = None
    max_bytes: int = MAX_MOTION_BYTES


@dataclass
class TrainingMotion:
    """What was read: clips in order of the plan, drops by reason with one example each; grows clip by clip.

    `share` of the clips was drawn, 1 where all fit into memory.
    """

    share: float = 1.0
    motions: list[tuple[str, Motion]] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)
    examples: dict[str, ClipProblem] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def clips(self) -> MotionClips:
        """Returns the clips, joined.

        Raises:
            NoClipLeftError: there is none.
        """
        if not self.motions:
            reasons = "; ".join(self.drop_lines()) or "the inputs hold none"
            raise NoClipLeftError(f"no clip can be trained on: {reasons}")
        return MotionClips.of(self.motions)

    def drop_lines(self) -> list[str]:
        """Returns a line a reason: how many clips, an example, and what to do."""
        lines = []
        for reason, count in sorted(self.drops.items()):
            example = self.examples[reason]
            detail = f" ({example.clip_id}: {example.detail})"
            lines.append(f"{count:,} {reason}{detail}: {NEXT_STEP[DropReason(reason)]}")
        return lines


def read_motion(request: MotionRequest) -> TrainingMotion:
    """Read the inputs into memory.

    Raises:
        RequestError: an input is missing, or a setting is wrong.
        TooManyDroppedError: more clips were dropped than `run.max_dropped` allows.
        StorageError: storage does not answer, or a file was changed meanwhile.
        DataError: the motion does not fit into `max_bytes`.
    """
    config, options = request.config, request.config.run.storage_options
    roots = open_readable(request.inputs, config.input.format, options)
    clips = ClipFilter.read(config.input.clips, options)
    codec = codec_to_be(config, request.fps)
    if request.motion_dim is not None:
        codec = codec.model_copy(update={"motion_dim": request.motion_dim})
    corpus = corpus_spec(config, codec, batch_size=1, clips_digest=clips.digest)
    plan = make_plan(roots, corpus)
    reader = UnitReader({root.name: root.folder for root in roots}, TokenSpec(codec=codec, corpus=corpus), clips)
    num_bytes = sum(unit.num_bytes for unit in plan.units)
    found = TrainingMotion(share=min(1.0, 0.9 * request.max_bytes / max(1, num_bytes)))
    held = 0
    for unit in plan.units:
        for clip in _clips(reader, unit, request, found):
            held += clip.motion.nbytes
            if held > request.max_bytes:
                raise DataError(
                    f"the motion takes more than {request.max_bytes:,} bytes of memory: name fewer inputs, or list "
                    "clips with --set input.clips=FILE"
                )
            found.motions.append((clip.clip_id, clip.motion))
        reader.check_unchanged(unit)
    num_dropped = found.drops.total()
    counts = {"clips": len(found.motions), "dropped_clips": num_dropped}
    check_dropped(counts, found.drops, config.run.max_dropped)
    return found


def read_statistics(stats: str, config: JobConfig) -> MotionStatistics:
    """Read mean and deviation from a stats.json of `motion-tokens stats`.

    Raises:
        RequestError: the file is missing or is none.
    """
    found = statistics_from_bytes(read_bytes(stats, config.run.storage_options), stats)
    return MotionStatistics(np.array(found.mean, np.float32), np.array(found.std, np.float32))


def require_statistics(statistics: MotionStatistics, clips: MotionClips, name: str) -> None:
    """Make sure that statistics are of the motion's dimension.

    Raises:
        ConfigError: they are of another.
    """
    dims = clips.frames.shape[1]
    if len(statistics.mean) != dims:
        raise ConfigError(
            f"{name} has statistics of {len(statistics.mean)} dimensions, the motion has {dims}: make it of the same "
            "columns, with motion-tokens stats"
        )


def divided(clips: MotionClips, window_frames: int, held_out_share: float) -> tuple[MotionClips, MotionClips]:
    """Return clips to train on and held-out ones, both long enough for a window.

    Raises:
        DataError: no clip is long enough, only one is, or nothing in them changes.
    """
    try:
        long = clips.at_least(window_frames)
        long.statistics()
        return long.divide(held_out_share)
    except TrainingDataError as error:
        raise DataError(str(error)) from error


def _clips(reader: UnitReader, unit: Unit, request: MotionRequest, found: TrainingMotion) -> Iterator[PreparedClip]:
    """Yield the usable clips of a unit, each id once; the others are counted under their reason."""
    corpus = reader.spec.corpus
    given = request.statistics
    statistics = None if given is None else Statistics(given.mean, given.std)
    for raw in reader.raw_clips(unit):
        if isinstance(raw, ClipProblem):
            _drop(raw, found)
            continue
        if found.share < 1 and hash64(f"train\0{raw.clip_id}") / 2**64 >= found.share:
            continue
        if request.motion_dim is None and not found.motions:
            glimpse = clip_to_measure(raw, corpus, None)
            dims = 0 if isinstance(glimpse, ClipProblem) else glimpse.motion.shape[1]
        else:
            dims = request.motion_dim or found.motions[0][1].shape[1]
        codec: CodecSpec = reader.spec.codec.model_copy(update={"motion_dim": dims})
        clip = prepare_clip(raw, corpus, codec)
        if isinstance(clip, PreparedClip) and (statistics is None or len(statistics.mean) == dims):
            clip = check_plausible(clip, corpus, statistics)
        if isinstance(clip, PreparedClip) and clip.clip_id in found.digests:
            if found.digests[clip.clip_id] == clip.motion_digest:
                continue
            clip = ClipProblem(clip.clip_id, clip.source, clip.where, DropReason.DUPLICATE_ID, "its first is kept")
        if isinstance(clip, ClipProblem):
            _drop(clip, found)
            continue
        found.digests[clip.clip_id] = clip.motion_digest
        yield clip


def _drop(problem: ClipProblem, found: TrainingMotion) -> None:
    found.drops[problem.reason.value] += 1
    found.examples.setdefault(problem.reason.value, problem)
