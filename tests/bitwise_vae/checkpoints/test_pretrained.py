"""The codecs inside the package: small, with a record of their own bits, and a card that tells the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bitwise_vae
from bitwise_vae import PRETRAINED, load_checkpoint, pretrained_bytes, record_from_bytes, sample_digest, weights_digest
from bitwise_vae.config import ARKIT_GROUPS, FLAME_GROUPS

GROUPS = {"demo": FLAME_GROUPS, "demo-arkit": ARKIT_GROUPS}


def test_pretrained_names_every_codec() -> None:
    assert set(PRETRAINED) == set(GROUPS)


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_pretrained_codec_is_small_and_knows_its_columns_and_quality(name: str) -> None:
    data = pretrained_bytes(name)
    assert len(data) <= 3_000_000
    model, record = load_checkpoint(data), record_from_bytes(data, name)
    config = model.config
    assert (config.motion_groups, config.motion_dim) == (GROUPS[name], GROUPS[name][-1].stop)
    assert (config.patch_nums, config.code_dim, config.fps) == ((1, 5, 25, 50, 100), 32, 25)
    assert record is not None
    assert record.sample_digest == sample_digest(model)
    assert record.fraction_of_mean < 0.4
    assert all(torch.equal(weight, weight.half().float()) for weight in model.parameters())


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_pretrained_codec_has_a_card_with_its_digest_and_figures(name: str) -> None:
    folder = Path(bitwise_vae.__file__).parent / "checkpoints" / "pretrained"
    card = (folder / PRETRAINED[name]).with_suffix(".md").read_text()
    data = pretrained_bytes(name)
    record = record_from_bytes(data, name)
    assert record is not None
    assert f"`--checkpoint {name}`" in card
    assert weights_digest(load_checkpoint(data)) in card
    assert f"{len(data):,} bytes" in card
    assert f"{record.fraction_of_mean:.3f}" in card
    assert "TODO" not in card
