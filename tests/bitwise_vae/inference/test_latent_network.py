"""The parts of the inference network that a CPU's bfloat16 computes in its own way, against the plain ones."""

import pytest
import torch
from torch.nn import functional as F

from bitwise_vae.inference.latent_network import (
    LatentNetwork,
    attend,
    attend_by_products,
    has_short_products,
    widen,
    widen_in_one,
)
from bitwise_vae.model import BitwiseVAE

HIDDEN, MLP = 64, 256
WINDOWS, HEADS, FRAMES, HEAD_DIM = 3, 4, 30, 16
HALF_STEP = 2.0**-8
"""The largest relative error of one rounding to bfloat16."""

needs_short_products = pytest.mark.skipif(
    not has_short_products(), reason="hardware: this processor multiplies no bfloat16"
)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@needs_short_products
@pytest.mark.parametrize("has_bias", [True, False])
def test_widening_in_one_is_rounded_once(has_bias: bool) -> None:
    x, weight = normal(0, WINDOWS, FRAMES, HIDDEN), normal(1, MLP, HIDDEN) / 8
    bias = normal(2, MLP) if has_bias else None
    exact = F.gelu(F.linear(x.double(), weight.double(), None if bias is None else bias.double()), approximate="tanh")
    found = widen_in_one(x, weight, bias)
    plain = widen(x, weight, bias)
    assert found.dtype == torch.bfloat16
    assert found.shape == plain.shape == exact.shape
    assert torch.all((found - exact).abs() <= HALF_STEP * exact.abs() + 1e-5)
    assert (found - exact).abs().mean() < (plain - exact).abs().mean()


def test_attention_in_products_equals_the_fused_one() -> None:
    query, key, value = (normal(seed, WINDOWS, HEADS, FRAMES, HEAD_DIM) for seed in (3, 4, 5))
    exact = attend(query.double(), key.double(), value.double(), 0.1)
    found = attend_by_products(query, key, value, 0.1)
    assert found.shape == exact.shape == (WINDOWS, FRAMES, HEADS, HEAD_DIM)
    assert (found - exact).abs().max() < 8 * HALF_STEP * value.abs().max()


@pytest.mark.parametrize(
    ("dtype", "is_supported", "is_in_one"),
    [(torch.bfloat16, True, True), (torch.bfloat16, False, False), (torch.float32, True, False)],
)
def test_the_processor_decides_how_bfloat16_widens(
    tiny_model: BitwiseVAE,
    tiny_windows: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    is_supported: bool,
    is_in_one: bool,
) -> None:
    """Seen at oneDNN's operation; the plain one stands in for it, since not every processor has it."""
    in_one: list[torch.dtype] = []

    def stand_in(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *_: object) -> torch.Tensor:
        in_one.append(x.dtype)
        return widen(x, weight, bias)

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_supported)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", stand_in)
    network = LatentNetwork(tiny_model, dtype, torch.device("cpu"))
    with torch.inference_mode():
        network.latent(tiny_windows)
    assert in_one == [dtype] * (tiny_model.config.depth if is_in_one else 0)
