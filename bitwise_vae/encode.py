"""The fast way from motion to packed bits: fixed shapes, no losses, no mask, results equal to `model.py`'s.

Knows tensors and devices, but no clip names, files or tables. Every batch has the same shape and runs the
same operations on one thread or stream, so that a window's bits depend on nothing but its own frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bitwise_vae.bits import pack_bits_torch
from bitwise_vae.latent_network import LatentNetwork
from bitwise_vae.model import BitwiseVAE

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CPU_BATCH_WINDOWS = 4
"""Windows that pass through the network together on a CPU: few, so that activations stay in its caches."""

Int64s = NDArray[np.int64]
WindowSource = Callable[[int, int], Tensor]
"""(first, last) -> windows first to last, (last - first, 2T, M) float32 on the device."""


class WindowEncoder:
    """Encodes windows of motion in batches of one shape.

    Built once by whoever holds a device; owns a copy of the encoder's weights in the wanted precision and, on
    a CPU, its worker threads; both go when it does. Call it from one thread at a time.
    """

    def __init__(
        self,
        model: BitwiseVAE,
        *,
        precision: str = "float32",
        batch_size: int,
        device: torch.device | str = "cpu",
        num_threads: int = 1,
        on_windows: Callable[[int], None] = lambda num_windows: None,
    ) -> None:
        """Copies the weights to the device.

        Args:
            model: on any device; left as it is.
            precision: float32, float16 or bfloat16 of weights and activations; the latent is quantized as
                float32.
            batch_size: windows in a batch; the last one is filled up with zeros. A CPU takes at most
                CPU_BATCH_WINDOWS of them at once, and its results are the same for every larger size.
            device: where windows are gathered and encoded.
            num_threads: batches that a CPU encodes at the same time, each on a thread of its own.
            on_windows: told the number of windows of each finished batch, on the caller's thread.

        Raises:
            ValueError: an unknown precision, or a count below 1.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        if min(batch_size, num_threads) < 1:
            raise ValueError(f"batch_size {batch_size} and num_threads {num_threads} must be at least 1")
        self.config = model.config
        self.precision = precision
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._network = LatentNetwork(model, PRECISIONS[precision], self.device)
        self._quantizer = model.quantizer
        self._on_windows = on_windows
        self._workers: ThreadPoolExecutor | None = None
        self._batch_windows = batch_size
        if self.device.type == "cpu":
            self._workers = _single_threaded_workers(num_threads)
            self._batch_windows = min(batch_size, CPU_BATCH_WINDOWS)

    def encode(self, motion: Tensor, clip_begin: Int64s, clip_end: Int64s, start_frame: Int64s) -> NDArray[np.uint8]:
        """Encodes windows of clips that lie one after another in `motion`.

        Args:
            motion: (frames, M) float32, in the units that the model was trained with.
            clip_begin: (N,) first row of each window's clip.
            clip_end: (N,) the row after its last.
            start_frame: (N,) first frame of `this`, counted from the clip's start; `prev` is the T frames
                before. Frames outside the clip are zeros.

        Returns:
            (N, 2, num_tokens, code_dim // 8): packed bits of prev and this.

        Raises:
            ValueError: a shape or type is wrong, or a clip lies outside `motion`.
            torch.OutOfMemoryError: the device cannot hold one batch; motion that does not fit beside it stays
                where it is, and its windows are cut there.
        """
        if motion.ndim != 2 or motion.shape[1] != self.config.motion_dim or motion.dtype != torch.float32:
            raise ValueError(
                f"wanted float32 motion (frames, {self.config.motion_dim}), found {motion.dtype} {tuple(motion.shape)}"
            )
        spans = _checked_spans(clip_begin, clip_end, start_frame, len(motion))
        try:
            return self._packed(len(spans), self._cut_from(motion.to(self.device), spans.to(self.device)))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return self._packed(len(spans), self._cut_from(motion, spans))

    def _cut_from(self, motion: Tensor, spans: Tensor) -> WindowSource:
        frames = self.config.window_frames
        return lambda first, last: _gather(motion, spans[first:last], frames).to(self.device)

    def encode_windows(self, windows: Tensor) -> NDArray[np.uint8]:
        """Encodes windows (n, 2T, M) float32 -> packed bits (n, 2, num_tokens, code_dim // 8).

        Raises:
            ValueError: a shape or type is wrong.
        """
        self._check_windows(windows)
        return self._packed(len(windows), lambda first, last: windows[first:last].to(self.device))

    def latents(self, windows: Tensor) -> Tensor:
        """Encodes windows (n, 2T, M) float32 -> the latent that is quantized, (n, 2T, C) float32 on the CPU.

        Raises:
            ValueError: a shape or type is wrong.
        """
        self._check_windows(windows)
        latents = torch.empty(len(windows), windows.shape[1], self.config.code_dim, device=self.device)
        self._for_each_batch(latents, lambda first, last: windows[first:last].to(self.device), lambda latent: latent)
        return latents.cpu()

    def null_bits(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Packed bits of prev and of this of a window of raw zeros, (num_tokens, code_dim // 8) each."""
        zeros = torch.zeros(1, 2 * self.config.window_frames, self.config.motion_dim)
        prev, this = self.encode_windows(zeros)[0]
        return prev, this

    def _packed(self, num_windows: int, windows_of: WindowSource) -> NDArray[np.uint8]:
        shape = (num_windows, 2, self.config.num_tokens, self.config.code_dim // 8)
        packed = torch.empty(shape, dtype=torch.uint8, device=self.device)
        self._for_each_batch(packed, windows_of, self._packed_bits)
        return packed.cpu().numpy()

    def _packed_bits(self, latent: Tensor) -> Tensor:
        """Latent (b, 2T, C) -> (b, 2, num_tokens, code_dim // 8): the halves are quantized separately."""
        halves = latent.reshape(-1, self.config.window_frames, self.config.code_dim)
        packed = pack_bits_torch(self._quantizer.bits_from_latent(halves))
        return packed.view(-1, 2, *packed.shape[1:])

    def _for_each_batch(self, results: Tensor, windows_of: WindowSource, finish: Callable[[Tensor], Tensor]) -> None:
        """Fills `results`, one row a window, with what `finish` makes of each batch's latent."""

        def fill(first: int) -> int:
            last = min(first + self._batch_windows, len(results))
            with torch.inference_mode():
                windows = windows_of(first, last)
                num_missing = self._batch_windows - (last - first)
                full = F.pad(windows, (0, 0, 0, 0, 0, num_missing)) if num_missing else windows
                results[first:last] = finish(self._network.latent(full))[: last - first]
            return last - first

        firsts = range(0, len(results), self._batch_windows)
        with _exact_float32(self.device):
            for num_windows in self._workers.map(fill, firsts) if self._workers else map(fill, firsts):
                self._on_windows(num_windows)

    def _check_windows(self, windows: Tensor) -> None:
        wanted = (2 * self.config.window_frames, self.config.motion_dim)
        if windows.ndim != 3 or windows.shape[1:] != wanted or windows.dtype != torch.float32:
            raise ValueError(
                f"wanted float32 windows (n, {wanted[0]}, {wanted[1]}), found {windows.dtype} {tuple(windows.shape)}"
            )


def _checked_spans(clip_begin: Int64s, clip_end: Int64s, start_frame: Int64s, num_frames: int) -> Tensor:
    """Stacks the columns as (N, 3) after a look at their shapes and ranges."""
    columns = [np.asarray(column, dtype=np.int64) for column in (clip_begin, clip_end, start_frame)]
    if any(column.ndim != 1 or len(column) != len(columns[0]) for column in columns):
        raise ValueError(f"wanted three columns of one length, found {[column.shape for column in columns]}")
    begin, end, _ = columns
    outside = np.flatnonzero((begin < 0) | (begin >= end) | (end > num_frames))
    if len(outside):
        first = outside[0]
        raise ValueError(
            f"window {first} lies in a clip of rows {begin[first]}:{end[first]}, but motion has {num_frames}"
        )
    return torch.from_numpy(np.stack(columns, axis=1))


def _gather(motion: Tensor, spans: Tensor, window_frames: int) -> Tensor:
    """Cuts windows: motion (frames, M), spans (n, 3) -> (n, 2T, M), zeros outside each window's clip."""
    begin, end, start = spans.unsqueeze(-1).unbind(dim=1)
    rows = begin + start + torch.arange(-window_frames, window_frames, device=motion.device)
    is_inside = (rows >= begin) & (rows < end)
    return torch.where(is_inside.unsqueeze(-1), motion[torch.where(is_inside, rows, 0)], 0.0)


def _single_threaded_workers(num_workers: int) -> ThreadPoolExecutor:
    """Starts threads that run every operation alone: sums split over threads would round otherwise.

    torch's setting belongs to a thread, but is also what later threads start with: that part is put back.
    """
    usual = torch.get_num_threads()
    started = Barrier(num_workers)

    def start(_: int) -> None:
        torch.get_num_threads()  # the first call in a thread takes over the usual number
        torch.set_num_threads(1)
        started.wait()

    workers = ThreadPoolExecutor(num_workers, thread_name_prefix="encode")
    list(workers.map(start, range(num_workers)))
    torch.set_num_threads(usual)
    return workers


@contextmanager
def _exact_float32(device: torch.device) -> Iterator[None]:
    """Keeps CUDA from rounding float32 products to TF32."""
    usual = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.set_float32_matmul_precision(usual)
