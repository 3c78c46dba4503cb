"""What a checkpoint says about itself: its held-out error, and the digest that its bits give.

Knows models and bytes; no paths, no corpus. The record is part of no digest: equal weights are the same codec.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from bitwise_vae.checkpoints.tensors import CheckpointError, tensors_from_bytes

METADATA_KEY = "quality"


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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
