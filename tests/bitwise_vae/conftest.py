"""Models and oracles that several test files share."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwise_vae.checkpoints.checkpoint import random_checkpoint
from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.model import BitwiseVAE

CLOSE_TO_ZERO = 1e-5


@dataclass(frozen=True)
class Golden:
    """Inputs and outputs of the original, and our model with the original's weights."""

    arrays: dict[str, np.ndarray]
    config: BitwiseVAEConfig
    model: BitwiseVAE

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    @property
    def prev(self) -> torch.Tensor:
        return self.tensor("motion")[:, : self.config.window_frames]

    @property
    def this(self) -> torch.Tensor:
        return self.tensor("motion")[:, self.config.window_frames :]


@pytest.fixture(scope="session", params=["tiny", "full_length"])
def golden(request: pytest.FixtureRequest, golden_folder: Path) -> Golden:
    with np.load(golden_folder / f"{request.param}.npz") as file:
        arrays = dict(file)
    config = BitwiseVAEConfig.from_json(str(arrays["config"]))
    model = BitwiseVAE(config).eval()
    prefix = "weights/"
    weights = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return Golden(arrays, config, model)


@pytest.fixture(scope="session")
def tiny_config() -> BitwiseVAEConfig:
    return BitwiseVAEConfig(motion_dim=6, code_dim=8, patch_nums=(1, 2, 3, 7), hidden_dim=24, depth=2, num_heads=3)


@pytest.fixture
def tiny_model(tiny_config: BitwiseVAEConfig) -> BitwiseVAE:
    return random_checkpoint(tiny_config, np.linspace(-1, 1, 6), np.linspace(0.5, 2, 6), seed=7)


@pytest.fixture
def tiny_windows() -> torch.Tensor:
    return torch.randn(9, 14, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def require_equal_bits() -> Callable[..., None]:
    """The rule for bits: a first difference may only stand where the signed value is close to zero."""
    return _require_equal_bits


def _require_equal_bits(found: np.ndarray, wanted: np.ndarray, latent: np.ndarray, patch_nums: tuple[int, ...]) -> None:
    """Compares bits (n, L, C) with the oracle's, which it computed from the latent (n, T, C) of that half."""
    assert found.shape == wanted.shape
    num_frames, code_dim = latent.shape[1:]
    residual = latent.astype(np.float64)
    differs_before = np.zeros((len(latent), code_dim), dtype=bool)
    begin = 0
    for patch_num in patch_nums:
        tokens = slice(begin, begin + patch_num)
        signed = np.stack([residual[:, part].mean(axis=1) for part in _parts(num_frames, patch_num)], axis=1)
        differs = found[:, tokens] != wanted[:, tokens]
        is_first = differs & ~differs_before[:, None]
        assert np.all(np.abs(signed[is_first]) < CLOSE_TO_ZERO)
        differs_before |= differs.any(axis=1)
        code = np.where(wanted[:, tokens] == 1, 1.0, -1.0) / np.sqrt(code_dim)
        residual = residual - _spread(code, num_frames)
        begin += patch_num


def _parts(num_frames: int, patch_num: int) -> list[slice]:
    edges = [(k * num_frames // patch_num, -(-(k + 1) * num_frames // patch_num)) for k in range(patch_num)]
    return [slice(*edge) for edge in edges]


def _spread(code: np.ndarray, num_frames: int) -> np.ndarray:
    patch_num = code.shape[1]
    place = ((np.arange(num_frames) + 0.5) * patch_num / num_frames - 0.5).clip(0, patch_num - 1)
    left = np.floor(place).astype(int)
    right = np.minimum(left + 1, patch_num - 1)
    share = (place - left)[:, None]
    return code[:, left] * (1 - share) + code[:, right] * share


@pytest.fixture
def original_json(tiny_config: BitwiseVAEConfig) -> str:
    """The tiny configuration as the original writes it."""
    values = {
        "MOTION_DIM": tiny_config.motion_dim,
        "V_CODE_DIM": tiny_config.code_dim,
        "V_PATCH_NUMS": list(tiny_config.patch_nums),
        "T_HIDDEN_DIM": tiny_config.hidden_dim,
        "T_DEPTH": tiny_config.depth,
        "T_NUM_HEADS": tiny_config.num_heads,
    }
    return json.dumps({"VAE_CONFIG": values, "AR_CONFIG": {"T_DEPTH": 12}})
