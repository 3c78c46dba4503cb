from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bitwise_vae.bits import pack_bits, unpack_bits
from bitwise_vae.checkpoints.checkpoint import random_checkpoint, weights_digest
from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.inference import encoder as encode
from bitwise_vae.inference.encoder import WindowEncoder
from bitwise_vae.model import BitwiseVAE


@pytest.fixture(autouse=True)
def two_torch_threads() -> Iterator[None]:
    """What a user has: several threads an operation, unless the encoder sees to it that there is one."""
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


@pytest.fixture(scope="module")
def wide_model() -> BitwiseVAE:
    """As wide and long as the released model, so that its operations have the released shapes."""
    config = BitwiseVAEConfig(depth=1)
    return random_checkpoint(config, np.zeros(106), np.ones(106), seed=11)


@pytest.fixture(scope="module")
def wide_windows() -> torch.Tensor:
    steps = torch.randn(11, 200, 106, generator=torch.Generator().manual_seed(12))
    return steps.cumsum(dim=1) / 10


def test_encode_windows_equals_the_original(golden, require_equal_bits: Callable[..., None]) -> None:
    packed = WindowEncoder(golden.model, batch_size=4).encode_windows(golden.tensor("motion"))
    halves = np.split(golden.arrays["latent"], 2, axis=1)
    for half, name in enumerate(("prev_bits", "this_bits")):
        found = unpack_bits(packed[:, half])
        require_equal_bits(found, golden.arrays[name], halves[half], golden.config.patch_nums)


def test_encode_windows_equals_the_model(
    wide_model: BitwiseVAE, wide_windows: torch.Tensor, require_equal_bits: Callable[..., None]
) -> None:
    packed = WindowEncoder(wide_model, batch_size=8, num_threads=2).encode_windows(wide_windows)
    with torch.no_grad():
        latent = wide_model.encode_latent(wide_windows).numpy()
        wanted = wide_model.quant_to_vqidx(*wide_windows.chunk(2, dim=1))
    for half, (bits, half_latent) in enumerate(zip(wanted, np.split(latent, 2, axis=1), strict=True)):
        require_equal_bits(unpack_bits(packed[:, half]), bits.numpy(), half_latent, wide_model.patch_nums)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_encode_windows_does_not_depend_on_the_number_of_threads(
    wide_model: BitwiseVAE, wide_windows: torch.Tensor, precision: str
) -> None:
    encoders = [
        WindowEncoder(wide_model, precision=precision, batch_size=2, num_threads=num_threads)
        for num_threads in (1, 2, 3)
    ]
    packed = [encoder.encode_windows(wide_windows) for encoder in encoders]
    latents = [encoder.latents(wide_windows) for encoder in encoders]
    for other in (1, 2):
        np.testing.assert_array_equal(packed[0], packed[other])
        np.testing.assert_array_equal(latents[0], latents[other])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_latents_do_not_depend_on_place_neighbours_or_fill_level(
    wide_model: BitwiseVAE, wide_windows: torch.Tensor, precision: str
) -> None:
    encoder = WindowEncoder(wide_model, precision=precision, batch_size=32, num_threads=2)
    latents, packed = encoder.latents(wide_windows), encoder.encode_windows(wide_windows)
    order = torch.randperm(len(wide_windows), generator=torch.Generator().manual_seed(13))
    np.testing.assert_array_equal(encoder.latents(wide_windows[order]), latents[order])
    np.testing.assert_array_equal(encoder.encode_windows(wide_windows[order]), packed[order.numpy()])
    for place in range(3):
        alone = wide_windows[place : place + 1]
        np.testing.assert_array_equal(encoder.latents(alone)[0], latents[place])
        among_others = torch.cat([1000 * alone, alone, -alone])
        np.testing.assert_array_equal(encoder.latents(among_others)[1], latents[place])


def test_encode_windows_does_not_depend_on_large_batch_sizes(
    wide_model: BitwiseVAE, wide_windows: torch.Tensor
) -> None:
    small, large = (WindowEncoder(wide_model, batch_size=size) for size in (encode.CPU_BATCH_WINDOWS, 64))
    np.testing.assert_array_equal(small.encode_windows(wide_windows), large.encode_windows(wide_windows))


def test_encoder_threads_run_alone_and_leave_others_as_they_are(tiny_model: BitwiseVAE) -> None:
    encoder = WindowEncoder(tiny_model, batch_size=2, num_threads=2)
    encoder.null_bits()
    assert list(encoder.each(lambda _: torch.get_num_threads(), range(8))) == [1] * 8
    with ThreadPoolExecutor(1) as unrelated:
        assert unrelated.submit(torch.get_num_threads).result() == 2
    assert torch.get_num_threads() == 2


def cut_window(motion: np.ndarray, start_frame: int, window_frames: int) -> np.ndarray:
    """One window of one clip, frame by frame."""
    window = np.zeros((2 * window_frames, motion.shape[1]), dtype=np.float32)
    for place in range(2 * window_frames):
        frame = start_frame - window_frames + place
        if 0 <= frame < len(motion):
            window[place] = motion[frame]
    return window


def test_encode_gathers_windows_of_clips(tiny_model: BitwiseVAE) -> None:
    motion = torch.randn(60, 6, generator=torch.Generator().manual_seed(14))
    spans = [(0, 20, 0), (0, 20, 7), (20, 25, 0), (20, 25, 3), (25, 60, 28), (25, 60, 35), (25, 60, -9)]
    begin, end, start = np.array(spans).T
    encoder = WindowEncoder(tiny_model, batch_size=3)
    windows = [cut_window(motion[b:e].numpy(), s, 7) for b, e, s in spans]
    wanted = encoder.encode_windows(torch.from_numpy(np.stack(windows)))
    found = encoder.encode(motion, begin, end, start)
    assert found.shape == (7, 2, 13, 1)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)


def test_encode_reads_nothing_outside_the_clip(tiny_model: BitwiseVAE) -> None:
    motion = torch.randn(40, 6, generator=torch.Generator().manual_seed(15))
    encoder = WindowEncoder(tiny_model, batch_size=3)
    spans = [np.array([column]) for column in (15, 25, 2)]
    before = encoder.encode(motion, *spans)
    motion[:15] = torch.nan
    motion[25:] = torch.nan
    np.testing.assert_array_equal(encoder.encode(motion, *spans), before)


def test_encode_of_no_window_is_empty(tiny_model: BitwiseVAE) -> None:
    none = np.zeros(0, dtype=np.int64)
    packed = WindowEncoder(tiny_model, batch_size=3).encode(torch.zeros(0, 6), none, none, none)
    assert packed.shape == (0, 2, 13, 1)


def test_null_bits_are_those_of_zeros(golden) -> None:
    zeros = torch.zeros(1, golden.config.window_frames, golden.config.motion_dim)
    with torch.no_grad():
        prev, this = golden.model.quant_to_vqidx(zeros, zeros)
        prev_alone, _ = golden.model.quant_to_vqidx(zeros)
    null_prev, null_this = WindowEncoder(golden.model, batch_size=2).null_bits()
    np.testing.assert_array_equal(null_prev, pack_bits(prev_alone[0].numpy()))
    np.testing.assert_array_equal(null_prev, pack_bits(prev[0].numpy()))
    np.testing.assert_array_equal(null_this, pack_bits(this[0].numpy()))


@pytest.mark.parametrize(("precision", "most_flips"), [("float16", 0.01), ("bfloat16", 0.05)])
def test_lower_precision_flips_few_bits(
    wide_model: BitwiseVAE, wide_windows: torch.Tensor, precision: str, most_flips: float
) -> None:
    few = wide_windows[:4]
    exact = WindowEncoder(wide_model, batch_size=4).encode_windows(few)
    rounded = WindowEncoder(wide_model, batch_size=4, precision=precision).encode_windows(few)
    share = unpack_bits(exact ^ rounded).mean()
    assert 0 < share < most_flips


def test_encoder_owns_its_weights(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    digest = weights_digest(tiny_model)
    encoder = WindowEncoder(tiny_model, batch_size=4)
    before = encoder.encode_windows(tiny_windows)
    assert weights_digest(tiny_model) == digest
    with torch.no_grad():
        for weight in tiny_model.parameters():
            weight.zero_()
    np.testing.assert_array_equal(encoder.encode_windows(tiny_windows), before)


def test_encoder_leaves_its_input_alone(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    copy = tiny_windows.clone()
    WindowEncoder(tiny_model, batch_size=4).encode_windows(tiny_windows)
    np.testing.assert_array_equal(tiny_windows, copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4, "precision": "float64"}, "precision must be one of float32"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"batch_size": 4, "num_threads": 0}, "must be at least 1"),
    ],
)
def test_encoder_refuses_options(tiny_model: BitwiseVAE, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowEncoder(tiny_model, **options)


def test_encoder_refuses_other_shapes_and_types(tiny_model: BitwiseVAE) -> None:
    encoder = WindowEncoder(tiny_model, batch_size=4)
    for windows in (torch.zeros(1, 13, 6), torch.zeros(14, 6), torch.zeros(1, 14, 6).double()):
        with pytest.raises(ValueError, match="wanted float32 windows"):
            encoder.encode_windows(windows)
        with pytest.raises(ValueError, match="wanted float32 windows"):
            encoder.latents(windows)
    one = np.zeros(1, dtype=np.int64)
    for motion in (torch.zeros(20, 5), torch.zeros(1, 20, 6), torch.zeros(20, 6).double()):
        with pytest.raises(ValueError, match="wanted float32 motion"):
            encoder.encode(motion, one, one + 20, one)
    motion = torch.zeros(20, 6)
    for begin, end in ((-1, 5), (5, 5), (5, 21)):
        with pytest.raises(ValueError, match="window 0 lies in a clip of rows"):
            encoder.encode(motion, one + begin, one + end, one)
    with pytest.raises(ValueError, match="three columns of one length"):
        encoder.encode(motion, one, one + 20, np.zeros(2, dtype=np.int64))


@pytest.fixture
def spans() -> list[np.ndarray]:
    """Windows of two clips of 40 and 25 frames: all padding before, some, and none."""
    rows = [(0, 40, 0), (0, 40, 3), (0, 40, 7), (0, 40, 33), (0, 40, 38), (40, 65, 0), (40, 65, 14)]
    return list(np.array(rows).T)


def cut_windows(motion: torch.Tensor, spans: list[np.ndarray]) -> torch.Tensor:
    rows = zip(*spans, strict=True)
    return torch.from_numpy(np.stack([cut_window(motion[b:e].numpy(), start, 7) for b, e, start in rows]))


def test_encode_more_gives_the_bits_of_encode(tiny_model: BitwiseVAE, spans: list[np.ndarray]) -> None:
    motion = torch.randn(65, 6, generator=torch.Generator().manual_seed(16))
    encoder = WindowEncoder(tiny_model, batch_size=3)
    wanted = encoder.encode(motion, *spans)
    alone = encoder.encode_more(motion, *spans, latent=False, decoder=None)
    assert alone.this_latent is None
    assert alone.decoded_prev_bits is None
    more = encoder.encode_more(motion, *spans, latent=True, decoder=encoder.decoder_of(tiny_model))
    for found in (alone, more):
        np.testing.assert_array_equal(found.bits, wanted)
    windows = cut_windows(motion, spans)
    assert more.this_latent is not None
    np.testing.assert_array_equal(more.this_latent, encoder.latents(windows)[:, 7:].half().numpy())


def test_encode_more_reads_no_prev_outside_the_clip(tiny_model: BitwiseVAE, spans: list[np.ndarray]) -> None:
    """Decoded frames stand where the clip has frames only; elsewhere the zeros stay, whatever lies beside the clip."""
    motion = torch.randn(65, 6, generator=torch.Generator().manual_seed(17))
    encoder = WindowEncoder(tiny_model, batch_size=4, num_threads=2)
    decoder = encoder.decoder_of(tiny_model)
    found = encoder.encode_more(motion, *spans, latent=False, decoder=decoder)
    assert found.decoded_prev_bits is not None
    decoded = decode_prev(tiny_model, found.bits[:, 0])
    windows = cut_windows(motion, spans)
    for row, start in enumerate(spans[2]):
        num_real = min(7, int(start))
        windows[row, 7 - num_real : 7] = decoded[row, 7 - num_real :]
    np.testing.assert_array_equal(found.decoded_prev_bits, encoder.encode_windows(windows)[:, 1])
    np.testing.assert_array_equal(found.decoded_prev_bits[spans[2] == 0], found.bits[spans[2] == 0, 1])


def decode_prev(model: BitwiseVAE, packed: np.ndarray) -> torch.Tensor:
    bits = torch.from_numpy(unpack_bits(packed))
    with torch.no_grad():
        return model.vqidx_to_motion(bits, torch.zeros_like(bits))[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_encode_more_does_not_depend_on_place_neighbours_or_threads(
    wide_model: BitwiseVAE, wide_windows: torch.Tensor, precision: str
) -> None:
    motion = wide_windows.reshape(-1, 106)
    begin = 200 * np.arange(11)
    spans = [np.stack([begin, begin, begin]), np.stack([begin] * 3) + 200, np.repeat([[0], [60], [100]], 11, axis=1)]
    spans = [column.reshape(-1) for column in spans]

    def encoded(num_threads: int, rows: np.ndarray) -> encode.EncodedWindows:
        encoder = WindowEncoder(wide_model, precision=precision, batch_size=32, num_threads=num_threads)
        decoder = encoder.decoder_of(wide_model)
        return encoder.encode_more(motion, *(column[rows] for column in spans), latent=True, decoder=decoder)

    every = np.arange(33)
    first = encoded(1, every)
    order = np.random.default_rng(18).permutation(33)
    for found, rows in ((encoded(2, every), every), (encoded(2, order), order), (encoded(1, every[5:6]), every[5:6])):
        np.testing.assert_array_equal(found.bits, first.bits[rows])
        np.testing.assert_array_equal(found.this_latent, first.this_latent[rows])
        np.testing.assert_array_equal(found.decoded_prev_bits, first.decoded_prev_bits[rows])


def test_the_decoder_of_prev_equals_the_model(wide_model: BitwiseVAE, wide_windows: torch.Tensor) -> None:
    encoder = WindowEncoder(wide_model, batch_size=8)
    packed = encoder.encode_windows(wide_windows)[:, 0]
    codes = wide_model.quantizer.quantized_from_bits(torch.from_numpy(unpack_bits(packed)))
    with torch.no_grad():
        found = encoder.decoder_of(wide_model).motion(codes)
    torch.testing.assert_close(found, decode_prev(wide_model, packed), rtol=1e-4, atol=1e-5)


def test_each_calls_in_order_and_on_the_workers(tiny_model: BitwiseVAE) -> None:
    encoder = WindowEncoder(tiny_model, batch_size=2, num_threads=2)
    found = list(encoder.each(lambda item: (item, torch.get_num_threads()), range(9)))
    assert found == [(item, 1) for item in range(9)]
