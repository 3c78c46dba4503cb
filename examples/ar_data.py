"""What is trained on and what is held out of a token dataset, and how much bits tell when each stands alone.

Knows the loader; no model. Clips are held out whole, so that no held-out frame was ever trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.hashing import hash64
from pipeline.loader import Batch, TokenDataset, TokenFeatures

WANTED_HELD_OUT = 100
"""Windows of val and test that suffice; below it a share of the training clips is held out beside them."""
HELD_OUT_SHARE = 0.1
COUNTED_WINDOWS, COUNT_CHUNK = 32_768, 256
"""Training windows that shares of ones are counted on, and how many of them stand together."""
SMOOTHING = 20.0
"""Windows that a token's own share of ones is mixed with, at the share of its scale."""

BASE_COLUMNS = ("clip_id", "start_frame", "prev_valid_frames", "this_valid_frames", "prev_bits", "this_bits")
AUDIO_COLUMNS, LATENT_COLUMN = ("prev_audio", "this_audio"), "this_latent"


@dataclass(frozen=True)
class Corpus:
    """A dataset opened for training; built by `open_corpus`."""

    train: TokenDataset
    others: tuple[TokenDataset, ...]
    """Splits val and test, where the dataset has them."""
    held_out_share: float
    """Of the clips of `train`, by the hash of their id."""
    has_audio: bool

    def is_held_out(self, clip_ids: list[str]) -> Tensor:
        """Return which clips of the training split are held out, (n,) bool."""
        return torch.tensor([hash64(f"held out\0{clip_id}") < self.held_out_share * 2.0**64 for clip_id in clip_ids])

    def held_out(self, batch_size: int) -> Iterator[Batch]:
        """Yield all held-out windows."""
        parts = [(self.train, self._held_rows), *((other, np.arange(len(other))) for other in self.others)]
        for dataset, rows in parts:
            for first in range(0, len(rows), batch_size):
                yield dataset.batch(rows[first : first + batch_size])

    @property
    def num_train(self) -> int:
        """Windows that are trained on."""
        return len(self.train) - len(self._held_rows)

    @property
    def num_held_out(self) -> int:
        """Windows that `held_out` yields."""
        return len(self._held_rows) + sum(len(other) for other in self.others)

    @cached_property
    def _held_rows(self) -> NDArray[np.int64]:
        """Held-out windows of the training split; looks at its clips only where any are held out."""
        if not self.held_out_share:
            return np.empty(0, np.int64)
        clips = self.train.clip_windows
        is_mine = np.repeat(self.is_held_out(clips.clip_ids).numpy(), np.diff(clips.first))
        rows: NDArray[np.int64] = clips.rows[is_mine]
        return rows


@dataclass(frozen=True)
class Shares:
    """How often bits are 1 among valid tokens of the training set."""

    by_scale: Tensor
    """(L, C): share of the token's scale and bit."""
    by_token: Tensor
    """(L, C): share of the token's own place and bit, mixed with that of its scale."""
    num_windows: int


def open_corpus(url: str, wants_latent: bool) -> Corpus:
    """Open a dataset, reading only the columns that training needs.

    Args:
        url: folder on disk or object storage.
        wants_latent: whether flip pairs are drawn from stored latents.

    Raises:
        MotionTokensError: it cannot be trained on; the message says why.
    """
    has_audio = set(AUDIO_COLUMNS) <= set(TokenDataset(url).columns)
    columns = [*BASE_COLUMNS, *(AUDIO_COLUMNS if has_audio else ()), *([LATENT_COLUMN] if wants_latent else ())]
    train = TokenDataset(url, "train", columns=columns)
    splits = [name for name in ("val", "test") if name in train.manifest.splits]
    counts = [train.manifest.splits[name].windows for name in splits]
    others = tuple(
        TokenDataset(url, name, columns=columns, codec=train.codec)
        for name, count in zip(splits, counts, strict=True)
        if count
    )
    share = 0.0 if sum(counts) >= WANTED_HELD_OUT else HELD_OUT_SHARE
    corpus = Corpus(train, others, share, has_audio)
    if not corpus.num_held_out or not corpus.num_train:
        raise ConfigError(
            f"{train.folder} has {corpus.num_train} windows to train on and {corpus.num_held_out} to hold out: it needs"
            " more clips, or a val split (motion-tokens export --set export.splits.ratios=..)"
        )
    return corpus


def shares_of_ones(corpus: Corpus, features: TokenFeatures) -> Shares:
    """Count ones on up to COUNTED_WINDOWS training windows, taken in chunks from all over the split."""
    size = len(corpus.train)
    starts = range(0, size, COUNT_CHUNK)
    step = max(1, len(starts) * COUNT_CHUNK // COUNTED_WINDOWS)
    ones = torch.zeros(features.num_tokens, features.code_dim, dtype=torch.float64)
    counted = torch.zeros(features.num_tokens, 1, dtype=torch.float64)
    num_windows = 0
    for start in starts[::step]:
        batch = corpus.train.batch(range(start, min(start + COUNT_CHUNK, size)))
        is_mine = ~corpus.is_held_out(batch["clip_id"])
        valid = features.this_valid(batch["this_valid_frames"][is_mine]).unsqueeze(-1)
        ones += (features.unpack(batch["this_bits"][is_mine]) * valid).sum(0)
        counted += valid.sum(0)
        num_windows += int(is_mine.sum())
    scale = F.one_hot(features.levels()).double()
    by_scale = scale @ ((scale.T @ ones) / (scale.T @ counted).clamp(min=1))
    by_token = (ones + SMOOTHING * by_scale) / (counted + SMOOTHING)
    by_scale, by_token = (share.clamp(1e-4, 1 - 1e-4).float() for share in (by_scale, by_token))
    return Shares(by_scale, by_token, num_windows)
