"""What a checkpoint says about itself: its held-out error, and the bits of a sample that every machine can make again.

Knows models and bytes; no paths, no corpus. The record is part of no digest: equal weights are the same codec.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from torch import Tensor

from bitwise_vae.bits import pack_bits_torch
from bitwise_vae.checkpoint_tensors import CheckpointError, tensors_from_bytes
from bitwise_vae.model import BitwiseVAE

METADATA_KEY = "quality"
SAMPLE_SEED, SAMPLE_WINDOWS, SAMPLE_WAVES = 106, 2, 6


@dataclass(frozen=True)
class QualityRecord:
    """Measured by the trainer on clips that it did not train on, with the weights as they are stored.

    Attributes:
        fraction_of_mean: error as a fraction of keeping the mean; see `metrics.ErrorFigures`.
        normalised_l1: mean absolute error in standard deviations of each column.
        mean_l1: the same of keeping the mean.
        num_clips: held-out clips.
        num_frames: of them.
        patch_nums: the schedule that the codec was trained and measured with.
        sample_digest: `sample_digest` of the model.
    """

    fraction_of_mean: float
    normalised_l1: float
    mean_l1: float
    num_clips: int
    num_frames: int
    patch_nums: tuple[int, ...]
    sample_digest: str

    def to_json(self) -> str:
        """Returns canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @staticmethod
    def from_json(text: str, name: str) -> QualityRecord:
        """Reads what `to_json` wrote.

        Args:
            text: the JSON.
            name: of the checkpoint, for messages.

        Raises:
            CheckpointError: it is no record, or holds values that no codec can have.
        """
        problem = CheckpointError(
            f"{name}: metadata key {METADATA_KEY!r} holds no quality record ({text[:80]!r}): it was damaged or "
            "written by another version; take the checkpoint from where it was trained, or remove the key"
        )
        try:
            values = json.loads(text)
        except ValueError as error:
            raise problem from error
        names = {field.name for field in fields(QualityRecord)}
        if not isinstance(values, dict) or set(values) != names:
            raise problem
        numbers = [values[key] for key in ("fraction_of_mean", "normalised_l1", "mean_l1", "num_clips", "num_frames")]
        schedule = values["patch_nums"]
        if (
            not all(_is_number(number) for number in numbers)
            or not isinstance(schedule, list)
            or not all(isinstance(patch_num, int) for patch_num in schedule)
            or not isinstance(values["sample_digest"], str)
        ):
            raise problem
        return QualityRecord(**{**values, "patch_nums": tuple(schedule)})


def record_from_bytes(data: bytes, name: str) -> QualityRecord | None:
    """Reads the record from a checkpoint's bytes; None where it carries none, as every .pt file.

    Args:
        data: a whole .pt, .pth or .safetensors file.
        name: its name; see `checkpoint.read_checkpoint`.

    Raises:
        CheckpointError: the file or its record cannot be read.
    """
    _, metadata = tensors_from_bytes(data, name)
    return record_from_metadata(metadata, name)


def record_from_metadata(metadata: Mapping[str, str], name: str) -> QualityRecord | None:
    """Reads the record from safetensors metadata; None where there is none.

    Raises:
        CheckpointError: there is one that cannot be read.
    """
    text = metadata.get(METADATA_KEY)
    return None if text is None else QualityRecord.from_json(text, name)


def sample_windows(model: BitwiseVAE) -> Tensor:
    """Makes smooth motion about a model's own mean, the same on every machine: (SAMPLE_WINDOWS, 2T, M) float64."""
    rng = np.random.Generator(np.random.PCG64(SAMPLE_SEED))
    shape = (SAMPLE_WINDOWS, 1, model.motion_dim, SAMPLE_WAVES)
    periods, phases = rng.uniform(0.2, 2.0, shape), rng.uniform(0, 2 * math.pi, shape)
    time = np.arange(2 * model.window_frames).reshape(1, -1, 1, 1) / model.window_frames
    waves = np.sin(2 * math.pi * time / periods + phases).sum(axis=-1) * math.sqrt(2 / SAMPLE_WAVES)
    mean, std = (tensor.detach().cpu().double() for tensor in (model.motion_mean, model.motion_std))
    return mean + std * torch.from_numpy(waves)


def sample_digest(model: BitwiseVAE) -> str:
    """SHA-256 (hex) over schedule, shape and bits of `sample_windows`, encoded in float64 on the CPU.

    It is equal for equal weights, statistics and schedule on every machine; another schedule gives another one
    even where all shapes agree.
    """
    exact = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        prev, this = exact.quant_to_vqidx(*sample_windows(model).chunk(2, dim=1))
    if this is None:
        raise RuntimeError("bits of both halves were asked for")
    packed = pack_bits_torch(torch.stack([prev, this], dim=1))
    digest = hashlib.sha256(f"{list(model.patch_nums)} {tuple(packed.shape)}\n".encode())
    digest.update(packed.numpy().tobytes())
    return digest.hexdigest()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
