"""What a GPU emits beside bits: the same in any order, and flips that a CPU draws too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitwise_vae import BitwiseVAEConfig, WindowEncoder, random_checkpoint
from pipeline.contract.specs import FlipRule
from pipeline.stages.emit import WindowEmitter, WindowSpans

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="hardware: no CUDA device")

RULE = FlipRule(pairs=2, ratio=0.3, seed=1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_emitted_columns_of_a_gpu_depend_on_nothing_but_the_window(make_corpus, precision):
    model = random_checkpoint(BitwiseVAEConfig(depth=2), np.zeros(106), np.ones(106), seed=3)
    corpus = make_corpus(emit=("latent", "flips", "decoded_prev"), flips=RULE)
    emitters = {
        device: WindowEmitter(model, WindowEncoder(model, precision=precision, batch_size=64, device=device), corpus)
        for device in ("cuda", "cpu")
    }
    motion = torch.randn(30_100, 106, generator=torch.Generator().manual_seed(4)).cumsum(dim=0) / 30
    starts = np.arange(300, dtype=np.int64) * 100

    def encoded(rows):
        ids = [f"clip{row}" for row in rows]
        ends = np.full(len(rows), len(motion))
        return emitters["cuda"].encode(motion, WindowSpans(np.zeros_like(ends), ends, starts[rows], lambda: ids))

    bits, emitted = encoded(np.arange(300))
    order = np.random.default_rng(5).permutation(300)[:170]
    again_bits, again = encoded(order)
    np.testing.assert_array_equal(again_bits, bits[order])
    for name, array in emitted.items():
        np.testing.assert_array_equal(again[name], array[order])
    ids = [f"clip{row}" for row in range(300)]
    drawn = emitters["cpu"].draw_flips(emitted["this_latent"], ids, starts, RULE)
    np.testing.assert_array_equal(drawn[0], emitted["flip_targets"])
    np.testing.assert_array_equal(drawn[1], emitted["flip_bits"])
    np.testing.assert_array_equal(emitted["decoded_prev_bits"][0], bits[0, 1])
