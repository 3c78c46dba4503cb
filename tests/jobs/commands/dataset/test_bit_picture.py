"""The picture of bits: every bit is there, in every alphabet, within the width."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.commands.dataset.bit_picture import bit_picture

SCHEDULE = (1, 5, 25, 50, 100)


@pytest.fixture
def scales():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 2, (tokens, 32), dtype=np.uint8) for tokens in SCHEDULE]


def test_bit_picture_by_hand():
    bits = np.array([[1, 0, 1, 1], [0, 0, 1, 0]], np.uint8)  # two tokens of four bits
    assert bit_picture([bits], 80, True) == ["2", "▀", "█▀"]
    assert bit_picture([bits], 80, False) == ["2", "'", ":'"]
    assert bit_picture([bits], 1, True) == ["2", chr(0x2800 + 0x01 + 0x04 + 0x40 + 0x20)]


def test_bit_picture_of_the_released_schedule_fits(scales):
    wide, narrow = bit_picture(scales, 100, True), bit_picture(scales, 80, True)
    assert (max(map(len, wide)), len(wide)) == (100, 2 * 17 + 1)
    assert max(map(len, narrow)) <= 80
    assert len(narrow) == 2 * 9 + 1


@pytest.mark.parametrize("width", [1, 7, 40, 80, 100, 300])
@pytest.mark.parametrize("has_unicode", [True, False])
def test_bit_picture_shows_every_bit_at_any_width(scales, width, has_unicode):
    lines = bit_picture(scales, width, has_unicode)
    assert max(map(len, lines)) <= max(width, len("from 100"))
    drawn = sum(_marks(char) for line in lines for char in line)
    assert drawn == sum(int(scale.sum()) for scale in scales)


def _marks(char):
    if 0x2800 <= ord(char) <= 0x28FF:
        return bin(ord(char) - 0x2800).count("1")
    return {"▄": 1, "▀": 1, "█": 2, ".": 1, "'": 1, ":": 2}.get(char, 0)


def test_bit_picture_takes_a_single_scale():
    assert bit_picture([np.ones((3, 8), np.uint8)], 80, True) == ["3", "███", "███", "███", "███"]
