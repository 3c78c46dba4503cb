"""The simulator's modules can be imported by its tests, which are given a corpus."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parent))
    from histories import Corpus
    from world import simulated


def clip(name, num_frames):
    """A walk as npz bytes."""
    steps = np.random.default_rng(zlib.crc32(f"{name} {num_frames}".encode())).normal(size=(num_frames, 4))
    sink = io.BytesIO()
    np.savez(sink, motion=(np.cumsum(steps, axis=0) / 3).astype(np.float32), fps=25.0)
    return sink.getvalue()


@pytest.fixture(scope="module")
def corpus(tiny_codec):
    """An input at four times: a clip is replaced by one of the same length, a broken one comes, and is mended."""
    first = {f"clip{n}.npz": clip(f"clip{n}", 6 + 4 * n) for n in range(3)}
    replaced = {**first, "clip1.npz": clip("another", 10)}
    broken = {**replaced, "clip3.npz": b"no archive at all"}
    mended = {**broken, "clip3.npz": clip("clip3", 12)}
    with simulated():
        made = Corpus([first, replaced, broken, mended], tiny_codec)
        made.prepare()
        yield made
