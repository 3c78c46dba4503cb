"""The fused encoder against the model, in Triton's interpreter where there is no GPU."""

import dataclasses

import numpy as np
import pytest
import torch

from bitwise_vae.checkpoints.checkpoint import random_checkpoint
from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.inference.fusible import KernelError, fused_kernels, is_fusible
from bitwise_vae.inference.window_spans import spans_of_windows
from bitwise_vae.model import BitwiseVAE

fused_network = pytest.importorskip("bitwise_vae.inference.fused_network")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_WINDOWS = 3
SMALL = BitwiseVAEConfig(motion_dim=10, code_dim=16, hidden_dim=64, depth=3, num_heads=4, patch_nums=(1, 3, 5, 20))


@pytest.fixture
def model() -> BitwiseVAE:
    """A model whose norms and biases are not those of a fresh one, so that folding them shows."""
    found = random_checkpoint(SMALL, np.linspace(-1, 1, 10), np.linspace(0.5, 2, 10), seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return found


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randn(NUM_WINDOWS, 40, 10, generator=torch.Generator().manual_seed(7)).cumsum(dim=1)


def latent_of(model: BitwiseVAE, windows: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    network = fused_network.FusedNetwork(model, dtype, DEVICE, len(windows))
    spans = spans_of_windows(len(windows), model.window_frames).to(DEVICE)
    return network.latent(windows.flatten(0, 1).to(DEVICE), spans).cpu()


def error_of(latent: torch.Tensor, model: BitwiseVAE, windows: torch.Tensor) -> float:
    exact = BitwiseVAE(model.config).double()
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        wanted = exact.encode_latent(windows.double())
    return float((latent - wanted).norm() / wanted.norm())


def test_latent_is_as_exact_as_the_model_in_float32(model: BitwiseVAE, windows: torch.Tensor) -> None:
    with torch.no_grad():
        plain = model.encode_latent(windows)
    assert error_of(latent_of(model, windows), model, windows) < 2 * error_of(plain, model, windows)


def test_latent_in_float16_is_near(model: BitwiseVAE, windows: torch.Tensor) -> None:
    assert error_of(latent_of(model, windows, torch.float16), model, windows) < 0.02


def test_check_passes_for_the_weights_it_was_made_of(model: BitwiseVAE) -> None:
    fused_network.FusedNetwork(model, torch.float32, DEVICE, 2).check(model)


def test_check_finds_another_code(model: BitwiseVAE) -> None:
    network = fused_network.FusedNetwork(model, torch.float32, DEVICE, 2)
    with torch.no_grad():
        model.encoder.code_mapping.bias.add_(1)
    with pytest.raises(KernelError, match="another code than torch"):
        network.check(model)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"patch_nums": (1, 129)}, False),
        ({"num_heads": 2, "hidden_dim": 24}, False),
        ({"code_dim": 24}, False),
        ({"code_dim": 8}, False),
    ],
)
def test_is_fusible_says_which_sizes_the_kernels_take(change: dict, fits: bool) -> None:
    assert is_fusible(dataclasses.replace(SMALL, **change)) == fits


def test_fused_kernels_are_none_on_a_cpu() -> None:
    assert fused_kernels(torch.device("cpu")) == ""
