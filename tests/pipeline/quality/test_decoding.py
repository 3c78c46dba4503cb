"""Errors of a decoded sample, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwise_vae import BitwiseVAEConfig, MotionGroup, pack_bits, random_checkpoint
from pipeline.quality.decoding import decode_sample, measure_sample
from pipeline.quality.sample import WindowSample

GROUPS = (MotionGroup("mouth", 0, 1, ""), MotionGroup("head", 1, 2, "rad"))
MEAN, STD = np.array([1.0, 0.0]), np.array([2.0, 0.5])


@pytest.fixture(scope="module")
def model():
    config = BitwiseVAEConfig(
        motion_dim=2, code_dim=8, patch_nums=(1, 2, 4), hidden_dim=8, depth=1, num_heads=1, motion_groups=GROUPS
    )
    return random_checkpoint(config, MEAN, STD, 0)


def sample_of(motion, is_real=None):
    count, frames = motion.shape[:2]
    real = np.ones((count, frames), bool) if is_real is None else is_real
    names = tuple(f"c{n}" for n in range(count))
    bits = np.zeros((count, 2, 7), np.uint8)
    return WindowSample(motion.astype(np.float32), real, bits, names, names, np.zeros(count, np.int64))


def test_measure_sample_by_hand(model):
    this = np.array([[3.0, 0.5], [5.0, -0.5], [3.0, 0.5], [5.0, -0.5]])
    motion = np.concatenate([np.zeros((4, 2)), this])[None]
    decoded = motion + np.array([1.0, 0.25])
    found = measure_sample(model, sample_of(motion), decoded.astype(np.float32))
    assert found.as_trained.num_frames == 4
    assert found.as_trained.normalised_l1 == pytest.approx((1 / 2 + 0.25 / 0.5) / 2)
    mouth, head = found.groups
    assert mouth.fraction_of_mean == pytest.approx(1 / 3)  # mean distance from 1 is 3
    assert mouth.fraction_of_own_mean == pytest.approx(1.0)  # from its own mean 4 it is 1
    assert head.fraction_of_mean == head.fraction_of_own_mean == pytest.approx(0.5)
    assert (mouth.deviation_ratio, head.deviation_ratio) == (pytest.approx(0.5), pytest.approx(1.0))


def test_measure_sample_leaves_padding_and_prev_out(model):
    motion = np.random.default_rng(0).normal(size=(3, 8, 2))
    decoded = motion.copy()
    decoded[:, :4] += 9
    is_real = np.ones((3, 8), bool)
    is_real[1, 6:] = False
    decoded[1, 6:] += 9
    assert measure_sample(model, sample_of(motion, is_real), decoded).as_trained.normalised_l1 < 1e-6


def test_measure_sample_has_no_share_where_nothing_moves(model):
    motion = np.tile(MEAN, (2, 8, 1))
    found = measure_sample(model, sample_of(motion), (motion + 1).astype(np.float32))
    assert found.fraction_of_own_mean is None
    assert [group.fraction_of_own_mean for group in found.groups] == [None, None]


def test_decode_sample_is_the_model_s_own_decoding(model):
    bits = torch.randint(0, 2, (11, 2, 7, 8), generator=torch.Generator().manual_seed(3))
    packed = pack_bits(bits.numpy()).reshape(11, 2, 7)
    with torch.no_grad():
        wanted = torch.cat(model.vqidx_to_motion(bits[:, 0], bits[:, 1]), dim=1).numpy()
    np.testing.assert_allclose(decode_sample(model, packed), wanted, atol=1e-5)
    fewer = decode_sample(model, packed, num_scales=2)
    other = packed.copy()
    other[:, :, 3:] ^= 255  # the last scale's bits
    np.testing.assert_array_equal(decode_sample(model, other, num_scales=2), fewer)
    assert np.abs(fewer - wanted).max() > 1e-3


def test_head_spreads_over_the_sample():
    sample = sample_of(np.arange(10.0)[:, None, None] * np.ones((10, 8, 2)))
    assert sample.head(3).clip_ids == ("c0", "c4", "c9")
    assert sample.head(99) is sample
    assert len(sample.head(4).motion) == 4
