"""Motion files and a codec for benchmarks: as much as is asked for, the same on every machine.

Knows no suite. Beyond so many clips, which take a while to make, clips are those again, each with a gain of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt

from bitwise_vae.config import BitwiseVAEConfig
from jobs.demo.clip_files import parquet_of_clips, tar_of_clips
from jobs.demo.procedural_motion import motion_statistics, speech_motion
from pipeline.storage import Folder

MAX_CLIP_WINDOWS, MIN_CLIPS_PER_FILE, MAX_FILES = 30, 8, 256
NUM_DISTINCT, GAIN_SPREAD = 96, 0.1
DATA_SEED, CODEC_SEED, NUM_STATISTICS_CLIPS = 7, 11, 64
MANY_CLIPS = 1024
"""From here on, several processes make the files."""
MOTION_FORMATS = {"parquet": ".parquet", "webdataset": ".tar"}
"""What motion can be made as, and what such files end with."""


@dataclass(frozen=True)
class BenchData:
    """Motion files and a codec in one folder."""

    folder: Folder
    files: tuple[str, ...]
    windows_of_file: tuple[int, ...]

    @property
    def num_windows(self) -> int:
        """Windows of all files, at a stride of one window."""
        return sum(self.windows_of_file)

    @property
    def checkpoint(self) -> str:
        """Where the codec lies."""
        return self.folder.url_of("codec.safetensors")

    def first_files(self, num_windows: int) -> BenchData:
        """Return the first files, as many as hold so many windows, one at least."""
        held = np.cumsum(self.windows_of_file)
        count = max(1, int(np.searchsorted(held, num_windows, side="right")))
        return BenchData(self.folder, self.files[:count], self.windows_of_file[:count])


def clip_lengths(num_windows: int, window_frames: int) -> list[int]:
    """Return frames of clips of 1 to 30 windows that hold exactly so many at a stride of one window.

    A clip of n frames, at least one window, holds ceil(n / window_frames): frames left over give one more.
    """
    rng = np.random.Generator(np.random.PCG64(DATA_SEED))
    lengths = []
    while num_windows:
        count = min(int(rng.integers(1, MAX_CLIP_WINDOWS, endpoint=True)), num_windows)
        lengths.append(window_frames * count - (int(rng.integers(0, window_frames)) if count > 1 else 0))
        num_windows -= count
    return lengths


def make_data(folder: Folder, num_windows: int, config: BitwiseVAEConfig, motion_format: str = "parquet") -> BenchData:
    """Write motion files of so many windows, and a codec with random weights.

    Args:
        motion_format: one of `MOTION_FORMATS`; the clips are the same in each.
    """
    from bitwise_vae.checkpoints.checkpoint import checkpoint_bytes, random_checkpoint

    lengths = clip_lengths(num_windows, config.window_frames)
    per_file = max(MIN_CLIPS_PER_FILE, -(-len(lengths) // MAX_FILES))
    firsts = range(0, len(lengths), per_file)
    files = [f"motion/{index:04d}{MOTION_FORMATS[motion_format]}" for index in range(len(firsts))]
    write = partial(_write_file, folder, config.fps)
    parts = [lengths[first : first + per_file] for first in firsts]
    if len(lengths) < MANY_CLIPS:
        list(map(write, files, parts, firsts))
    else:
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            list(pool.map(write, files, parts, firsts))
    clips = [_clip(index, length, config.fps) for index, length in enumerate(lengths[:NUM_STATISTICS_CLIPS])]
    mean, std = motion_statistics(clips)
    folder.publish("codec.safetensors", checkpoint_bytes(random_checkpoint(config, mean, std, CODEC_SEED)))
    counts = [sum(-(-length // config.window_frames) for length in part) for part in parts]
    return BenchData(folder, tuple(files), tuple(counts))


def _write_file(folder: Folder, fps: float, path: str, lengths: Sequence[int], first: int) -> None:
    clips = {f"clip-{index:06d}": _clip(index, length, fps) for index, length in enumerate(lengths, first)}
    bytes_of = parquet_of_clips if path.endswith(MOTION_FORMATS["parquet"]) else tar_of_clips
    folder.publish(path, bytes_of(clips, fps))


def _clip(index: int, num_frames: int, fps: float) -> npt.NDArray[np.float32]:
    if index < NUM_DISTINCT:
        return speech_motion(num_frames, index, fps)
    base = _long_clip(index % NUM_DISTINCT, fps)
    gain = 1 + GAIN_SPREAD * np.random.Generator(np.random.PCG64([DATA_SEED, index])).uniform(-1, 1)
    return np.asarray(base[:num_frames] * np.float32(gain), np.float32)


@lru_cache(NUM_DISTINCT)
def _long_clip(index: int, fps: float) -> npt.NDArray[np.float32]:
    return speech_motion(MAX_CLIP_WINDOWS * 100, index, fps)
