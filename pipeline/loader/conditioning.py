"""What a model is conditioned on, and how it is left out at random, for classifier-free guidance.

Knows batches, and of a dataset its constants.npz. Draws depend on seed, epoch and window alone: not on the batch, rank,
worker or position that a window comes in.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.contract.specs import CodecSpec
from pipeline.dataset.manifest import Manifest, read_beside
from pipeline.dataset.paths import CONSTANTS_PATH
from pipeline.errors import ConfigError, VerifyError
from pipeline.hashing import hash64
from pipeline.loader.batches import Batch
from pipeline.storage import Folder


@dataclass(frozen=True, eq=False)
class NullCodes:
    """The codes of a window of zeros, packed (L, C / 8) uint8 each: what stands for nothing."""

    prev: Tensor
    """Of a `prev` before which nothing was; also of a style window, which is coded as a `prev`. Generation begins with
    it."""
    this: Tensor
    """Of a `this` of zeros behind a `prev` of zeros."""


def read_null_codes(folder: Folder, manifest: Manifest) -> NullCodes:
    """Read the null codes of a dataset, as `TokenDataset` has folder and manifest.

    Raises:
        VerifyError: constants.npz is missing, altered, or of another schedule than the contract.
    """
    data = read_beside(folder, manifest, CONSTANTS_PATH)
    codec = manifest.contract.codec
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("null_prev", "null_this", "patch_nums")}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise VerifyError(f"{folder}/{CONSTANTS_PATH} is damaged ({error}): run motion-tokens verify") from error
    if tuple(arrays["patch_nums"].tolist()) != codec.patch_nums:
        raise VerifyError(
            f"{folder}/{CONSTANTS_PATH} is of schedule {arrays['patch_nums'].tolist()}, the contract of"
            f" {list(codec.patch_nums)}: run motion-tokens verify"
        )
    return NullCodes(*(torch.from_numpy(_of_shape(arrays[name], codec, folder)) for name in ("null_prev", "null_this")))


@dataclass(frozen=True)
class Dropping:
    """With what chance `prev` and style are replaced by nothing, each on its own. A trainer builds one for its life.

    Args:
        prev: chance that a sample's `prev` becomes the null code, 0 to 1.
        style: the same for its style window.
        seed: other seeds draw other samples.

    Raises:
        ConfigError: a chance is no probability.
    """

    prev: float = 0.1
    style: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prev", "style"):
            chance = getattr(self, name)
            if not 0 <= chance <= 1:
                raise ConfigError(f"the chance to drop {name} must be within 0 and 1, found {chance}")

    def drawn(self, name: str, batch: Batch, epoch: int) -> Tensor:
        """Return which samples lose `name` ("prev" or "style") in an epoch, (B,) bool.

        Args:
            name: what is dropped.
            batch: with `clip_id` and `start_frame`, which seed the draw; of several windows a sample, the first.
            epoch: or any number that is to draw anew, such as a step.
        """
        missing = [column for column in ("clip_id", "start_frame") if column not in batch]
        if missing:
            raise ConfigError(
                f"dropping is seeded by windows: the batch lacks {', '.join(missing)}; read these columns"
            )
        starts = batch["start_frame"].reshape(len(batch["clip_id"]), -1)[:, 0].tolist()
        limit = getattr(self, name) * 2.0**64
        windows = zip(batch["clip_id"], starts, strict=True)
        keys = (f"{self.seed}\0{epoch}\0{name}\0{clip_id}\0{start}" for clip_id, start in windows)
        return torch.tensor([hash64(key) < limit for key in keys])

    def apply(self, batch: Batch, null: NullCodes, epoch: int) -> Batch:
        """Return the batch with null codes where a draw says so; the one given stays as it is.

        Replaced samples have no valid frames of what was dropped, and `prev_dropped` and `style_dropped` (B,) bool say
        which they are. Of several windows a sample only the first loses its `prev`: the others follow what was
        generated.

        Args:
            batch: packed bits, on any device; style only where the batch has `style_bits`.
            null: of the same codec.
            epoch: see `drawn`.
        """
        changed: dict[str, Any] = dict(batch)
        for name in ("prev", "style"):
            bits = batch.get(f"{name}_bits")
            if bits is None:
                continue
            dropped = self.drawn(name, batch, epoch)
            changed[f"{name}_dropped"] = dropped
            valid = batch[f"{name}_valid_frames"]
            rows, valid_rows = dropped.to(bits.device), dropped.to(valid.device)
            if bits.ndim > 3:  # (B, windows a sample, L, C / 8)
                rows, valid_rows = (_first_only(mask, bits.shape[1]) for mask in (rows, valid_rows))
            changed[f"{name}_bits"] = torch.where(rows[..., None, None], null.prev.to(bits.device), bits)
            changed[f"{name}_valid_frames"] = torch.where(valid_rows, torch.zeros_like(valid), valid)
        return changed


def _first_only(dropped: Tensor, num_windows: int) -> Tensor:
    """(B,) -> (B, windows a sample), True only at first windows."""
    return dropped[:, None] & (torch.arange(num_windows, device=dropped.device) == 0)


def _of_shape(packed: np.ndarray[Any, Any], codec: CodecSpec, folder: Folder) -> np.ndarray[Any, Any]:
    wanted = (codec.num_tokens, codec.code_dim // 8)
    if packed.shape != wanted or packed.dtype != np.uint8:
        raise VerifyError(
            f"{folder}/{CONSTANTS_PATH}: wanted codes {wanted} uint8, found {packed.shape} {packed.dtype}: run"
            " motion-tokens verify"
        )
    return packed
