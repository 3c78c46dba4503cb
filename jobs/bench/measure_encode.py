"""The suite encode: windows in host memory to packed bits in host memory, in each precision, against the plain model.

Knows no Ray or files. Every result is held against float64 on motion drawn for this run, and before every run other
motion passes, so that nothing right lies where a kernel might leave its output unwritten.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitwise_vae.bits import pack_bits_torch
from bitwise_vae.checkpoints.checkpoint import random_checkpoint
from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.inference.encoder import WindowEncoder
from bitwise_vae.inference.window_spans import checked_spans, cut_windows
from bitwise_vae.model import BitwiseVAE
from jobs.bench.data import CODEC_SEED, MAX_CLIP_WINDOWS
from jobs.bench.result import BenchRequest, BenchResult, Report
from jobs.demo.procedural_motion import speech_motion
from jobs.session.ray_start import num_cores
from pipeline.errors import DataError
from pipeline.job.request import DEFAULT_BATCH_CPU, DEFAULT_BATCH_GPU
from pipeline.stages.codec import pick_device

SUITE = "encode"
BASELINE_NAME = "quant_to_vqidx in batches of 32, bits to host memory; float32"
DEPTHS = (6, 8)
PRECISIONS = ("float32", "float16", "bfloat16")
CPU_PRECISIONS = ("float32", "bfloat16")
BASELINE_BATCH = 32
MAX_BASELINE_WINDOWS, MAX_CHECKED_WINDOWS = 2048, 512
NUM_SPEAKERS = 8
STALE_BATCHES = 4
"""Batches of other motion before a run: as many as a GPU has under way."""
MAX_FLIPS = {"float32": 1e-5, "float16": 0.05, "bfloat16": 0.1}
"""Share of bits that may differ from float64's: more is a fault, not rounding."""


@dataclass(frozen=True)
class _Windows:
    """Windows of clips that lie one behind the other, as `WindowEncoder.encode` takes them."""

    motion: Tensor
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    start: NDArray[np.int64]

    def first(self, count: int) -> _Windows:
        return _Windows(self.motion, self.begin[:count], self.end[:count], self.start[:count])

    def turned(self) -> _Windows:
        """Return as many windows of other motion."""
        return dataclasses.replace(self, motion=-self.motion[: int(self.end[-1])])

    def __len__(self) -> int:
        return len(self.start)


def measure_encode(request: BenchRequest, report: Report) -> list[BenchResult]:
    """Encode in every precision and with the module's own forward, in turn, at two depths.

    Raises:
        DataError: bits differ from float64's by more than rounding explains, or from one run to the next.
    """
    device = pick_device()
    precisions = PRECISIONS if device.type == "cuda" else CPU_PRECISIONS
    depths = DEPTHS if request.codec.depth in DEPTHS else (request.codec.depth,)
    results: list[BenchResult] = []
    for index, depth in enumerate(depths):
        config = dataclasses.replace(request.codec, depth=depth)
        windows = _windows(request.windows, config, seed=time.time_ns())
        report(f"depth {depth}: float64", index, len(depths))
        model = _model(windows, config)
        results.extend(_measured(model, windows, request, precisions, device))
    report("done", len(depths), len(depths))
    return results


def _measured(
    model: BitwiseVAE, windows: _Windows, request: BenchRequest, precisions: tuple[str, ...], device: torch.device
) -> list[BenchResult]:
    some, few = windows.first(MAX_CHECKED_WINDOWS), windows.first(MAX_BASELINE_WINDOWS)
    wanted = _plain_bits(model, some, device, torch.float64)
    plain = model.to(device).eval()
    batch = DEFAULT_BATCH_CPU if device.type == "cpu" else DEFAULT_BATCH_GPU
    other = windows.first(STALE_BATCHES * batch).turned()
    encoders = {
        name: WindowEncoder(model, precision=name, batch_size=batch, device=device, num_threads=num_cores())
        for name in precisions
    }
    speeds: dict[str, list[float]] = {name: [] for name in (*precisions, "plain")}
    flips: dict[str, float] = {}
    first_bits: dict[str, NDArray[np.uint8]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for repeat in range(-1, request.repeats):
        plain_bits, plain_s = _timed(lambda: _plain_bits(plain, few, device, torch.float32))
        if repeat >= 0:
            speeds["plain"].append(len(few) / plain_s)
        flips["plain"] = _share(plain_bits[: len(some)], wanted)
        for name, encoder in encoders.items():
            _encoded(encoder, other)
            encoder.take_seconds()
            bits, spent = _timed(lambda encoder=encoder: _encoded(encoder, windows))  # type: ignore[misc]
            flips[name] = _share(bits[: len(some)], wanted)
            if flips[name] > MAX_FLIPS[name]:
                raise DataError(f"{flips[name]:.2g} of the bits differ from float64's in {name}: that is no rounding")
            if not np.array_equal(bits, first_bits.setdefault(name, bits)):
                raise DataError(f"the bits in {name} are not those of the run before: speeds of such say nothing")
            if repeat >= 0:
                speeds[name].append(len(windows) / spent)
                seconds[name] = {stage: round(value, 4) for stage, value in encoder.take_seconds().items()}
    config = model.config
    return [
        BenchResult(
            SUITE,
            f"encode {name}, depth {config.depth}",
            "windows/s",
            tuple(speeds[name]),
            BASELINE_NAME,
            tuple(speeds["plain"]),
            {
                "windows": len(windows),
                "device": str(device),
                "codec": {"hidden_dim": config.hidden_dim, "depth": config.depth, "num_heads": config.num_heads},
                "share_of_bits_unlike_float64": flips[name],
                "share_of_bits_unlike_float64_baseline": flips["plain"],
                "seconds": seconds[name],
            },
        )
        for name in precisions
    ]


def _windows(num_windows: int, config: BitwiseVAEConfig, seed: int) -> _Windows:
    """Draw motion that no run had before, and as many windows of it: clips of 30 windows, a stride of one window."""
    frames = MAX_CLIP_WINDOWS * config.window_frames
    rng = np.random.Generator(np.random.PCG64(seed))
    speakers = [speech_motion(frames, int(rng.integers(1 << 31)), config.fps) for _ in range(NUM_SPEAKERS)]
    num_clips = -(-num_windows // MAX_CLIP_WINDOWS)
    gains = rng.uniform(0.7, 1.3, num_clips)
    motion = np.empty((num_clips * frames, config.motion_dim), np.float32)
    for index, gain in enumerate(gains):
        motion[index * frames : (index + 1) * frames] = speakers[index % NUM_SPEAKERS] * np.float32(gain)
    clip = np.repeat(np.arange(num_clips), MAX_CLIP_WINDOWS)[:num_windows]
    start = np.tile(np.arange(MAX_CLIP_WINDOWS) * config.window_frames, num_clips)[:num_windows]
    return _Windows(torch.from_numpy(motion), clip * frames, (clip + 1) * frames, start)


def _model(windows: _Windows, config: BitwiseVAEConfig) -> BitwiseVAE:
    std, mean = torch.std_mean(windows.motion[: 10 * MAX_CLIP_WINDOWS * config.window_frames], dim=0)
    return random_checkpoint(config, mean.numpy(), np.maximum(std.numpy(), 1e-3), CODEC_SEED)


def _plain_bits(model: BitwiseVAE, windows: _Windows, device: torch.device, dtype: torch.dtype) -> NDArray[np.uint8]:
    """Encode as the module itself does, window by window cut on the host: (n, 2, L, C // 8)."""
    if dtype == torch.float64:
        copy = BitwiseVAE(model.config).double()
        copy.load_state_dict(model.state_dict())
        model = copy.to(device).eval()
    frames = model.config.window_frames
    spans = checked_spans(windows.begin, windows.end, windows.start, len(windows.motion))
    parts = []
    with torch.inference_mode():
        for first in range(0, len(windows), BASELINE_BATCH):
            both = cut_windows(windows.motion, spans[first : first + BASELINE_BATCH], frames).to(device, dtype)
            prev, this = model.quant_to_vqidx(both[:, :frames], both[:, frames:])
            if this is None:
                raise DataError("the model gave no bits of `this`")
            parts.append(torch.stack([prev, this], dim=1).cpu())
    return pack_bits_torch(torch.cat(parts)).numpy()


def _encoded(encoder: WindowEncoder, windows: _Windows) -> NDArray[np.uint8]:
    return encoder.encode(windows.motion, windows.begin, windows.end, windows.start)


def _timed(work: Callable[[], NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def _share(bits: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    return float(np.unpackbits(bits ^ wanted).mean())
