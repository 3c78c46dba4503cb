"""Errors and bit statistics against hand-computed cases, and that cutting a corpus changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitwise_vae.bits import pack_bits
from bitwise_vae.config import MotionGroup
from bitwise_vae.training.metrics import MAX_HASHES, CodeStatistics, ReconstructionError

GROUPS = (MotionGroup("face", 0, 2, ""), MotionGroup("jaw", 2, 3, "rad"))


def an_error(mean=(0.0, 0.0, 0.0), std=(1.0, 2.0, 4.0), fps=10.0):
    return ReconstructionError(mean, std, GROUPS, fps)


def test_reconstruction_error_hand_computed():
    original = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 4.0]])
    decoded = np.array([[1.0, 0.0, 4.0], [2.0, 2.0, 8.0]])
    error = an_error()
    error.add(original, decoded)
    figures = error.figures()
    assert figures.num_frames == 2
    assert figures.normalised_l1 == pytest.approx(
        (1 / 2 + 1 / 2 + 1 / 2) / 3
    )  # a column: sum 1, 2 / 2, 4 / 4, 2 frames
    assert figures.mean_l1 == pytest.approx((4 / 2 + 2 / 2 + 2 / 2) / 3)
    assert figures.fraction_of_mean == pytest.approx(1.5 / 4)
    face, jaw = figures.groups
    assert (face.name, face.unit, jaw.unit) == ("face", "", "rad")
    assert face.mean_absolute == pytest.approx((1 / 2 + 2 / 2) / 2)
    assert jaw.mean_absolute == pytest.approx(2.0)
    assert face.velocity == pytest.approx((1.0 + 2.0) / 2 * 10)
    assert jaw.velocity == pytest.approx(4 * 10)


def test_reconstruction_error_jerk_of_a_cubic():
    frames = np.arange(8.0)
    original = np.stack([frames**3, frames, frames], axis=1)
    error = an_error(fps=2.0)
    error.add(original, original * [2, 1, 1])
    face, jaw = error.figures().groups
    assert face.jerk == pytest.approx(6 * 8 / 2)  # third difference 6, times fps^3, mean of two columns
    assert face.jerk_ratio == pytest.approx(2.0)
    assert jaw.jerk_ratio == 0.0


def test_reconstruction_error_padding_does_not_count():
    motion, decoded = np.random.default_rng(0).normal(size=(2, 2, 9, 3))
    padded_motion = np.concatenate([np.zeros((2, 4, 3)), motion], axis=1)
    padded_decoded = np.concatenate([np.ones((2, 4, 3)), decoded], axis=1)
    plain, padded = an_error(), an_error()
    plain.add(motion, decoded)
    padded.add(padded_motion, padded_decoded, np.arange(13) >= np.full((2, 1), 4))
    assert padded.figures() == plain.figures()


def test_reconstruction_error_merge_equals_one_pass():
    motion, decoded = np.random.default_rng(1).normal(size=(2, 6, 9, 3))
    whole, first, second = an_error(), an_error(), an_error()
    whole.add(motion, decoded)
    first.add(motion[:2], decoded[:2])
    second.add(motion[2:], decoded[2:])
    first.merge(second)
    merged, wanted = first.figures(), whole.figures()
    assert merged.num_frames == wanted.num_frames
    assert merged.fraction_of_mean == pytest.approx(wanted.fraction_of_mean)
    assert merged.groups[0].jerk == pytest.approx(wanted.groups[0].jerk)


def test_reconstruction_error_of_constant_motion():
    error = an_error()
    error.add(np.zeros((4, 3)), np.ones((4, 3)))
    assert error.figures().fraction_of_mean == math.inf


def test_reconstruction_error_refuses_other_shapes():
    with pytest.raises(ValueError, match="one shape"):
        an_error().add(np.zeros((4, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="is_valid"):
        an_error().add(np.zeros((4, 3)), np.zeros((4, 3)), np.ones(5, bool))
    with pytest.raises(ValueError, match="no valid frame"):
        an_error().figures()


def test_code_statistics_hand_computed():
    bits = np.zeros((4, 3, 8), np.uint8)  # scales of 1 and 2 tokens
    bits[:2, 0, 0] = 1
    bits[:, 1:, 1] = 1
    bits[:2, 1:, 2:4] = 1
    statistics = CodeStatistics((1, 2), 8)
    statistics.add(bits)
    figures = statistics.figures()
    assert figures.num_tokens == (4, 8)
    assert figures.share_of_ones[0].tolist() == [0.5, *[0.0] * 7]
    assert figures.entropy[0].tolist() == [1.0, *[0.0] * 7]
    assert figures.mean_entropy == pytest.approx((1 / 8, 2 / 8))
    assert figures.distinct_tokens == (2, 2)
    assert set(figures.dead_bits) == {(0, bit) for bit in range(1, 8)} | {(1, bit) for bit in (0, 1, 4, 5, 6, 7)}
    assert figures.correlation[1, 2, 3] == pytest.approx(1.0)
    assert figures.correlation[1, 2, 1] == 0.0
    assert figures.mean_correlation == pytest.approx((0.0, 2 / 56))


def test_code_statistics_packed_and_merged_are_the_same():
    bits = np.random.default_rng(2).integers(0, 2, (10, 2, 7, 16))
    whole, first, second = (CodeStatistics((1, 2, 4), 16) for _ in range(3))
    whole.add(bits)
    first.add_packed(pack_bits(bits[:3]))
    second.add_packed(pack_bits(bits[3:]))
    first.merge(second)
    ours, theirs = first.figures(), whole.figures()
    np.testing.assert_array_equal(ours.correlation, theirs.correlation)
    assert ours.distinct_tokens == theirs.distinct_tokens
    assert ours.distinct_tokens[0] == len(np.unique(pack_bits(bits)[:, :, 0].reshape(-1, 2), axis=0))


def test_distinct_tokens_of_many_are_estimated():
    tokens = np.unique(np.random.default_rng(3).integers(0, 2**64, 300_000, dtype=np.uint64))
    bits = np.unpackbits(tokens.view(np.uint8)).reshape(-1, 1, 64)
    statistics = CodeStatistics((1,), 64)
    for part in np.array_split(bits, 10):
        statistics.add(part)
        statistics.add(part[::7])  # the same tokens again
    assert len(tokens) > 4 * MAX_HASHES
    assert statistics.figures().distinct_tokens == (pytest.approx(len(tokens), rel=0.02),)


def test_code_statistics_refuses_other_schedules():
    with pytest.raises(ValueError, match="wanted bits"):
        CodeStatistics((1, 2), 8).add(np.zeros((4, 4, 8)))
    with pytest.raises(ValueError, match="no token"):
        CodeStatistics((1, 2), 8).figures()


def test_distinct_tokens_are_never_more_than_tokens():
    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(0, 2, (MAX_HASHES + 4000, 1, 32), dtype=np.uint8)
        statistics = CodeStatistics((1,), 32)
        statistics.add(tokens)
        assert 0.97 * len(tokens) < statistics.figures().distinct_tokens[0] <= len(tokens)
