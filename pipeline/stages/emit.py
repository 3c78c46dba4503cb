"""Windows to bits, and what a corpus wants beside them: latents, flip pairs, bits of `this` behind a decoded `prev`.

Knows no Ray, Arrow tables or storage. The tokenizer, deep verification and the estimate before a run share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitwise_vae.bits import pack_bits_torch
from bitwise_vae.flips import flip_pairs
from bitwise_vae.inference.encoder import WindowEncoder
from bitwise_vae.model import BitwiseVAE
from pipeline.contract.flip_seeds import flip_seeds
from pipeline.contract.specs import CorpusSpec, FlipRule

FLIP_WINDOWS = 128
"""Windows whose flips are drawn together, on a GPU a batch where that is more; their number changes no bit."""

Arrays = dict[str, NDArray[np.generic]]
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class WindowSpans:
    """Windows of clips that lie one behind the other: (N,) each, as `WindowEncoder.encode` takes them, and clip ids."""

    clip_begin: Int64s
    clip_end: Int64s
    start_frame: Int64s
    clip_ids: Callable[[], Sequence[str]]
    """Called where flips are drawn: one id a window."""


class WindowEmitter:
    """Encodes windows with all that a corpus emits. Built by whoever holds an encoder, lives as long; owns the copy
    of the decoder's weights where a decoded `prev` is wanted."""

    def __init__(
        self, model: BitwiseVAE, encoder: WindowEncoder, corpus: CorpusSpec, flip_windows: int = FLIP_WINDOWS
    ) -> None:
        """Args: model: the encoder's own; corpus: says what is emitted; flip_windows: see `FLIP_WINDOWS`."""
        self._encoder = encoder
        self._corpus = corpus
        self._flip_windows = flip_windows
        self._decoder = encoder.decoder_of(model) if "decoded_prev" in corpus.emit else None

    def encode(self, motion: Tensor, spans: WindowSpans) -> tuple[NDArray[np.uint8], Arrays]:
        """Return the bits of windows, (N, 2, num_tokens, code_dim // 8), and the columns beside them.

        Args:
            motion: (frames, M) float32.

        Returns:
            Bits, and the arrays of `emitted_columns` by name, one row a window.

        Raises:
            torch.OutOfMemoryError: the device cannot hold one batch.
        """
        columns = (motion, spans.clip_begin, spans.clip_end, spans.start_frame)
        if not self._corpus.emit:
            return self._encoder.encode(*columns), {}
        emit, flips = self._corpus.emit, self._corpus.flips
        wants_latent = "latent" in emit or flips is not None
        found = self._encoder.encode_more(*columns, latent=wants_latent, decoder=self._decoder)
        emitted: Arrays = {}
        if "latent" in emit and found.this_latent is not None:
            emitted["this_latent"] = found.this_latent
        if flips is not None and found.this_latent is not None:
            drawn = self.draw_flips(found.this_latent, spans.clip_ids(), spans.start_frame, flips)
            emitted["flip_targets"], emitted["flip_bits"] = drawn
        if found.decoded_prev_bits is not None:
            emitted["decoded_prev_bits"] = found.decoded_prev_bits
        return found.bits, emitted

    def draw_flips(
        self, latent: NDArray[np.float16], clip_ids: Sequence[str], start_frame: Int64s, rule: FlipRule
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return targets and flipped bits of windows, packed: (N, pairs, num_tokens, code_dim // 8) each.

        Args:
            latent: (N, T, C) as it is stored; see `bitwise_vae.flip_pairs`.
            clip_ids: (N,) with start_frame the windows' part of each seed.
        """
        config, device = self._encoder.config, self._encoder.device
        shape = (len(latent), rule.pairs, config.num_tokens, config.code_dim // 8)
        targets, flipped = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        together = self._flip_windows if device.type == "cpu" else max(self._flip_windows, self._encoder.batch_size)

        def draw(first: int) -> None:
            rows = slice(first, first + together)
            some = torch.from_numpy(latent[rows]).to(device)
            for pair in range(rule.pairs):
                seeds = flip_seeds(rule.seed, clip_ids[rows], start_frame[rows].tolist(), pair)
                drawn = flip_pairs(some, config.patch_nums, rule.ratio, seeds)
                for bits, packed in zip(drawn, (targets, flipped), strict=True):
                    packed[rows, pair] = pack_bits_torch(bits).cpu().numpy()

        for _ in self._encoder.each(draw, range(0, len(latent), together)):
            pass
        return targets, flipped
