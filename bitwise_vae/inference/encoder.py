"""The fast way from motion to packed bits: fixed shapes, no losses, no mask, results equal to `model.py`'s.

Knows tensors and devices, but no clip names, files or tables. Every batch has the same shape and runs the
same operations on one thread or stream, so that a window's bits depend on nothing but its own frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Barrier
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bitwise_vae.bits import pack_bits_torch, unpack_bits_torch
from bitwise_vae.inference.fusible import fused_kernels, is_fusible
from bitwise_vae.inference.latent_network import LatentNetwork, PrevNetwork
from bitwise_vae.inference.window_spans import Int64s, checked_spans, cut_windows, is_real_prev, spans_of_windows
from bitwise_vae.model import BitwiseVAE

if TYPE_CHECKING:
    from bitwise_vae.inference.gpu_stream import WindowStream

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CPU_BATCH_WINDOWS = 4
"""Windows that pass through the network together on a CPU: few, so that activations stay in its caches."""
GPU_BATCH_WINDOWS = 512
"""The same on a GPU: enough to fill it. Twice as many are 2 % faster, but leave more of a last batch empty."""

Item = TypeVar("Item")
Result = TypeVar("Result")
WindowSource = Callable[[int, int], Tensor]
"""(first, last) -> windows first to last, (last - first, 2T, M) float32 on the device."""


@dataclass(frozen=True)
class EncodedWindows:
    """What `encode_more` gives; what was not asked for is None."""

    bits: NDArray[np.uint8]
    """(N, 2, num_tokens, code_dim // 8): packed bits of prev and this, those of `encode`."""
    this_latent: NDArray[np.float16] | None
    """(N, T, C): the latent that `this` was quantized from, rounded to float16."""
    decoded_prev_bits: NDArray[np.uint8] | None
    """(N, num_tokens, code_dim // 8): packed bits of `this` behind a decoded `prev`."""


class WindowEncoder:
    """Encodes windows of motion in batches of one shape.

    Built once by whoever holds a device; owns a copy of the encoder's weights in the wanted precision and, on
    a CPU, its worker threads; both go when it does. Call it from one thread at a time; where `is_shared`, several
    threads may call `encode`, so that one's frames go up while another's bits come down.
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
                CPU_BATCH_WINDOWS of them at once and the kernels GPU_BATCH_WINDOWS, and their results are the same for
                every larger size.
            device: where windows are gathered and encoded.
            num_threads: batches that a CPU encodes at the same time, each on a thread of its own.
            on_windows: told the number of windows of each finished batch, on the caller's thread.

        Raises:
            ValueError: an unknown precision, or a count below 1.
            torch.OutOfMemoryError: the device cannot hold one batch.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        if min(batch_size, num_threads) < 1:
            raise ValueError(f"batch_size {batch_size} and num_threads {num_threads} must be at least 1")
        self.config = model.config
        self.precision = precision
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._stream: WindowStream | None = None
        self._quantizer = model.quantizer
        self._on_windows = on_windows
        self._workers: ThreadPoolExecutor | None = None
        self._batch_windows = batch_size
        self._seconds = 0.0
        if is_fusible(model.config) and fused_kernels(self.device):
            from bitwise_vae.inference.fused_network import FusedNetwork
            from bitwise_vae.inference.gpu_stream import WindowStream

            self._batch_windows = min(batch_size, GPU_BATCH_WINDOWS)
            with _exact_float32(self.device), torch.inference_mode():
                network = FusedNetwork(model, PRECISIONS[precision], self.device, self._batch_windows)
                network.check(model)
                self._stream = WindowStream(network, self.device)
            return
        self._network = LatentNetwork(model, PRECISIONS[precision], self.device)
        if self.device.type == "cpu":
            self._workers = _single_threaded_workers(num_threads)
            self._batch_windows = min(batch_size, CPU_BATCH_WINDOWS)

    @property
    def is_shared(self) -> bool:
        """Whether several threads may call `encode` at a time."""
        return self._stream is not None

    def take_seconds(self) -> dict[str, float]:
        """Returns where the time went since the last call: seconds by stage.

        On a GPU with kernels stage (frames copied to pinned memory), upload, compute and download, the last three as
        the device measured them; elsewhere compute alone.
        """
        if self._stream is not None:
            return self._stream.take_seconds()
        seconds, self._seconds = self._seconds, 0.0
        return {"compute": seconds}

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
        self._check_motion(motion)
        spans = checked_spans(clip_begin, clip_end, start_frame, len(motion))
        if self._stream is not None:
            return self._stream.encode(motion, spans, self._on_windows)
        try:
            return self._packed(len(spans), self._cut_from(motion.to(self.device), spans.to(self.device)))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return self._packed(len(spans), self._cut_from(motion, spans))

    def decoder_of(self, model: BitwiseVAE) -> PrevNetwork:
        """Copies a model's decoder to this encoder's device and precision, for `encode_more`."""
        return PrevNetwork(model, PRECISIONS[self.precision], self.device)

    def encode_more(
        self,
        motion: Tensor,
        clip_begin: Int64s,
        clip_end: Int64s,
        start_frame: Int64s,
        *,
        latent: bool,
        decoder: PrevNetwork | None,
    ) -> EncodedWindows:
        """Encodes windows as `encode` does, and keeps more of each: its latent, and its bits behind a decoded `prev`.

        The latter is what generation meets: there `prev` is motion that was decoded from bits. The bits of `prev` are
        decoded, frames of `prev` outside the clip become the zeros again that they were, and the window is encoded
        once more. So where `prev` has no real frame, the bits are those of `encode`.

        Args:
            motion: as for `encode`, as are clip_begin, clip_end and start_frame.
            latent: whether the latent is wanted.
            decoder: from `decoder_of`; None: no bits behind a decoded `prev`.

        Raises:
            ValueError, torch.OutOfMemoryError: as for `encode`.
        """
        self._check_motion(motion)
        spans = checked_spans(clip_begin, clip_end, start_frame, len(motion))
        try:
            return self._encoded(motion.to(self.device), spans.to(self.device), latent, decoder)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return self._encoded(motion, spans, latent, decoder)

    def _encoded(
        self, motion: Tensor, spans: Tensor, wants_latent: bool, decoder: PrevNetwork | None
    ) -> EncodedWindows:
        config, split = self.config, self.config.window_frames
        half = (config.num_tokens, config.code_dim // 8)
        bits = torch.empty(len(spans), 2, *half, dtype=torch.uint8, device=self.device)
        decoded_bits = torch.empty(len(spans), *half, dtype=torch.uint8, device=self.device)
        latents = torch.empty(len(spans), split, config.code_dim, dtype=torch.float16, device=self.device)
        cut = self._cut_from(motion, spans)

        def encode_batch(first: int, last: int) -> None:
            windows = self._filled(cut(first, last))
            latent = self._latent(windows)
            packed = self._packed_bits(latent)
            bits[first:last] = packed[: last - first]
            if wants_latent:
                latents[first:last] = _rounded(latent[: last - first, split:])
            if decoder is not None:
                is_real = self._filled(is_real_prev(spans[first:last].to(self.device), split))
                behind = self._behind_decoded(decoder, windows, packed[:, 0], is_real)
                decoded_bits[first:last] = behind[: last - first]

        self._for_each_batch(len(spans), encode_batch)
        return EncodedWindows(
            bits.cpu().numpy(),
            latents.cpu().numpy() if wants_latent else None,
            decoded_bits.cpu().numpy() if decoder is not None else None,
        )

    def _cut_from(self, motion: Tensor, spans: Tensor) -> WindowSource:
        frames = self.config.window_frames
        return lambda first, last: cut_windows(motion, spans[first:last], frames).to(self.device)

    def encode_windows(self, windows: Tensor) -> NDArray[np.uint8]:
        """Encodes windows (n, 2T, M) float32 -> packed bits (n, 2, num_tokens, code_dim // 8).

        Raises:
            ValueError: a shape or type is wrong.
        """
        self._check_windows(windows)
        if self._stream is not None:
            frames = windows.reshape(-1, windows.shape[2])
            return self._stream.encode(
                frames, spans_of_windows(len(windows), self.config.window_frames), self._on_windows
            )
        return self._packed(len(windows), lambda first, last: windows[first:last].to(self.device))

    def latents(self, windows: Tensor) -> Tensor:
        """Encodes windows (n, 2T, M) float32 -> the latent that is quantized, (n, 2T, C) float32 on the CPU.

        Raises:
            ValueError: a shape or type is wrong.
        """
        self._check_windows(windows)
        latents = torch.empty(len(windows), windows.shape[1], self.config.code_dim, device=self.device)

        def encode_batch(first: int, last: int) -> None:
            full = self._filled(windows[first:last].to(self.device))
            latents[first:last] = self._latent(full)[: last - first]

        self._for_each_batch(len(windows), encode_batch)
        return latents.cpu()

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Calls other work on tensors as batches are encoded: on a CPU by the worker threads, each operation alone.

        Yields what it returned, in order.
        """
        return self._workers.map(work, items) if self._workers else map(work, items)

    def null_bits(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Packed bits of prev and of this of a window of raw zeros, (num_tokens, code_dim // 8) each."""
        zeros = torch.zeros(1, 2 * self.config.window_frames, self.config.motion_dim)
        prev, this = self.encode_windows(zeros)[0]
        return prev, this

    def _packed(self, num_windows: int, windows_of: WindowSource) -> NDArray[np.uint8]:
        shape = (num_windows, 2, self.config.num_tokens, self.config.code_dim // 8)
        packed = torch.empty(shape, dtype=torch.uint8, device=self.device)

        def encode_batch(first: int, last: int) -> None:
            latent = self._latent(self._filled(windows_of(first, last)))
            packed[first:last] = self._packed_bits(latent)[: last - first]

        self._for_each_batch(num_windows, encode_batch)
        return packed.cpu().numpy()

    def _latent(self, windows: Tensor) -> Tensor:
        """Windows (b, 2T, M) float32 of a whole batch -> (b, 2T, C) float32."""
        return self._stream.latent(windows) if self._stream is not None else self._network.latent(windows)

    def _packed_bits(self, latent: Tensor) -> Tensor:
        """Latent (b, 2T, C) -> (b, 2, num_tokens, code_dim // 8): the halves are quantized separately."""
        if self._stream is not None:
            return self._stream.packed_bits(latent)
        halves = latent.reshape(-1, self.config.window_frames, self.config.code_dim)
        packed = pack_bits_torch(self._quantizer.bits_from_latent(halves))
        return packed.view(-1, 2, *packed.shape[1:])

    def _behind_decoded(self, decoder: PrevNetwork, windows: Tensor, prev_bits: Tensor, is_real: Tensor) -> Tensor:
        """Packed bits of `this`, (b, num_tokens, code_dim // 8), once `prev` is decoded from its bits.

        Args:
            windows: (b, 2T, M) as recorded.
            prev_bits: (b, num_tokens, code_dim // 8), packed.
            is_real: (b, T, 1): False for frames of `prev` outside the clip.
        """
        decoded = decoder.motion(self._quantizer.quantized_from_bits(unpack_bits_torch(prev_bits)))
        prev = torch.where(is_real, decoded, 0.0)
        again = torch.cat([prev, windows[:, self.config.window_frames :]], dim=1)
        return self._packed_bits(self._latent(again))[:, 1]

    def _filled(self, rows: Tensor) -> Tensor:
        """Rows of a batch, zeros behind them up to the one number that every batch has."""
        num_missing = self._batch_windows - len(rows)
        return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, num_missing)) if num_missing else rows

    def _for_each_batch(self, num_windows: int, encode_batch: Callable[[int, int], None]) -> None:
        """Calls `encode_batch` with first and past-the-last window of each batch, on this thread or on the workers."""

        def fill(first: int) -> int:
            last = min(first + self._batch_windows, num_windows)
            with torch.inference_mode():
                encode_batch(first, last)
            return last - first

        firsts = range(0, num_windows, self._batch_windows)
        begin = time.perf_counter()
        with _exact_float32(self.device), self._stream.paused() if self._stream is not None else nullcontext():
            for count in self.each(fill, firsts):
                self._on_windows(count)
        self._seconds += time.perf_counter() - begin

    def _check_motion(self, motion: Tensor) -> None:
        if motion.ndim != 2 or motion.shape[1] != self.config.motion_dim or motion.dtype != torch.float32:
            raise ValueError(
                f"wanted float32 motion (frames, {self.config.motion_dim}), found {motion.dtype} {tuple(motion.shape)}"
            )

    def _check_windows(self, windows: Tensor) -> None:
        wanted = (2 * self.config.window_frames, self.config.motion_dim)
        if windows.ndim != 3 or windows.shape[1:] != wanted or windows.dtype != torch.float32:
            raise ValueError(
                f"wanted float32 windows (n, {wanted[0]}, {wanted[1]}), found {windows.dtype} {tuple(windows.shape)}"
            )


def _rounded(latent: Tensor) -> Tensor:
    """float32 -> the nearest float16; what is too large for one becomes the largest there is."""
    largest = torch.finfo(torch.float16).max
    return latent.clamp(-largest, largest).half()


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
