"""Tokens of a dataset back to motion: the windows of a clip decoded and put together.

Knows no Ray. A frame is taken from the first window, by `start_frame`, whose `this` covers it: so where windows
overlap (a stride below one window, or the last window of `tail: shift`) the earlier one stays, and seams lie at
the ends of windows only. `prev` is context and gives no frame. Frames that no window covers are NaN (a stride
above one window, or the end of a clip under `tail: drop`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitwise_vae.checkpoints.checkpoint import read_checkpoint
from bitwise_vae.config import PRETRAINED
from pipeline.dataset.open_dataset import OpenDataset, packed_bits, windows_of_clip
from pipeline.errors import CodecError, InputNotFoundError
from pipeline.quality.decoding import decode_windows
from pipeline.stages.codec import Codec, open_codec, pick_device, require_same_codec
from pipeline.storage import parent_and_name

BATCH_WINDOWS = 64
SHARDS_HELD = 2
MAX_TRIED = 8
"""Checkpoints beside a dataset that are tried where none is named."""


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """Motion that a clip's tokens stand for."""

    clip_id: str
    motion: NDArray[np.float32]
    """(num_frames, motion_dim), in motion units; NaN where no window covers a frame."""
    fps: float
    num_windows: int
    num_uncovered: int
    """Frames that no window covers."""

    def to_npz(self) -> bytes:
        """Return the clip as an npz file, which `tokenize` and `stats` read as motion."""
        sink = io.BytesIO()
        np.savez(sink, motion=self.motion, fps=np.float64(self.fps), clip_id=np.array(self.clip_id))
        return sink.getvalue()


class ClipDecoder:
    """Built by a command for one dataset and its codec; owns the model and the shards read last."""

    def __init__(self, dataset: OpenDataset, codec: Codec) -> None:
        """Read the weights.

        Raises:
            OutputMismatchError: the codec is not the dataset's; the message names the fields.
        """
        require_same_codec(codec, dataset.manifest.contract, str(dataset.folder))
        self._dataset = dataset
        self._format = next(iter(dataset.manifest.shards))
        self._model = read_checkpoint(codec.data, "codec.safetensors").to(pick_device())
        self._shards: dict[int, pa.Table] = {}

    def decode(self, clip_id: str) -> DecodedClip:
        """Return a clip's motion.

        Raises:
            InputNotFoundError: the dataset has no windows of such a clip.
            VerifyError: a shard is missing or damaged, or lacks windows of the clip.
        """
        rows = windows_of_clip(self._dataset, self._format, clip_id, self._shard)
        codec = self._dataset.manifest.contract.codec
        num_frames = int(rows["num_frames"][0].as_py())
        starts = rows["start_frame"].to_numpy().astype(np.int64)
        valid = rows["this_valid_frames"].to_numpy().astype(np.int64)
        motion = np.full((num_frames, codec.motion_dim), np.nan, np.float32)
        end = num_covered = 0
        for first, decoded in self._decoded(packed_bits(rows)):
            for row, window in enumerate(decoded, first):
                begin, stop = max(end, int(starts[row])), int(starts[row] + valid[row])
                if begin < stop:
                    motion[begin:stop] = window[begin - starts[row] : stop - starts[row]]
                    num_covered += stop - begin
                    end = stop
        return DecodedClip(clip_id, motion, codec.fps, len(rows), num_frames - num_covered)

    def _shard(self, position: int) -> pa.Table:
        if position not in self._shards:
            while len(self._shards) >= SHARDS_HELD:
                self._shards.pop(next(iter(self._shards)))
            self._shards[position] = self._dataset.read_shard(self._format, position)
        return self._shards[position]

    def _decoded(self, packed: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield batches: the first window's number, and `this` of each, (windows, window_frames, motion_dim)."""
        num_frames = self._model.config.window_frames
        for first in range(0, len(packed), BATCH_WINDOWS):
            yield first, decode_windows(self._model, packed[first : first + BATCH_WINDOWS])[:, num_frames:]


def find_codec(dataset: OpenDataset) -> Codec:
    """Return the codec of a dataset: a shipped one, or a .safetensors in or beside the dataset's folder.

    Raises:
        InputNotFoundError: it does not; the message says how to know it.
    """
    options, wanted = dataset.folder.options, dataset.manifest.contract.codec
    for name in PRETRAINED:
        codec = open_codec(name)
        if codec.spec == wanted:
            return codec
    tried: list[str] = []
    for folder in (dataset.folder, parent_and_name(dataset.folder.url, options)[0]):
        for name in folder.list_names(""):
            if not name.endswith(".safetensors") or len(tried) == MAX_TRIED:
                continue
            tried.append(name)
            try:
                codec = open_codec(folder.url_of(name), options=options)
            except CodecError:
                continue
            if codec.spec == wanted:
                return codec
    others = f" ({', '.join(tried)} are others)" if tried else ""
    raise InputNotFoundError(
        f"a dataset does not hold its codec, and it does not stand beside {dataset.folder}{others}: name it with"
        f" --checkpoint; its weights digest begins with {wanted.weights[:12]}, as motion-tokens inspect shows it"
    )
