"""What a prediction costs: bits spent on the bits of valid tokens.

Knows tensors and the schedule; no model or dataset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.loader import TokenFeatures, TrainingTensors


@dataclass
class BitCount:
    """Bits spent on valid tokens, token by token; grows while windows are evaluated."""

    features: TokenFeatures
    bits: Tensor = field(init=False)
    counted: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.bits = torch.zeros(self.features.num_tokens, dtype=torch.float64)
        self.counted = torch.zeros(self.features.num_tokens, dtype=torch.float64)

    def add(self, logits: Tensor, tensors: TrainingTensors) -> None:
        """Args: logits: (B, L, C) of the bits that `tensors` says are right."""
        spent = bits_of(logits, tensors.targets).sum(-1) * tensors.this_valid
        self.bits += spent.sum(0).double().cpu()
        self.counted += tensors.this_valid.sum(0).double().cpu() * self.features.code_dim

    def per_bit(self, scale: int | None = None) -> float:
        """Return the mean of all bits, or of one scale's."""
        mine = torch.ones_like(self.bits) if scale is None else self.features.levels() == scale
        return float((self.bits * mine).sum() / (self.counted * mine).sum())


def bits_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return what each bit costs: log-odds and bits (.., C) -> (.., C) bits."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none") / math.log(2)


def mean_bits(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cost of the bits of valid tokens: (B, L, C), valid (B, L) -> scalar."""
    spent = bits_of(logits, targets).sum(-1) * valid
    return spent.sum() / (valid.sum() * targets.shape[-1]).clamp(min=1)
