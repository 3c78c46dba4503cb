"""Every kernel against torch's operations in float64, in Triton's interpreter where there is no GPU."""

import pytest
import torch
from torch.nn import functional as F

from bitwise_vae.bits import pack_bits_torch
from bitwise_vae.inference.window_spans import cut_windows
from bitwise_vae.quantizer import MultiScaleQuantizer

kernels = pytest.importorskip("bitwise_vae.inference.kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF_ERROR = 4e-3
POISON = 170


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def whole(pair: torch.Tensor) -> torch.Tensor:
    """What a pair stands for, in float64."""
    return pair[0].double() + pair[1].double() / 2048


def empty_pair(*shape: int) -> torch.Tensor:
    return torch.full((2, *shape), torch.nan, dtype=torch.float16, device=DEVICE)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def test_pair_of_keeps_the_digits_of_float32() -> None:
    x = drawn(50, 7) * 10.0 ** drawn(50, 7, seed=1)
    assert ((whole(kernels.pair_of(x)) - x.double()).abs() <= x.double().abs() * 2e-7 + 1e-11).all()


def test_linear_of_pairs_is_as_exact_as_float32() -> None:
    a, weight, bias, residual = drawn(150, 80), drawn(96, 80, seed=1) / 9, drawn(96, seed=2), drawn(150, 96, seed=3)
    wanted = a.double() @ weight.double().T + bias + residual
    out, pair = empty(150, 96), empty_pair(150, 96)
    kernels.linear(kernels.pair_of(a), kernels.pair_of(weight), [out, pair], bias=bias, residual=residual)
    float32_error = (F.linear(a, weight, bias) + residual - wanted).abs().max()
    assert (out - wanted).abs().max() < 2 * float32_error
    assert (whole(pair) - wanted).abs().max() < 2 * float32_error


@pytest.mark.parametrize("activation", ["none", "leaky", "gelu"])
def test_linear_of_halves_applies_the_activation(activation: str) -> None:
    a, weight, bias = drawn(130, 48).half(), drawn(40, 48, seed=1).half() / 7, drawn(40, seed=2)
    wanted = a.double() @ weight.double().T + bias
    if activation != "none":
        wanted = F.leaky_relu(wanted, 0.2) if activation == "leaky" else F.gelu(wanted, approximate="tanh")
    out = empty(130, 40, dtype=torch.float16)
    kernels.linear(a, weight, [out], bias=bias, activation=activation)
    assert (out - wanted).abs().max() < HALF_ERROR


@pytest.mark.parametrize("has_pairs", [False, True])
def test_normalise_equals_layer_norm_of_the_shifted(has_pairs: bool) -> None:
    x, shift, weight, bias = 3 * drawn(19, 48), drawn(48, seed=1), drawn(48, seed=2), drawn(48, seed=3)
    wanted = F.layer_norm((x + shift).double(), (48,), weight.double(), bias.double())
    out = empty_pair(19, 48) if has_pairs else empty(19, 48)
    kernels.normalise(x, shift, weight, bias, 1e-5, out)
    assert ((whole(out) if has_pairs else out) - wanted).abs().max() < 5e-6


@pytest.mark.parametrize("window_frames", [7, 20, 100])
@pytest.mark.parametrize("has_pairs", [False, True])
def test_attend_lets_prev_see_prev_and_this_see_both(window_frames: int, has_pairs: bool) -> None:
    windows, heads, head_dim = 2, 2, 16
    hidden, rows = heads * head_dim, 2 * windows * window_frames
    qkv = drawn(rows, 3 * hidden)
    query, key, value = qkv.double().view(windows, -1, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    mask = torch.zeros(2 * window_frames, 2 * window_frames, dtype=torch.float64, device=DEVICE)
    mask[:window_frames, window_frames:] = -torch.inf
    wanted = F.scaled_dot_product_attention(query, key, value, mask, scale=hidden**-0.5)
    out = empty_pair(rows, hidden) if has_pairs else empty(rows, hidden, dtype=torch.float16)
    kernels.attend(kernels.pair_of(qkv) if has_pairs else qkv.half(), windows, heads, hidden**-0.5, out)
    error = ((whole(out) if has_pairs else out) - wanted.transpose(1, 2).reshape(rows, hidden)).abs().max()
    assert error < (2e-6 if has_pairs else HALF_ERROR)


@pytest.mark.parametrize("has_pairs", [False, True])
def test_cut_windows_gives_zeros_outside_of_clips_and_beyond_the_dims(has_pairs: bool) -> None:
    frames, mean, std, position = drawn(70, 10), drawn(10, seed=1), drawn(10, seed=2).abs() + 0.5, drawn(40, 10, seed=3)
    spans = torch.tensor([[0, 30, 0], [0, 30, 10], [30, 70, 5], [30, 70, 25], [0, 0, 0]], device=DEVICE)
    wanted = ((cut_windows(frames, spans, 20) - mean) / std + position).reshape(-1, 10)
    out = empty_pair(200, 16) if has_pairs else empty(200, 16)
    kernels.cut_windows(frames, spans, (mean, std), position, out)
    found = whole(out) if has_pairs else out
    assert (found[:, :10] - wanted).abs().max() < 1e-6
    assert (found[:, 10:] == 0).all()


@pytest.mark.parametrize("patch_nums", [(1, 5, 25, 50, 100), (1, 10, 20, 50, 100), (1, 3, 7, 20), (4,), (1, 2)])
def test_quantize_equals_the_quantizer(patch_nums: tuple[int, ...]) -> None:
    latent = drawn(3, patch_nums[-1], 32)
    wanted = pack_bits_torch(MultiScaleQuantizer(patch_nums).bits_from_latent(latent))
    packed = torch.full_like(wanted, POISON)
    kernels.quantize(latent.clone(), patch_nums, packed)
    torch.testing.assert_close(packed, wanted, rtol=0, atol=0)


def test_quantize_codes_zero_as_bit_zero() -> None:
    packed = torch.full((1, 3, 2), POISON, dtype=torch.uint8, device=DEVICE)
    kernels.quantize(torch.zeros(1, 2, 16, device=DEVICE), (1, 2), packed)
    assert (packed[0, 0] == 0).all()
