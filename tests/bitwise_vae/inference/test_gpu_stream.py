"""Batches on their way through a GPU: the same bits whatever lies beside them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bitwise_vae.bits import pack_bits_torch
from bitwise_vae.checkpoints.checkpoint import random_checkpoint
from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.inference.encoder import WindowEncoder
from bitwise_vae.inference.window_spans import checked_spans, cut_windows
from bitwise_vae.model import BitwiseVAE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="hardware: no CUDA device")

NUM_CLIPS, CLIP_FRAMES = 64, 1000
MAX_FLIPS = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.05}


@pytest.fixture(scope="module")
def model() -> BitwiseVAE:
    return random_checkpoint(BitwiseVAEConfig(depth=2), np.zeros(106), np.ones(106), seed=3)


@pytest.fixture(scope="module", params=list(MAX_FLIPS))
def encoder(request: pytest.FixtureRequest, model: BitwiseVAE) -> WindowEncoder:
    return WindowEncoder(model, precision=request.param, batch_size=1024, device="cuda")


@pytest.fixture(scope="module")
def windows() -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    steps = torch.randn(NUM_CLIPS * CLIP_FRAMES, 106, generator=torch.Generator().manual_seed(4))
    begin = np.repeat(np.arange(NUM_CLIPS) * CLIP_FRAMES, 10)
    return steps, begin, begin + CLIP_FRAMES, np.tile(np.arange(0, 1000, 100), NUM_CLIPS)


def test_encode_differs_from_float64_by_rounding_alone(encoder, model, windows) -> None:
    motion, *columns = windows
    some = [column[:128] for column in columns]
    exact = BitwiseVAE(model.config).double()
    exact.load_state_dict(model.state_dict())
    cut = cut_windows(motion, checked_spans(*some, len(motion)), 100).double()
    with torch.no_grad():
        wanted = torch.stack(exact.quant_to_vqidx(cut[:, :100], cut[:, 100:]), dim=1)
    differs = np.unpackbits(encoder.encode(motion, *some) ^ pack_bits_torch(wanted).numpy())
    assert differs.mean() < MAX_FLIPS[encoder.precision]


def test_encode_does_not_depend_on_order_neighbours_or_gaps(encoder, windows) -> None:
    motion, *columns = windows
    wanted = encoder.encode(motion, *columns)
    for chosen in (np.random.default_rng(0).permutation(640), np.arange(0, 640, 60), np.arange(5)):
        found = encoder.encode(motion, *(column[chosen] for column in columns))
        np.testing.assert_array_equal(found, wanted[chosen])


def test_encode_windows_and_encode_more_give_the_bits_of_encode(encoder, model, windows) -> None:
    motion, *columns = windows
    wanted = encoder.encode(motion, *columns)
    cut = cut_windows(motion, checked_spans(*columns, len(motion)), 100)
    np.testing.assert_array_equal(encoder.encode_windows(cut), wanted)
    more = encoder.encode_more(motion, *columns, latent=True, decoder=encoder.decoder_of(model))
    np.testing.assert_array_equal(more.bits, wanted)


def test_encode_may_be_called_from_several_threads(encoder, windows) -> None:
    motion, *columns = windows
    wanted = encoder.encode(motion, *columns)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: encoder.encode(motion, *columns), range(9)):
            np.testing.assert_array_equal(found, wanted)


def test_take_seconds_says_where_the_time_went(encoder, windows) -> None:
    motion, *columns = windows
    encoder.take_seconds()
    encoder.encode(motion, *columns)
    assert set(encoder.take_seconds()) == {"stage", "upload", "compute", "download"}
    assert encoder.take_seconds() == {}
