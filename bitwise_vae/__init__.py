"""The bitwise VAE: motion windows to bits and back. Knows torch and numpy, but no corpus, storage or cluster.

Names are imported on first use, so that pure modules such as `bits` load without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitwise_vae.lazy import lazy_names

if TYPE_CHECKING:
    from bitwise_vae.bits import (
        pack_bits as pack_bits,
        pack_bits_torch as pack_bits_torch,
        unpack_bits as unpack_bits,
        unpack_bits_torch as unpack_bits_torch,
    )
    from bitwise_vae.checkpoints.checkpoint import (
        CheckpointError as CheckpointError,
        checkpoint_bytes as checkpoint_bytes,
        load_checkpoint as load_checkpoint,
        pretrained_bytes as pretrained_bytes,
        random_checkpoint as random_checkpoint,
        read_checkpoint as read_checkpoint,
        round_weights as round_weights,
        statistics_digest as statistics_digest,
        weights_digest as weights_digest,
        write_checkpoint as write_checkpoint,
    )
    from bitwise_vae.checkpoints.digest import sample_digest as sample_digest
    from bitwise_vae.checkpoints.quality_record import (
        QualityRecord as QualityRecord,
        record_from_bytes as record_from_bytes,
    )
    from bitwise_vae.config import (
        PRESETS as PRESETS,
        PRETRAINED as PRETRAINED,
        BitwiseVAEConfig as BitwiseVAEConfig,
        ConfigError as ConfigError,
        MotionGroup as MotionGroup,
    )
    from bitwise_vae.flips import flip_pairs as flip_pairs
    from bitwise_vae.inference.encoder import WindowEncoder as WindowEncoder
    from bitwise_vae.model import BitwiseVAE as BitwiseVAE, TrainingOutput as TrainingOutput
    from bitwise_vae.training.clips import (
        MotionClips as MotionClips,
        MotionStatistics as MotionStatistics,
        TrainingDataError as TrainingDataError,
    )
    from bitwise_vae.training.evaluation import Evaluation as Evaluation, evaluate_clips as evaluate_clips
    from bitwise_vae.training.loop import (
        CurvePoint as CurvePoint,
        Trainer as Trainer,
        TrainingDivergedError as TrainingDivergedError,
        TrainingEvents as TrainingEvents,
        train as train,
    )
    from bitwise_vae.training.losses import (
        ExtraLoss as ExtraLoss,
        LossTerms as LossTerms,
        LossWeights as LossWeights,
        training_loss as training_loss,
    )
    from bitwise_vae.training.metrics import (
        CodeFigures as CodeFigures,
        CodeStatistics as CodeStatistics,
        ErrorFigures as ErrorFigures,
        GroupError as GroupError,
        ReconstructionError as ReconstructionError,
    )
    from bitwise_vae.training.state import TrainingStateError as TrainingStateError
    from bitwise_vae.training.task import (
        Peers as Peers,
        TrainingSettings as TrainingSettings,
        TrainingTask as TrainingTask,
    )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
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
    },
)
