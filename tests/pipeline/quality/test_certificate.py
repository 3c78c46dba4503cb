"""The certificate: bits in float64, first flips, budgets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwise_vae import BitwiseVAEConfig, WindowEncoder, checkpoint_bytes, random_checkpoint, unpack_bits
from pipeline.contract.specs import Contract, Numerics
from pipeline.quality.certificate import VALUE_EDGES, certify_sample, exact_bits
from pipeline.quality.sample import WindowSample
from pipeline.stages.codec import codec_of_model


@pytest.fixture(scope="module")
def model():
    config = BitwiseVAEConfig(motion_dim=4, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2)
    return random_checkpoint(config, np.zeros(4), np.ones(4), 0)


@pytest.fixture(scope="module")
def contract(model, make_corpus):
    numerics = Numerics(device="cpu", torch="t", pyarrow="p")
    return Contract(codec=codec_of_model(model).spec, corpus=make_corpus(), numerics=numerics)


@pytest.fixture(scope="module")
def sample(model):
    motion = torch.randn(40, 10, 4, generator=torch.Generator().manual_seed(0)).cumsum(1) / 2
    bits = WindowEncoder(model, batch_size=32).encode_windows(motion).reshape(40, 2, -1)
    names = tuple(map(str, range(40)))
    return WindowSample(motion.numpy(), np.ones((40, 10), bool), bits, names, names, np.zeros(40, np.int64))


def test_exact_bits_are_the_signs_of_the_model_in_float64(model, sample):
    bits, values = exact_bits(model, torch.from_numpy(sample.motion))
    assert bits.shape == values.shape == (40, 2, 8, 8)
    np.testing.assert_array_equal(bits, values > 0)
    stored = unpack_bits(sample.bits.reshape(40, 2, 8, 1))
    assert np.abs(values[bits != stored]).max(initial=0) < 1e-5
    assert next(model.parameters()).dtype == torch.float32


def test_certify_sample_finds_equal_bits_by_order_and_batch(model, contract, sample):
    found = certify_sample(checkpoint_bytes(model), contract, sample)
    shares = {item.name: item.share for item in found.comparisons}
    names = ["stored in the dataset", "reversed order", "shuffled order", "batches of 1", "batches of 2"]
    assert list(shares) == [*names, "float32 / float64", "float16 / float64", "bfloat16 / float64"]
    assert all(shares[name] == 0 for name in names[:3])
    assert found.near_zero.sum() == 40 * 2 * 8 * 8
    assert len(found.near_zero) == len(VALUE_EDGES) + 1
    half = found.comparisons[-1]
    assert half.near_zero is not None
    assert half.first_flips == half.near_zero.sum() <= half.counts.differing.sum()
    assert 0 < half.largest_value < 0.1
    assert not half.counts_in_budget
    assert found.flip_rate < shares["bfloat16 / float64"]


def test_a_flipped_stored_bit_is_counted_at_its_scale_and_over_budget(model, contract, sample):
    bits = sample.bits.copy()
    bits[3, 1, 4] ^= 1  # byte 4 is the second token of the last scale
    wrong = WindowSample(sample.motion, sample.is_real, bits, sample.clip_ids, sample.sources, sample.start_frame)
    found = certify_sample(checkpoint_bytes(model), contract, wrong, other_precisions=False)
    assert found.comparisons[0].by_scale == [0, 0, 1]
    share = 1 / (40 * 2 * 8 * 8)
    assert found.flip_rate >= share
    assert any("stored in the dataset" in line for line in found.over_budget(share / 2))
    assert found.over_budget(0.5) == []
