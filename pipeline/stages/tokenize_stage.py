"""The tokenizer: motion of a run of units in, packed bits out. Hosted by Ray on a GPU, or called in a loop.

Names no Ray: ray_hosts.py hosts it. It reads no files; what it needs comes with the block and the constructor.
"""

from __future__ import annotations

import io
import threading
import time
import warnings
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch

from bitwise_vae.checkpoints.checkpoint import read_checkpoint
from bitwise_vae.inference.encoder import WindowEncoder
from bitwise_vae.inference.fusible import KernelError
from pipeline.contract.specs import Contract
from pipeline.dataset.paths import CONSTANTS_PATH
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import IncompleteError, OutputMismatchError
from pipeline.run.time_account import WorkClock
from pipeline.stages.blocks import MotionBlock, TokenBlock
from pipeline.stages.codec import numerics_here, pick_device
from pipeline.stages.emit import WindowEmitter, WindowSpans

TELL_INTERVAL_S = 0.5


@dataclass(frozen=True)
class TokenizerSettings:
    """What a tokenizer is built from, beside the weights."""

    contract: Contract
    store: TokenStore
    num_threads: int
    mixed_numerics: bool


class TokenizeListener(Protocol):
    """Hears how far a tokenizer is; calls must be cheap."""

    def begun(self, num_windows: int, num_bytes: int) -> None:
        """A block of so many windows, read from so many bytes of input, is taken up."""

    def encoded(self, num_windows: int) -> None:
        """So many more windows are encoded; told about twice a second."""


class TokenizerActor:
    """A codec on a device: built once a worker, owns the weights on it, dies with the worker.

    Where `is_shared`, several threads may call `tokenize`.
    It computes only on numerics that the contract names, and leaves the null codes in the store
    before the first fragment can exist.
    """

    def __init__(self, codec: bytes, settings: TokenizerSettings, listener: TokenizeListener) -> None:
        """Load weights, encode the warm-up batch of zeros, and publish the null codes it gives.

        Args:
            codec: safetensors bytes of the checkpoint.
            settings: contract, store and threads.
            listener: told how far the work is.

        Raises:
            OutputMismatchError: this machine computes with other numerics than the store's.
            IncompleteError: the GPU has no memory for a batch.
        """
        device = pick_device()
        contract = settings.contract
        here = numerics_here(device)
        if here != contract.numerics and not settings.mixed_numerics:
            raise OutputMismatchError(
                f"this worker computes with {here.model_dump()}, the store with {contract.numerics.model_dump()}:"
                " use equal machines, or allow it with --set run.numerics=mixed"
            )
        model = read_checkpoint(codec, "codec.safetensors")
        self._batch_size = contract.corpus.batch_size
        self._half_bytes = contract.codec.half_bytes
        self._listener = listener
        self._lock = threading.Lock()
        self._untold, self._told_at = -1, time.monotonic()  # the window of zeros does not count
        try:
            self._encoder = WindowEncoder(
                model,
                precision=contract.corpus.precision,
                batch_size=self._batch_size,
                device=device,
                num_threads=settings.num_threads,
                on_windows=self._count,
            )
            self._emitter = WindowEmitter(model, self._encoder, contract.corpus)
            null_prev, null_this = self._encoder.null_bits()
        except torch.OutOfMemoryError as error:
            raise self._memory_error() from error
        except KernelError as error:
            raise OutputMismatchError(str(error)) from error
        self._encoder.take_seconds()
        if not settings.store.folder.exists(CONSTANTS_PATH):
            patch_nums = np.array(contract.codec.patch_nums, np.int32)
            settings.store.folder.publish(CONSTANTS_PATH, constants_to_npz(null_prev, null_this, patch_nums))
        self._clock = WorkClock()

    @property
    def is_shared(self) -> bool:
        """Whether several threads may call `tokenize`: then one's motion goes up while another's is computed."""
        return self._encoder.is_shared

    def tokenize(self, block: MotionBlock) -> TokenBlock:
        """Return the bits of every window of a block, packed into full batches across its clips and units, and
        what the corpus emits beside them.

        Raises:
            IncompleteError: the GPU has no memory for a batch; the batch shape is part of the bits and stays.
        """
        with self._clock.working() as seconds:
            tokens = self._tokenize(block)
        return replace(tokens, seconds={**block.seconds, **seconds, **self._encoder.take_seconds()})

    def _tokenize(self, block: MotionBlock) -> TokenBlock:
        self._listener.begun(len(block.start_frame), sum(unit.num_bytes for unit in block.units))
        try:
            bits, emitted = self._emitter.encode(_tensor_of(block.motion), spans_of(block))
        except torch.OutOfMemoryError as error:
            raise self._memory_error() from error
        self._count(0, flush=True)
        return TokenBlock(
            units=block.units,
            bits=bits.reshape(-1, 2, self._half_bytes),
            ledger=block.ledger,
            start_frame=block.start_frame,
            clip_columns=block.clip_columns,
            emitted=emitted,
        )

    def _memory_error(self) -> IncompleteError:
        free, total = (size >> 20 for size in torch.cuda.mem_get_info()) if torch.cuda.is_available() else (0, 0)
        return IncompleteError(
            f"the GPU has no memory for a batch of {self._batch_size} windows ({free} of {total} MiB are free):"
            " end what else uses it and run the same command again, or make another dataset with --batch-size"
        )

    def _count(self, num_windows: int, flush: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            self._untold += num_windows
            if self._untold <= 0 or not (flush or now - self._told_at > TELL_INTERVAL_S):
                return
            untold, self._untold, self._told_at = self._untold, 0, now
        self._listener.encoded(untold)


def spans_of(block: MotionBlock) -> WindowSpans:
    """Return where the windows of a block, and the clips around them, begin and end in its motion."""
    num_windows = block.ledger["num_windows"].to_numpy()
    kept = num_windows > 0
    num_frames = block.ledger["num_frames"].to_numpy()[kept].astype(np.int64)
    clip_end = np.cumsum(num_frames)
    clip_of_window = np.repeat(np.arange(len(num_frames)), num_windows[kept])
    clip_ids = block.ledger["clip_id"].filter(pa.array(kept))
    return WindowSpans(
        (clip_end - num_frames)[clip_of_window],
        clip_end[clip_of_window],
        block.start_frame,
        lambda: clip_ids.take(pa.array(clip_of_window)).to_pylist(),
    )


def _tensor_of(motion: np.ndarray) -> torch.Tensor:
    """Return a view of frames as a tensor; they are never written to, so that read-only memory is right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(motion)


def constants_to_npz(null_prev: np.ndarray, null_this: np.ndarray, patch_nums: np.ndarray) -> bytes:
    """Return constants.npz: the codes of nothing, packed (num_tokens, code_dim / 8), and the schedule."""
    sink = io.BytesIO()
    np.savez(sink, null_prev=null_prev, null_this=null_this, patch_nums=patch_nums)
    return sink.getvalue()
