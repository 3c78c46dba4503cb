import numpy as np
import torch

from bitwise_vae.quantizer import MultiScaleQuantizer, code_from_bits

CHANNELS = torch.tensor(
    [
        [1.0, 0.2, -0.4, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [-1.0, -1.0, 1.0, 1.0],
        [3.0, 3.0, 3.0, 3.0],
    ]
)
"""Four channels of four frames. With patch_nums (1, 2, 4) and codes of +-0.5, by hand:

channel 0: mean 0.2 -> 1; left 0.5 -0.3 -0.9 -0.5, means 0.1 -0.7 -> 1 0, spread 0.5 0.25 -0.25 -0.5;
           left 0 -0.55 -0.65 0 -> 0 0 0 0, the first and last exactly zero.
channel 1: mean 0 -> 0; left 0.5 everywhere -> 1 1; left 0 everywhere -> 0 0 0 0.
channel 2: mean 0 -> 0; left -0.5 -0.5 1.5 1.5 -> 0 1; left 0 -0.25 1.25 1 -> 0 0 1 1.
channel 3: 1; left 2.5 -> 1 1; left 2 -> 1 1 1 1.
"""
BITS_BY_HAND = [
    [1, 0, 0, 1],
    [1, 1, 0, 1],
    [0, 1, 1, 1],
    [0, 0, 0, 1],
    [0, 0, 0, 1],
    [0, 0, 1, 1],
    [0, 0, 1, 1],
]
QUANTIZED_BY_HAND = [
    [0.5, 0.25, -0.25, -0.5],
    [-0.5, -0.5, -0.5, -0.5],
    [-1.5, -1.25, 0.25, 0.5],
    [1.5, 1.5, 1.5, 1.5],
]


def test_bits_from_latent_by_hand() -> None:
    bits = MultiScaleQuantizer((1, 2, 4)).bits_from_latent(CHANNELS.t()[None])
    assert bits.dtype == torch.int32
    assert bits[0].tolist() == BITS_BY_HAND


def test_quantized_from_bits_by_hand() -> None:
    quantized = MultiScaleQuantizer((1, 2, 4)).quantized_from_bits(torch.tensor([BITS_BY_HAND]))
    np.testing.assert_allclose(quantized[0].t(), QUANTIZED_BY_HAND, atol=1e-7)


def test_next_scale_features_by_hand() -> None:
    quantizer = MultiScaleQuantizer((1, 2, 4))
    features = quantizer.next_scale_features(torch.tensor([BITS_BY_HAND]), 2)
    assert features.shape == (1, 6, 4)
    assert features[0, :2, 0].tolist() == [0.5, 0.5]
    assert features[0, 2:, 0].tolist() == [1.0, 0.75, 0.25, 0.0]


def test_code_from_bits_lies_on_the_unit_sphere() -> None:
    code = code_from_bits(torch.tensor([[1, 0, 0, 1]]))
    assert code.tolist() == [[0.5, -0.5, -0.5, 0.5]]


def test_forward_sums_what_its_bits_say() -> None:
    quantizer = MultiScaleQuantizer((1, 2, 3, 7))
    output = quantizer(torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(2)))
    np.testing.assert_allclose(output.quantized, quantizer.quantized_from_bits(output.bits), atol=1e-6)
    assert output.losses.shape == (4,)


def test_forward_and_bits_from_latent_agree() -> None:
    quantizer = MultiScaleQuantizer((1, 2, 3, 7))
    latent = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(quantizer(latent).bits, quantizer.bits_from_latent(latent))


def test_forward_reads_zero_as_zero() -> None:
    """Zeros: bit 0 and code -0.5; then 0.5 everywhere: 1 1; then zero again."""
    bits = MultiScaleQuantizer((1, 2, 4))(torch.zeros(1, 4, 4)).bits
    assert bits[0, :, 0].tolist() == [0, 1, 1, 0, 0, 0, 0]


def test_forward_loss_by_hand() -> None:
    """One token, two channels at 45 degrees: both codes are exact, both bits certain."""
    losses = MultiScaleQuantizer((1,))(torch.tensor([[[2.0, 2.0]]])).losses
    np.testing.assert_allclose(losses, [0.0], atol=1e-6)
    side = MultiScaleQuantizer((1,))(torch.tensor([[[1.0, 0.0]]])).losses
    squared_distance = (1 - 0.5**0.5) ** 2 + 0.5
    np.testing.assert_allclose(side, [0.2 * squared_distance], atol=1e-6)


def test_forward_passes_gradients_straight_through() -> None:
    latent = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(4), requires_grad=True)
    MultiScaleQuantizer((1, 2, 3, 7))(latent).quantized.square().sum().backward()
    assert latent.grad is not None
    assert (latent.grad != 0).all()


def test_flipped_bits_without_flips_are_clean() -> None:
    quantizer = MultiScaleQuantizer((1, 2, 3, 7))
    latent = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(5))
    np.testing.assert_array_equal(quantizer.flipped_bits_from_latent(latent, 0.0), quantizer.bits_from_latent(latent))


def test_flipped_bits_at_ratio_one_are_opposite_at_the_first_scale() -> None:
    quantizer = MultiScaleQuantizer((1, 2, 3, 7))
    latent = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(6))
    flipped, clean = quantizer.flipped_bits_from_latent(latent, 1.0), quantizer.bits_from_latent(latent)
    assert (flipped[:, 0] == 1 - clean[:, 0]).all()
