"""How many windows a shard has where nobody says it: by the bytes of their rows, from the TokenSpec alone."""

from __future__ import annotations

import pytest

from pipeline.contract.resolve import SHARD_BYTES, corpus_spec, default_windows_per_shard, export_spec
from pipeline.contract.specs import TokenSpec
from pipeline.settings.job_config import load_config

ALL_THREE = "emit=[latent, flips, decoded_prev]"
AUDIO = "input.audio.field=voice"


@pytest.fixture(scope="module")
def spec_of(make_codec):
    """Return a function that gives the TokenSpec of a job with the released codec's shapes."""

    def make(*assignments, **codec):
        codec = make_codec(**{"patch_nums": (1, 5, 25, 50, 100), "code_dim": 32, **codec})
        return TokenSpec(codec=codec, corpus=corpus_spec(load_config(None, assignments), codec, batch_size=32))

    return make


@pytest.mark.parametrize(
    ("assignments", "wanted"),
    [
        ((), 16_384),
        (("input.carry=[speaker, text]",), 16_384),
        (("emit=latent",), 16_384),
        ((ALL_THREE,), 16_384),
        ((ALL_THREE, "flips.pairs=16"), 8_192),
        ((AUDIO, "input.audio.rate_hz=16000"), 1_024),
        ((AUDIO, "input.audio.rate_hz=16000", "input.audio.encoding=flac"), 1_024),
        ((AUDIO, "input.audio.rate_hz=16000", ALL_THREE), 512),
        ((AUDIO, "input.audio.rate_hz=48000"), 256),
        ((AUDIO,), 256),
        ((AUDIO, "input.audio.mode=reference"), 16_384),
    ],
)
def test_default_windows_per_shard_follows_the_bytes_of_a_row(spec_of, assignments, wanted):
    assert default_windows_per_shard(spec_of(*assignments)) == wanted


def test_default_windows_per_shard_fills_half_of_the_bytes_at_least(spec_of):
    row_bytes = 2 * 724 + 2 * 2 * 4 * 16_000  # bits, and four seconds of int16 a half
    number = default_windows_per_shard(spec_of(AUDIO, "input.audio.rate_hz=16000"))
    assert number * row_bytes <= SHARD_BYTES < 2 * number * row_bytes
    assert default_windows_per_shard(spec_of(AUDIO, "input.audio.rate_hz=655350", fps=1e-3)) == 1


def test_export_spec_holds_the_resolved_number(spec_of):
    plain, sided = spec_of(), spec_of(AUDIO)
    config = load_config(None, [AUDIO])
    assert export_spec(config, plain).export_id == "d8bd773f33d4ec28"
    assert export_spec(config, sided).described()["windows_per_shard"] == 256
    named = load_config(None, [AUDIO, "export.windows_per_shard=16384"])
    assert export_spec(named, sided).export_id == "d8bd773f33d4ec28"
