"""What training minimises, as one formula over motion groups; and the hook for losses of one's own.

Knows tensors and a codec's configuration; no data, no optimiser.

For windows x of motion and decoded windows y, both normalised with the codec's statistics, over real frames only
(`prev` is padded with zeros at a clip's start), g over motion groups with n_g of the M columns, d the difference of
neighbouring frames:

    loss = sum_g w_g n_g / M * mean_g |y - x|
         + sum over pose groups of n_g / M * (w_v mean_g (d y - d x)^2 + w_a mean_g (d d y - d d x)^2)
         + w_q * mean over halves and scales of the quantizer's loss
         + w_z * mean |z - sum of the codes of z|^2
         + the extra losses

z is the latent of a frame; the last term moves z alone. The quantizer's own loss sees z without its length: a z much
longer than its codes would repeat one sign at every scale, and hardly ever change it. w_z keeps it in their reach.
w_g is 1, and `pose` for the groups whose unit is rad (of a codec whose groups have no unit, none is a pose group).
The original adds losses between mesh vertices of a licensed face model; this project holds none. Whoever has the model
gives an `ExtraLoss`, which sees the motion in its own units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bitwise_vae.config import BitwiseVAEConfig, MotionGroup
from bitwise_vae.model import TrainingOutput

ExtraLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(decoded, original (B, 2T, M) in motion units, is_real (B, 2T)) -> scalar, added to the loss with its gradient."""

POSE_UNIT = "rad"


@dataclass(frozen=True)
class LossWeights:
    """Weights of the formula above: w_g of pose groups, w_v, w_a, w_q and w_z."""

    pose: float = 4.0
    velocity: float = 2.0
    acceleration: float = 2.0
    quantizer: float = 1.0
    latent: float = 0.1


class LossTerms(NamedTuple):
    """The loss and its weighted parts, scalars; `l1` is the plain mean |y - x|, without weights."""

    total: Tensor
    l1: Tensor
    velocity: Tensor
    acceleration: Tensor
    quantizer: Tensor
    latent: Tensor


def training_loss(
    output: TrainingOutput,
    motion: Tensor,
    is_real: Tensor,
    config: BitwiseVAEConfig,
    std: Tensor,
    weights: LossWeights,
) -> LossTerms:
    """Computes the formula at the top of this module, without extra losses.

    Args:
        output: of the model's training forward.
        motion: (B, 2T, M) windows, in motion units.
        is_real: (B, 2T) bool.
        config: groups and sizes.
        std: (M,) of the codec's statistics.
        weights: of the terms.
    """
    difference = (output.motion.float() - motion) / std
    absolute = _mean_over_frames(difference.abs(), is_real)
    l1 = absolute.mean()
    weighted, velocity, acceleration = l1, torch.zeros_like(l1), torch.zeros_like(l1)
    steps = is_real[:, 1:] & is_real[:, :-1]
    for group in _pose_groups(config):
        columns = difference[..., _columns(group)]
        weighted = weighted + absolute[_columns(group)].sum() * (weights.pose - 1) / config.motion_dim
        velocity = velocity + _mean_square(columns.diff(n=1, dim=1), steps) / config.motion_dim
        acceleration = acceleration + _mean_square(columns.diff(n=2, dim=1), steps[:, 1:] & steps[:, :-1]) / (
            config.motion_dim
        )
    velocity, acceleration = weights.velocity * velocity, weights.acceleration * acceleration
    quantizer = weights.quantizer * torch.cat([output.prev_losses, output.this_losses]).mean()
    latent = weights.latent * _mean_over_frames(output.latent_gap.unsqueeze(-1), is_real).squeeze()
    total = weighted + velocity + acceleration + quantizer + latent
    return LossTerms(total, l1, velocity, acceleration, quantizer, latent)


def _pose_groups(config: BitwiseVAEConfig) -> list[MotionGroup]:
    return [group for group in config.motion_groups if group.unit == POSE_UNIT]


def _columns(group: MotionGroup) -> slice:
    return slice(group.start, group.stop)


def _mean_over_frames(values: Tensor, is_counted: Tensor) -> Tensor:
    """(B, frames, n), (B, frames) -> (n,) means over counted frames."""
    counted = is_counted.to(values.dtype)
    return (values * counted.unsqueeze(-1)).sum(dim=(0, 1)) / counted.sum().clamp(min=1)


def _mean_square(values: Tensor, is_counted: Tensor) -> Tensor:
    """Sum over columns of the mean square over counted frames: a scalar."""
    return _mean_over_frames(values.square(), is_counted).sum()
