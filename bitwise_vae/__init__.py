"""The bitwise VAE: motion windows to bits and back. Knows torch and numpy, but no corpus, storage or cluster.

Names are imported on first use, so that pure modules such as `bits` load without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitwise_vae.bits import pack_bits, pack_bits_torch, unpack_bits, unpack_bits_torch
    from bitwise_vae.checkpoints.checkpoint import (
        CheckpointError,
        checkpoint_bytes,
        load_checkpoint,
        pretrained_bytes,
        random_checkpoint,
        read_checkpoint,
        round_weights,
        statistics_digest,
        weights_digest,
        write_checkpoint,
    )
    from bitwise_vae.checkpoints.digest import sample_digest
    from bitwise_vae.checkpoints.quality_record import QualityRecord, record_from_bytes
    from bitwise_vae.config import PRESETS, PRETRAINED, BitwiseVAEConfig, ConfigError, MotionGroup
    from bitwise_vae.flips import flip_pairs
    from bitwise_vae.inference.encoder import WindowEncoder
    from bitwise_vae.model import BitwiseVAE, TrainingOutput
    from bitwise_vae.training.clips import MotionClips, MotionStatistics, TrainingDataError
    from bitwise_vae.training.evaluation import Evaluation, evaluate_clips
    from bitwise_vae.training.loop import CurvePoint, Trainer, TrainingDivergedError, TrainingEvents, train
    from bitwise_vae.training.losses import ExtraLoss, LossTerms, LossWeights, training_loss
    from bitwise_vae.training.metrics import CodeFigures, CodeStatistics, ErrorFigures, GroupError, ReconstructionError
    from bitwise_vae.training.state import TrainingStateError
    from bitwise_vae.training.task import Peers, TrainingSettings, TrainingTask

_HOMES = {
    "bits": ("pack_bits", "pack_bits_torch", "unpack_bits", "unpack_bits_torch"),
    "checkpoints.checkpoint": (
        "CheckpointError",
        "checkpoint_bytes",
        "load_checkpoint",
        "pretrained_bytes",
        "random_checkpoint",
        "read_checkpoint",
        "round_weights",
        "statistics_digest",
        "weights_digest",
        "write_checkpoint",
    ),
    "config": ("PRESETS", "PRETRAINED", "BitwiseVAEConfig", "ConfigError", "MotionGroup"),
    "inference.encoder": ("WindowEncoder",),
    "training.evaluation": ("Evaluation", "evaluate_clips"),
    "flips": ("flip_pairs",),
    "training.losses": ("ExtraLoss", "LossTerms", "LossWeights", "training_loss"),
    "training.metrics": ("CodeFigures", "CodeStatistics", "ErrorFigures", "GroupError", "ReconstructionError"),
    "model": ("BitwiseVAE", "TrainingOutput"),
    "training.clips": ("MotionClips", "MotionStatistics", "TrainingDataError"),
    "checkpoints.digest": ("sample_digest",),
    "checkpoints.quality_record": ("QualityRecord", "record_from_bytes"),
    "training.loop": ("CurvePoint", "Trainer", "TrainingDivergedError", "TrainingEvents", "train"),
    "training.state": ("TrainingStateError",),
    "training.task": ("Peers", "TrainingSettings", "TrainingTask"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "PRESETS",
    "PRETRAINED",
    "BitwiseVAE",
    "BitwiseVAEConfig",
    "CheckpointError",
    "CodeFigures",
    "CodeStatistics",
    "ConfigError",
    "CurvePoint",
    "ErrorFigures",
    "Evaluation",
    "ExtraLoss",
    "GroupError",
    "LossTerms",
    "LossWeights",
    "MotionClips",
    "MotionGroup",
    "MotionStatistics",
    "Peers",
    "QualityRecord",
    "ReconstructionError",
    "Trainer",
    "TrainingDataError",
    "TrainingDivergedError",
    "TrainingEvents",
    "TrainingOutput",
    "TrainingSettings",
    "TrainingStateError",
    "TrainingTask",
    "WindowEncoder",
    "checkpoint_bytes",
    "evaluate_clips",
    "flip_pairs",
    "load_checkpoint",
    "pack_bits",
    "pack_bits_torch",
    "pretrained_bytes",
    "random_checkpoint",
    "read_checkpoint",
    "record_from_bytes",
    "round_weights",
    "sample_digest",
    "statistics_digest",
    "train",
    "training_loss",
    "unpack_bits",
    "unpack_bits_torch",
    "weights_digest",
    "write_checkpoint",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
