"""What only a GPU shows: too little memory for a run of units, and for a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwise_vae import BitwiseVAEConfig, random_checkpoint
from bitwise_vae.inference.encoder import WindowEncoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="hardware: no CUDA device")

MIB = 1 << 20


@pytest.fixture
def encoder():
    model = random_checkpoint(BitwiseVAEConfig(depth=1), np.zeros(106), np.ones(106), seed=3)
    return WindowEncoder(model, batch_size=64, device="cuda")


@pytest.fixture
def leave_free():
    """Take all memory of the device but some MiB, and give it back afterwards."""
    held = []

    def take(mib):
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        held.append(torch.empty(free - mib * MIB, dtype=torch.uint8, device="cuda"))

    yield take
    held.clear()
    torch.cuda.empty_cache()


def spans(num_windows, num_frames):
    starts = np.arange(num_windows, dtype=np.int64) * 100
    return np.zeros_like(starts), np.full_like(starts, num_frames), starts


def test_motion_that_does_not_fit_beside_a_batch_gives_the_same_bits(encoder, leave_free):
    motion = torch.randn(2_500_000, 106, generator=torch.Generator().manual_seed(4))  # 1 GiB
    wanted = encoder.encode(motion, *spans(300, len(motion)))
    leave_free(800)
    assert (encoder.encode(motion, *spans(300, len(motion))) == wanted).all()


def test_a_batch_that_does_not_fit_says_so(leave_free):
    model = random_checkpoint(BitwiseVAEConfig(depth=1), np.zeros(106), np.ones(106), seed=3)
    leave_free(4)
    with pytest.raises(torch.OutOfMemoryError):
        WindowEncoder(model, batch_size=64, device="cuda").null_bits()
