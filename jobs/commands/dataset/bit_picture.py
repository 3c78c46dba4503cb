"""Bits of a window as a small picture of characters: tokens across, bits down, a block for every scale.

Knows only arrays and text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
GAP = 2
BRAILLE_BLANK = 0x2800
BRAILLE_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
HALF_BLOCKS, ASCII_HALVES = " ▄▀█", " .':"


@dataclass(frozen=True)
class _Pen:
    """How bits become characters: so many bits across and down in each."""

    across: int
    down: int
    alphabet: str
    """One character for each value of upper and lower bit; empty draws Braille."""

    def lines(self, bits: Bits) -> list[str]:
        """Return (bits down, tokens across) as text, the edges filled with 0."""
        rows, columns = bits.shape
        padded = np.pad(bits, ((0, -rows % self.down), (0, -columns % self.across)))
        cells = padded.reshape(padded.shape[0] // self.down, self.down, -1, self.across).swapaxes(1, 2)
        if not self.alphabet:
            codes = (cells * BRAILLE_DOTS).sum(axis=(2, 3)) + BRAILLE_BLANK
            return ["".join(map(chr, line)) for line in codes]
        values = cells[:, :, 0, 0] * 2 + cells[:, :, 1, 0]
        return ["".join(self.alphabet[value] for value in line) for line in values]


HALVES, BRAILLE, PLAIN = _Pen(1, 2, HALF_BLOCKS), _Pen(2, 4, ""), _Pen(1, 2, ASCII_HALVES)


def bit_picture(scales: Sequence[Bits], width: int, has_unicode: bool) -> list[str]:
    """Return lines of at most `width` characters; over each block stands the number of its tokens.

    Half blocks draw a token a column and two bits a line; Braille, two tokens a column and four bits a line,
    where the widest scale would not fit; without Unicode, `'` is the upper of two bits, `.` the lower, `:` both.

    Args:
        scales: (tokens, code_dim) of 0 and 1 each, coarse to fine.
    """
    pen = _pen(max(len(scale) for scale in scales), width, has_unicode)
    blocks = [block for scale in scales for block in _blocks(scale, pen, width)]
    lines: list[str] = []
    for band in _bands(blocks, width):
        if lines:
            lines.append("")
        lines.extend((" " * GAP).join(row).rstrip(" ") for row in zip(*band, strict=True))
    return lines


def _pen(num_tokens: int, width: int, has_unicode: bool) -> _Pen:
    if not has_unicode:
        return PLAIN
    return HALVES if num_tokens <= width else BRAILLE


def _blocks(scale: Bits, pen: _Pen, width: int) -> list[list[str]]:
    """Return a scale as one block of text, or as several where it is wider than a line."""
    step = max(1, width) * pen.across
    blocks = []
    for start in range(0, len(scale), step):
        lines = pen.lines(scale[start : start + step].T)
        label = str(len(scale)) if not start else f"from {start}"
        size = max(len(label), len(lines[0]))
        blocks.append([line.ljust(size) for line in (label, *lines)])
    return blocks


def _bands(blocks: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """Return blocks side by side as far as they fit."""
    bands: list[list[list[str]]] = []
    used = 0
    for block in blocks:
        size = len(block[0])
        if not bands or used + GAP + size > width:
            bands.append([])
            used = -GAP
        bands[-1].append(block)
        used += GAP + size
    return bands
