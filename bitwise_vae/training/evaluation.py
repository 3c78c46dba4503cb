"""What a codec does to clips that it never saw: error of decoded motion, and use of bits.

Knows a model and clips in memory; no files. Motion goes through bits and back, as it does in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bitwise_vae.checkpoints.digest import sample_digest
from bitwise_vae.checkpoints.quality_record import QualityRecord
from bitwise_vae.model import BitwiseVAE
from bitwise_vae.training.clips import MotionClips
from bitwise_vae.training.metrics import CodeFigures, CodeStatistics, ErrorFigures, ReconstructionError
from bitwise_vae.training.window_bank import WindowBank

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Evaluation:
    """Figures over held-out clips: `this` of windows one behind another, every frame once; bits of both halves."""

    error: ErrorFigures
    codes: CodeFigures
    num_clips: int

    def record(self, model: BitwiseVAE) -> QualityRecord:
        """Returns what the checkpoint of this model says of itself."""
        return QualityRecord(
            fraction_of_mean=self.error.fraction_of_mean,
            normalised_l1=self.error.normalised_l1,
            mean_l1=self.error.mean_l1,
            num_clips=self.num_clips,
            num_frames=self.error.num_frames,
            patch_nums=model.patch_nums,
            sample_digest=sample_digest(model),
        )


def evaluate(model: BitwiseVAE, bank: WindowBank, max_windows: int | None = None) -> Evaluation:
    """Measures a model, in float32 on the bank's device.

    Args:
        model: on the bank's device.
        bank: held-out clips.
        max_windows: measure so many windows, spread evenly over all; None: all.
    """
    index, start, fresh = bank.grid()
    if max_windows is not None and len(index) > max_windows:
        chosen = np.arange(max_windows) * len(index) // max_windows
        index, start, fresh = index[chosen], start[chosen], fresh[chosen]
    config, frames = model.config, bank.window_frames
    error = ReconstructionError(
        model.motion_mean.cpu().numpy(), model.motion_std.cpu().numpy(), config.motion_groups, config.fps
    )
    codes = CodeStatistics(config.patch_nums, config.code_dim)
    was_training = model.training
    model.eval()
    for first in range(0, len(index), EVALUATION_BATCH):
        part = slice(first, first + EVALUATION_BATCH)
        batch = bank.cut(index[part], start[part])
        with torch.no_grad():
            prev_bits, this_bits = model.quant_to_vqidx(*batch.motion.chunk(2, dim=1))
            if this_bits is None:
                raise RuntimeError("bits of both halves were asked for")
            _, decoded = model.vqidx_to_motion(prev_bits, this_bits)
        is_fresh = np.arange(frames) >= fresh[part, None]
        error.add(batch.motion[:, frames:].cpu().numpy(), decoded.cpu().numpy(), is_fresh)
        codes.add(torch.stack([prev_bits, this_bits], dim=1).to(torch.uint8).cpu().numpy())
    model.train(was_training)
    return Evaluation(error.figures(), codes.figures(), len(np.unique(index)))


def evaluate_clips(model: BitwiseVAE, clips: MotionClips, device: torch.device) -> Evaluation:
    """Measures a model on all windows of clips; see `evaluate`.

    Raises:
        TrainingDataError: no clip is as long as a window.
    """
    return evaluate(model.to(device), WindowBank(clips, model.window_frames, device))
