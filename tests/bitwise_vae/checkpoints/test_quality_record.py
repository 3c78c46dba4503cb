"""What a checkpoint says of itself survives the file, belongs to no digest, and is refused when damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bitwise_vae.checkpoints.checkpoint import (
    CheckpointError,
    checkpoint_bytes,
    random_checkpoint,
    read_checkpoint,
    round_weights,
    weights_digest,
)
from bitwise_vae.checkpoints.digest import sample_digest, sample_windows
from bitwise_vae.checkpoints.quality_record import QualityRecord, record_from_bytes
from bitwise_vae.config import BitwiseVAEConfig

CONFIG = BitwiseVAEConfig(motion_dim=6, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2)


@pytest.fixture
def model():
    return random_checkpoint(CONFIG, np.arange(6.0), np.ones(6), seed=1)


def a_record(model):
    return QualityRecord(0.2, 0.16, 0.8, 3, 600, model.patch_nums, sample_digest(model))


def test_checkpoints_with_a_record_are_reproducible(model):
    assert len({checkpoint_bytes(model, a_record(model)) for _ in range(12)}) == 1


def test_record_round_trip(model):
    record = a_record(model)
    data = checkpoint_bytes(model, record)
    assert record_from_bytes(data, "a.safetensors") == record
    assert weights_digest(read_checkpoint(data, "a.safetensors")) == weights_digest(model)
    assert record.to_json() == json.dumps(json.loads(record.to_json()), sort_keys=True, separators=(",", ":"))


def test_record_is_absent_where_none_was_written(model, tmp_path):
    assert record_from_bytes(checkpoint_bytes(model), "a.safetensors") is None
    path = tmp_path / "a.pt"
    torch.save(model.state_dict(), path)
    assert record_from_bytes(path.read_bytes(), "a.pt") is None


@pytest.mark.parametrize(
    "text", ["no json", "[]", "{}", '{"fraction_of_mean": 0.1}'], ids=["text", "list", "empty", "part"]
)
def test_record_damaged_is_refused(text):
    with pytest.raises(CheckpointError, match="metadata key 'quality'"):
        QualityRecord.from_json(text, "a.safetensors")


@pytest.mark.parametrize(("field", "value"), [("normalised_l1", -1), ("num_clips", True), ("patch_nums", "1,2")])
def test_record_with_impossible_values_is_refused(model, field, value):
    values = {**json.loads(a_record(model).to_json()), field: value}
    with pytest.raises(CheckpointError, match="quality"):
        QualityRecord.from_json(json.dumps(values), "a.safetensors")


def test_sample_digest_names_weights_and_schedule(model):
    again = random_checkpoint(CONFIG, np.arange(6.0), np.ones(6), seed=1)
    assert sample_digest(again) == sample_digest(model)
    other = random_checkpoint(CONFIG, np.arange(6.0), np.ones(6), seed=2)
    assert sample_digest(other) != sample_digest(model)
    two_scales = read_checkpoint(checkpoint_bytes(model), "a.safetensors", overrides={"patch_nums": (3, 5)})
    assert sample_digest(two_scales) != sample_digest(model)  # as many tokens, and every shape agrees


def test_sample_windows_move_about_the_mean(model):
    windows = sample_windows(model)
    assert windows.shape == (2, 10, 6)
    assert windows.dtype == torch.float64
    assert (windows.mean(dim=(0, 1)) - model.motion_mean).abs().max() < 1.5


def test_sample_digest_leaves_the_model_alone(model):
    sample_digest(model)
    assert next(model.parameters()).dtype == torch.float32


def test_checkpoint_bytes_in_half_precision(model):
    with pytest.raises(CheckpointError, match="would change when stored"):
        checkpoint_bytes(model, None, torch.float16)
    round_weights(model, torch.float16)
    data = checkpoint_bytes(model, a_record(model), torch.float16)
    read = read_checkpoint(data, "a.safetensors")
    assert weights_digest(read) == weights_digest(model)
    assert sample_digest(read) == record_from_bytes(data, "a.safetensors").sample_digest
    assert len(data) < len(checkpoint_bytes(model)) * 0.7
