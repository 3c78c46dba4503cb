"""Feeds a GPU: frames go up, windows are cut and encoded there, packed bits come down, all at the same time.

Knows batches, streams and memory of the device, but neither weights nor kernels: a FusedNetwork computes.

A slot carries one batch at a time: pinned memory that the host fills, the same on the device, the recorded pass that
reads it, and pinned memory for the bits. While one slot computes, others go up and down, each way on a stream of its
own; all passes share the network's buffers, one after the other on one stream. Of frames only those travel that a
batch's windows read, each once: windows overlap, and are cut on the device.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitwise_vae.inference.fused_network import FusedNetwork
from bitwise_vae.inference.window_spans import cut_windows, frame_range, spans_of_windows

NUM_SLOTS, NUM_COPIERS = 4, 4
COPY_BYTES = 4 << 20
"""Frames that one thread copies at a time."""


class WindowStream:
    """Built by WindowEncoder for a GPU, lives as long; owns slots, streams and copying threads.

    Several threads may encode at a time: their batches take turns.
    """

    def __init__(self, network: FusedNetwork, device: torch.device) -> None:
        """Takes memory for the slots and records a pass for each.

        Raises:
            torch.OutOfMemoryError: the device cannot hold them.
        """
        self._network, self._device = network, device
        self._lock = threading.Lock()
        self._up, self._compute, self._down = (torch.cuda.Stream(device) for _ in range(3))  # type: ignore[no-untyped-call]
        self._copiers = ThreadPoolExecutor(NUM_COPIERS, thread_name_prefix="frames")
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._seconds: dict[str, float] = {}
        self._spans = spans_of_windows(network.num_windows, network.config.window_frames).to(device)
        with torch.inference_mode():
            for _ in range(NUM_SLOTS):
                self._free.put(_Slot(network, device, self._compute))

    @torch.inference_mode()
    def encode(self, motion: Tensor, spans: Tensor, on_windows: Callable[[int], None]) -> NDArray[np.uint8]:
        """Encodes windows.

        Args:
            motion: (frames, M) float32, on the host.
            spans: (N, 3) int64, on the host.
            on_windows: told the number of windows of each finished batch.

        Returns:
            (N, 2, L, C // 8) uint8.
        """
        config, batch = self._network.config, self._network.num_windows
        packed = np.empty((len(spans), 2, config.num_tokens, config.code_dim // 8), np.uint8)
        flying: deque[tuple[_Slot, int, int]] = deque()

        def land() -> None:
            slot, first, last = flying.popleft()
            try:
                self._book(slot.landed(packed[first:last]))
            finally:
                self._free.put(slot)
            on_windows(last - first)

        try:
            for first in range(0, len(spans), batch):
                last = min(first + batch, len(spans))
                slot = self._take(land if flying else None)
                begin = time.perf_counter()
                try:
                    slot.fill(motion, spans[first:last], self._copiers)
                    self._book({"stage": time.perf_counter() - begin})
                    with self._lock:
                        slot.launch(self._up, self._compute, self._down)
                except BaseException:
                    self._free.put(slot)
                    raise
                flying.append((slot, first, last))
            while flying:
                land()
        finally:
            for slot, _, _ in flying:  # after an error: nobody may fill a slot that is still read
                torch.cuda.synchronize(self._device)
                self._free.put(slot)
        return packed

    def take_seconds(self) -> dict[str, float]:
        """Returns the seconds of stage, upload, compute and download since the last call."""
        with self._lock:
            seconds, self._seconds = self._seconds, {}
        return seconds

    def latent(self, windows: Tensor) -> Tensor:
        """Encodes a batch, inside of `paused`: windows (b, 2T, M) on the device -> (b, 2T, C) float32."""
        return self._network.latent(windows.reshape(-1, windows.shape[2]).contiguous(), self._spans).clone()

    def packed_bits(self, latent: Tensor) -> Tensor:
        """Quantizes a batch, inside of `paused`: (b, 2T, C) float32 -> (b, 2, L, C // 8) uint8."""
        config = self._network.config
        shape = (len(latent), 2, config.num_tokens, config.code_dim // 8)
        packed = torch.empty(shape, dtype=torch.uint8, device=self._device)
        self._network.quantize(latent.clone(), packed)
        return packed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Lets other work on the current stream use the network's buffers alone."""
        with self._lock:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._compute)
            yield
            self._compute.wait_stream(current)

    def _book(self, seconds: Mapping[str, float]) -> None:
        with self._lock:
            for name, value in seconds.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + value

    def _take(self, land: Callable[[], None] | None) -> _Slot:
        """Returns a free slot; where there is none, lands a batch of one's own, or waits for others'."""
        while True:
            try:
                return self._free.get(block=land is None)
            except queue.Empty:
                if land is not None:
                    land()
                    return self._free.get()


class _Slot:
    """One batch on its way. Built by WindowStream, lives as long; owns its memory and its recorded pass."""

    def __init__(self, network: FusedNetwork, device: torch.device, compute: torch.cuda.Stream) -> None:
        config, batch = network.config, network.num_windows
        self._frames_of_window = config.window_frames
        shapes = {
            "frames": ((batch * 2 * config.window_frames, config.motion_dim), torch.float32),
            "spans": ((batch, 3), torch.int64),
            "packed": ((batch, 2, config.num_tokens, config.code_dim // 8), torch.uint8),
        }
        self._host = {name: torch.zeros(shape, dtype=kind, pin_memory=True) for name, (shape, kind) in shapes.items()}
        self._there = {name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in shapes.items()}
        self._num_frames = 0
        self._marks = {name: (_timing_event(), _timing_event()) for name in ("upload", "compute", "download")}

        def one_pass() -> None:
            latent = network.latent(self._there["frames"], self._there["spans"])
            network.quantize(latent, self._there["packed"])

        with torch.cuda.stream(compute):
            one_pass()  # compiles what is not compiled yet, which cannot be recorded
        compute.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=compute):
            one_pass()

    def fill(self, motion: Tensor, spans: Tensor, copiers: ThreadPoolExecutor) -> None:
        """Copies what the windows read to pinned memory; windows that are not there are empty spans."""
        first, last = frame_range(spans, self._frames_of_window)
        capacity = len(self._host["frames"])
        if last - first > capacity:  # far apart: more lies between the windows than in them
            windows = cut_windows(motion, spans, self._frames_of_window)
            self._num_frames = windows.shape[0] * windows.shape[1]
            self._host["frames"][: self._num_frames] = windows.flatten(0, 1)
            spans = spans_of_windows(len(spans), self._frames_of_window)
        else:
            self._num_frames = last - first
            source, target = motion[first:last].numpy(), self._host["frames"].numpy()
            rows = max(1, COPY_BYTES // max(1, source.strides[0]))

            def copy(begin: int) -> None:
                target[begin : begin + rows][: len(source) - begin] = source[begin : begin + rows]

            list(copiers.map(copy, range(0, len(source), rows)))
            spans = spans - torch.tensor([first, first, 0])
        self._host["spans"].zero_()
        self._host["spans"][: len(spans)] = spans

    def launch(self, up: torch.cuda.Stream, compute: torch.cuda.Stream, down: torch.cuda.Stream) -> None:
        """Sends the batch on its way; returns at once."""
        with self._marked("upload", up):
            frames = slice(0, self._num_frames)
            self._there["frames"][frames].copy_(self._host["frames"][frames], non_blocking=True)
            self._there["spans"].copy_(self._host["spans"], non_blocking=True)
        compute.wait_event(self._marks["upload"][1])
        with self._marked("compute", compute):
            self._graph.replay()
        down.wait_event(self._marks["compute"][1])
        with self._marked("download", down):
            self._host["packed"].copy_(self._there["packed"], non_blocking=True)

    def landed(self, packed: NDArray[np.uint8]) -> dict[str, float]:
        """Waits for the bits, copies them to `packed` (n, 2, L, C // 8), and returns the seconds of each stage."""
        self._marks["download"][1].synchronize()
        packed[:] = self._host["packed"][: len(packed)].numpy()
        return {name: begun.elapsed_time(ended) / 1000 for name, (begun, ended) in self._marks.items()}

    @contextmanager
    def _marked(self, name: str, stream: torch.cuda.Stream) -> Iterator[None]:
        begun, ended = self._marks[name]
        with torch.cuda.stream(stream):
            begun.record(stream)
            yield
            ended.record(stream)


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
