"""How stable the bits of a sample are: encoded again in other orders, batch sizes and precisions, and in float64.

Knows no Ray or storage. A bit is the sign of a number, and flips where rounding carries that number over zero.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bitwise_vae.bits import pack_bits, unpack_bits
from bitwise_vae.checkpoints.checkpoint import read_checkpoint
from bitwise_vae.flips import flip_pairs
from bitwise_vae.inference.encoder import PRECISIONS, WindowEncoder
from bitwise_vae.model import BitwiseVAE
from bitwise_vae.quantizer import code_from_bits, pool_frames, spread_tokens
from pipeline.contract.flip_seeds import flip_seeds
from pipeline.contract.specs import Contract, FlipRule
from pipeline.dataset.open_dataset import BitCounts
from pipeline.quality.sample import WindowSample
from pipeline.settings.job_config import FlipConfig
from pipeline.stages.codec import pick_device

EXACT_WINDOWS = 4
"""Windows encoded together in float64."""

VALUE_EDGES: NDArray[np.float64] = np.array([10.0**power for power in range(-9, 2)])
"""Bounds of |value| for the picture near zero; what lies below the first counts as below it."""

Uint8s = NDArray[np.uint8]
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """Bits of the sample computed in two ways; built by `certify_sample`."""

    name: str
    counts: BitCounts
    counts_in_budget: bool
    """Whether both ways are the dataset's own: else it says what a change of precision would do."""
    first_flips: int | None = None
    """Against float64: flips that no flip at a coarser scale of the same bit explains."""
    near_zero: Int64s | None = None
    """Against float64: first flips by |value|, in the bins of `Certificate.edges`."""
    largest_value: float | None = None
    """Against float64: the largest |value| of a first flip."""

    @property
    def share(self) -> float:
        """Share of all bits that differ."""
        return self.counts.share

    @property
    def by_scale(self) -> list[int]:
        """Bits that differ at each scale, coarse to fine, both halves."""
        return [int(count) for count in self.counts.differing.sum(axis=0)]


@dataclass(frozen=True)
class Certificate:
    """What became of the bits; built by `certify_sample`."""

    num_windows: int
    precision: str
    device: str
    comparisons: tuple[Comparison, ...]
    edges: NDArray[np.float64]
    near_zero: Int64s
    """All bits by |value| in float64: len(edges) + 1 bins, the first below all edges."""

    @property
    def flip_rate(self) -> float:
        """The largest share of bits that differ between two ways that are the dataset's own."""
        return max((item.share for item in self.comparisons if item.counts_in_budget), default=0.0)

    def over_budget(self, budget: float) -> list[str]:
        """Return a line for each comparison that counts and in which more than this share of bits differs."""
        return [
            f"{item.share:.2e} of the bits differ ({item.name}), {budget:g} may"
            for item in self.comparisons
            if item.counts_in_budget and item.share > budget
        ]

    def described(self) -> dict[str, Any]:
        """Return the certificate as plain values, for programs."""
        comparisons = [
            {
                "name": item.name,
                "share": item.share,
                "counts_in_budget": item.counts_in_budget,
                "first_flips": item.first_flips,
                "largest_value": item.largest_value,
                "first_flips_by_value": None if item.near_zero is None else item.near_zero.tolist(),
                **item.counts.described(),
            }
            for item in self.comparisons
        ]
        return {
            "windows": self.num_windows,
            "precision": self.precision,
            "device": self.device,
            "flip_rate": self.flip_rate,
            "comparisons": comparisons,
            "value_edges": self.edges.tolist(),
            "bits_by_value": self.near_zero.tolist(),
        }


def certify_sample(
    codec: bytes, contract: Contract, sample: WindowSample, *, other_precisions: bool = True
) -> Certificate:
    """Encode a sample in several ways on this machine and compare the bits.

    Args:
        codec: safetensors bytes of the checkpoint.
        contract: of the dataset; its precision and batch size are those that count.
        sample: at least one window.
        other_precisions: whether to show as well what the other precisions would give.
    """
    model, device = read_checkpoint(codec, "codec.safetensors"), pick_device()
    corpus, half_bytes = contract.corpus, contract.codec.half_bytes
    windows = torch.from_numpy(sample.motion)

    def encoder_of(precision: str, batch_size: int) -> WindowEncoder:
        threads = os.cpu_count() or 1
        return WindowEncoder(model, precision=precision, batch_size=batch_size, device=device, num_threads=threads)

    def encode(precision: str = corpus.precision, batch_size: int = corpus.batch_size) -> Callable[[Int64s], Uint8s]:
        encoder = encoder_of(precision, batch_size)

        def encoded(order: Int64s) -> Uint8s:
            bits = np.empty((len(order), 2, half_bytes), np.uint8)
            bits[order] = encoder.encode_windows(windows[torch.from_numpy(order)]).reshape(-1, 2, half_bytes)
            return bits

        return encoded

    def compared(name: str, ours: Uint8s, theirs: Uint8s) -> Comparison:
        counts = BitCounts(contract.codec)
        counts.add(ours, theirs)
        return Comparison(name, counts, counts_in_budget=True)

    in_order = np.arange(len(sample))
    usual = encode()
    ours = usual(in_order)
    comparisons = [compared("stored in the dataset", sample.bits, ours)]
    for name, order in (("reversed", in_order[::-1].copy()), ("shuffled", _shuffled(len(sample)))):
        comparisons.append(compared(f"{name} order", usual(order), ours))
    for batch_size in _other_batch_sizes(corpus.batch_size):
        bits = encode(batch_size=batch_size)(in_order)
        comparisons.append(compared(f"batches of {batch_size}", bits, ours))
    exact, values = exact_bits(model, windows)
    comparisons.append(_against_exact(corpus.precision, ours, exact, values, contract, is_own=True))
    for precision in PRECISIONS if other_precisions else ():
        if precision != corpus.precision:
            bits = encode(precision)(in_order)
            comparisons.append(_against_exact(precision, bits, exact, values, contract, is_own=False))
    if {"latent", "flips"} & set(corpus.emit):
        latents = encoder_of(corpus.precision, corpus.batch_size).latents(windows)
        comparisons.append(_flips_of_stored_latents(latents, sample, contract))
    all_values = _by_value(np.abs(values))
    return Certificate(len(sample), corpus.precision, device.type, tuple(comparisons), VALUE_EDGES, all_values)


def exact_bits(model: BitwiseVAE, windows: torch.Tensor) -> tuple[Uint8s, NDArray[np.float64]]:
    """Encode in float64 on the CPU: windows (n, 2T, M) -> bits (n, 2, L, C) and the numbers whose signs they are."""
    exact = copy.deepcopy(model).cpu().double().eval()
    config = model.config
    parts: list[NDArray[np.float64]] = []
    with torch.inference_mode():
        for first in range(0, len(windows), EXACT_WINDOWS):
            latent = exact.encode_latent(windows[first : first + EXACT_WINDOWS].double())
            residual = latent.reshape(-1, config.window_frames, config.code_dim)
            values = []
            for patch_num in config.patch_nums:
                values.append(pool_frames(residual, patch_num))
                code = code_from_bits(values[-1] > 0, torch.float64)
                residual = residual - spread_tokens(code, config.window_frames)
            parts.append(torch.cat(values, dim=1).view(-1, 2, config.num_tokens, config.code_dim).numpy())
    together = np.concatenate(parts)
    return (together > 0).astype(np.uint8), together


def _against_exact(
    precision: str, packed: Uint8s, exact: Uint8s, values: NDArray[np.float64], contract: Contract, is_own: bool
) -> Comparison:
    codec = contract.codec
    counts = BitCounts(codec)
    counts.add(packed, pack_bits(exact).reshape(packed.shape))
    differs = unpack_bits(packed.reshape(*packed.shape[:2], codec.num_tokens, -1)) != exact
    is_first = np.zeros_like(differs)
    before = np.zeros((*differs.shape[:2], codec.code_dim), np.bool_)
    begin = 0
    for patch_num in codec.patch_nums:
        tokens = slice(begin, begin + patch_num)
        is_first[:, :, tokens] = differs[:, :, tokens] & ~before[:, :, None]
        before |= differs[:, :, tokens].any(axis=2)
        begin += patch_num
    flipped = np.abs(values[is_first])
    return Comparison(
        f"{precision} / float64",
        counts,
        is_own,
        first_flips=int(is_first.sum()),
        near_zero=_by_value(flipped),
        largest_value=float(flipped.max()) if len(flipped) else None,
    )


def _flips_of_stored_latents(latents: torch.Tensor, sample: WindowSample, contract: Contract) -> Comparison:
    """Compare flip pairs drawn from latents as they are stored, float16, with those of float32 latents (n, 2T, C).

    Targets count in the place of `prev`, flipped bits in that of `this`.
    """
    corpus, codec = contract.corpus, contract.codec
    rule = corpus.flips or FlipRule.model_validate(FlipConfig().model_dump())
    seeds = flip_seeds(rule.seed, sample.clip_ids, sample.start_frame.tolist(), 0)
    this = latents[:, codec.window_frames :]
    packed = [
        np.stack([pack_bits(bits.numpy()) for bits in flip_pairs(latent, codec.patch_nums, rule.ratio, seeds)], axis=1)
        for latent in (this.half(), this)
    ]
    counts = BitCounts(codec)
    counts.add(*(pairs.reshape(len(pairs), 2, codec.half_bytes) for pairs in packed))
    return Comparison("flips, float16 / float32", counts, counts_in_budget=False)


def _by_value(values: NDArray[np.float64]) -> Int64s:
    bins = np.searchsorted(VALUE_EDGES, values.reshape(-1), side="right")
    return np.bincount(bins, minlength=len(VALUE_EDGES) + 1).astype(np.int64)


def _shuffled(count: int) -> Int64s:
    return np.random.default_rng(0).permutation(count).astype(np.int64)


def _other_batch_sizes(batch_size: int) -> Sequence[int]:
    """Return batch sizes with other shapes; a CPU takes a few windows at once whatever the size."""
    return [size for size in (1, 2, 3, 64) if size < batch_size][:2] if batch_size <= 64 else [1, batch_size // 2]
