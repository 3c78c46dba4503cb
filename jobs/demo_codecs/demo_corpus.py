"""What a demonstration codec learns from: motion spaces, procedural speakers made in parallel, recorded takes.

Knows numpy and files, no model and no GPU. Only some spaces learn from recorded takes; of the others they are measured.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from bitwise_vae.config import ARKIT_GROUPS, FLAME_GROUPS, BitwiseVAEConfig
from bitwise_vae.training.clips import MotionClips
from jobs.demo.procedural_motion import speech_motion
from jobs.demo.speaker_timeline import FPS
from jobs.demo_codecs.procedural_arkit import ARKIT_CHANNELS, arkit_motion
from pipeline.errors import InputFormatError
from pipeline.storage import open_inputs

Motion = npt.NDArray[np.float32]

CLIP_FRAMES, HELD_OUT_FRAMES, NUM_HELD_OUT = 1500, 500, 100
FIRST_SEEDS = {"training": 1_000_000, "validation": 2_000_000, "test": 3_000_000}
"""Speakers: none of them talks in `motion-tokens demo`, whose seeds are small."""

REAL_SHARE, REAL_TRAINING_SHARE, REAL_GAP_FRAMES = 0.05, 0.8, 25
REAL_SPEEDS, REAL_SIZES = (0.8, 1.25), (0.8, 1.2)
"""Where takes are trained on: their first parts are repeated, at other speeds and sizes, up to their share."""

MOTION_FIELDS = ("motion", "values")
"""Array of a take's npz that holds its motion: the first of these that is there."""


@dataclass(frozen=True)
class Space:
    """A kind of motion with a demonstration codec.

    Attributes:
        codec_name: of the file.
        generator: (num_frames, seed) -> (num_frames, M) at 25 frames a second.
        small: sizes of the demonstration codec.
        full: sizes of `--full-size`.
        learns_from_takes: whether the licence of the takes at hand lets a codec learn from them.
    """

    codec_name: str
    generator: Callable[[int, int], Motion]
    small: BitwiseVAEConfig
    full: BitwiseVAEConfig
    learns_from_takes: bool


FLAME = BitwiseVAEConfig(fps=FPS, motion_groups=FLAME_GROUPS)
ARKIT = BitwiseVAEConfig(motion_dim=len(ARKIT_CHANNELS), fps=FPS, motion_groups=ARKIT_GROUPS)

SPACES = {
    "flame": Space(
        codec_name="demo_flame106.safetensors",
        generator=speech_motion,
        small=replace(FLAME, hidden_dim=144, depth=4, num_heads=6),
        full=replace(FLAME, hidden_dim=512, depth=6, num_heads=8),
        learns_from_takes=True,
    ),
    "arkit": Space(
        codec_name="demo_arkit61.safetensors",
        generator=arkit_motion,
        small=replace(ARKIT, hidden_dim=144, depth=4, num_heads=6),
        full=replace(ARKIT, hidden_dim=512, depth=6, num_heads=8),
        learns_from_takes=False,
    ),
}


@dataclass(frozen=True)
class Take:
    """A recorded clip at 25 frames a second: its file's name without suffix, and (frames, M)."""

    name: str
    motion: Motion


@dataclass(frozen=True)
class Corpus:
    """What is trained on, what chooses the best, and what only the figures see."""

    training: MotionClips
    validation: MotionClips
    test: dict[str, MotionClips]


def make_corpus(
    space: Space, hours: float, num_workers: int, takes: Sequence[Take] = (), num_held_out: int = NUM_HELD_OUT
) -> Corpus:
    """Generates clips of many speakers, in parallel, and adds recorded takes.

    A space that learns from takes trains on the first 80 % of each and is tested on the end, "real". Otherwise
    "real" is all takes, whole, and where there are several, each is tested apart as well.

    Args:
        space: what to generate.
        hours: of procedural motion to train on.
        num_workers: processes.
        takes: with names that differ.
        num_held_out: procedural clips that choose the best, and as many that only the figures see.
    """
    num_clips = max(2, round(hours * 3600 * FPS / CLIP_FRAMES))
    with ProcessPoolExecutor(num_workers) as pool:
        training = _speakers(pool, space, "training", (num_clips, CLIP_FRAMES))
        validation = _speakers(pool, space, "validation", (num_held_out, HELD_OUT_FRAMES))
        test = {"procedural": MotionClips.of(_speakers(pool, space, "test", (num_held_out, HELD_OUT_FRAMES)))}
    if takes and space.learns_from_takes:
        splits = [int(len(take.motion) * REAL_TRAINING_SHARE) for take in takes]
        copies = max(1, round(REAL_SHARE * num_clips * CLIP_FRAMES / sum(splits)))
        for take, split in zip(takes, splits, strict=True):
            training += _variations(Take(take.name, take.motion[:split]), copies)
        ends = [
            (f"{take.name}-end", take.motion[split + REAL_GAP_FRAMES :])
            for take, split in zip(takes, splits, strict=True)
        ]
        test["real"] = MotionClips.of(ends)
    elif takes:
        test["real"] = MotionClips.of([(take.name, take.motion) for take in takes])
        if len(takes) > 1:
            test.update({f"real: {take.name}": MotionClips.of([(take.name, take.motion)]) for take in takes})
    return Corpus(MotionClips.of(training), MotionClips.of(validation), test)


def read_takes(paths: Sequence[Path], space: Space) -> list[Take]:
    """Reads recorded takes: npz files with `motion` or `values` (frames, M) and `fps`, or folders of such.

    Raises:
        InputNotFoundError: nothing there.
        InputFormatError: a file holds no motion of this space.
    """
    if not paths:
        return []
    found = [
        (root.folder, file) for root in open_inputs([str(path) for path in paths], [".npz"]) for file in root.files
    ]
    return [_take(folder.read(file.path), file.path, space.small.motion_dim) for folder, file in found]


def at_fps(motion: Motion, fps_in: float, fps_out: float) -> Motion:
    """Resamples (frames, M) linearly in time, as the pipeline does."""
    num_frames = int((len(motion) - 1) * fps_out / fps_in) + 1
    times = np.arange(num_frames) * fps_in / fps_out
    columns = [np.interp(times, np.arange(len(motion)), column) for column in motion.T.astype(np.float64)]
    return np.stack(columns, axis=1).astype(np.float32)


def _take(data: bytes, path: str, num_columns: int) -> Take:
    with np.load(io.BytesIO(data), allow_pickle=False) as content:
        field = next((name for name in MOTION_FIELDS if name in content), None)
        if field is None or "fps" not in content:
            raise InputFormatError(f"{path}: wanted {' or '.join(MOTION_FIELDS)}, and fps; found {', '.join(content)}")
        motion, fps = content[field].astype(np.float32), float(content["fps"])
    if motion.ndim != 2 or motion.shape[1] != num_columns:
        raise InputFormatError(f"{path}: wanted (frames, {num_columns}) in {field}, found {motion.shape}: see --space")
    return Take(PurePosixPath(path).stem, at_fps(motion, fps, FPS))


def _speakers(pool: ProcessPoolExecutor, space: Space, part: str, size: tuple[int, int]) -> list[tuple[str, Motion]]:
    num_clips, num_frames = size
    seeds = range(FIRST_SEEDS[part], FIRST_SEEDS[part] + num_clips)
    motions = pool.map(partial(space.generator, num_frames), seeds, chunksize=16)
    return [(f"{part}-{seed}", motion) for seed, motion in zip(seeds, motions, strict=True)]


def _variations(take: Take, num_copies: int) -> list[tuple[str, Motion]]:
    """The take as it is, then at other speeds and sizes about its mean."""
    rng = np.random.Generator(np.random.PCG64(num_copies))
    mean = take.motion.mean(axis=0)
    clips = [(f"{take.name}-0", take.motion)]
    for index in range(1, num_copies):
        speed, size = rng.uniform(*REAL_SPEEDS), rng.uniform(*REAL_SIZES)
        varied = mean + size * (at_fps(take.motion, FPS * speed, FPS) - mean)
        clips.append((f"{take.name}-{index}", varied.astype(np.float32)))
    return clips
