from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from bitwise_vae.checkpoints.checkpoint import load_checkpoint
from pipeline.dataset.manifest import read_manifest
from pipeline.errors import ConfigError, VerifyError
from pipeline.loader import Dropping, NullCodes, TokenDataset, TokenFeatures, TokenStream, read_null_codes
from pipeline.storage import Folder

CONSTANTS = "constants.npz"


@pytest.fixture(scope="module")
def dataset(tokens) -> TokenDataset:
    return TokenDataset(str(tokens))


@pytest.fixture(scope="module")
def null(dataset) -> NullCodes:
    return read_null_codes(dataset.folder, dataset.manifest)


def test_read_null_codes_gives_the_codes_of_zeros(dataset, null, tiny_codec):
    model = load_checkpoint(tiny_codec)
    zeros = torch.zeros(1, model.config.window_frames, model.motion_dim)
    features = TokenFeatures.of_codec(dataset.codec)
    with torch.inference_mode():
        prev, _ = model.quant_to_vqidx(zeros)
        _, this = model.quant_to_vqidx(zeros, zeros)
    np.testing.assert_array_equal(features.unpack(null.prev), prev[0])
    np.testing.assert_array_equal(features.unpack(null.this), this[0])


def test_null_prev_is_what_stands_before_a_clip(dataset, null):
    """A clip's first window has no real frame in `prev`."""
    batch = dataset.batch(range(len(dataset)))
    first = batch["prev_valid_frames"] == 0
    assert first.any()
    assert (batch["prev_bits"][first] == null.prev).all()


def test_read_null_codes_refuses_an_altered_file(tokens, tmp_path):
    output = shutil.copytree(tokens, tmp_path / "out")
    for path in output.rglob(CONSTANTS):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    folder = Folder(str(output))
    with pytest.raises(VerifyError, match=r"constants\.npz is missing or altered"):
        read_null_codes(folder, read_manifest(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_nums": np.array([1, 3, 4])}, r"of schedule \[1, 3, 4\], the contract of \[1, 2, 5\]"),
        ({"null_prev": np.zeros((7, 1), np.uint8)}, r"wanted codes \(8, 1\) uint8, found \(7, 1\) uint8"),
        ({"null_this": None}, "is damaged .*null_this"),
    ],
)
def test_read_null_codes_refuses_what_does_not_fit_the_contract(tokens, tmp_path, changes, message):
    """Even where dataset.json names the bytes."""
    import hashlib

    output = shutil.copytree(tokens, tmp_path / "out")
    with np.load(output / CONSTANTS) as file:
        arrays = {name: value for name, value in {**file, **changes}.items() if value is not None}
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    for path in output.rglob(CONSTANTS):
        path.write_bytes(sink.getvalue())
    tree = json.loads((output / "dataset.json").read_text())
    for entry in tree["files"]:
        if entry["path"] == CONSTANTS:
            entry["sha256"] = hashlib.sha256(sink.getvalue()).hexdigest()
    (output / "dataset.json").write_text(json.dumps(tree))
    folder = Folder(str(output))
    with pytest.raises(VerifyError, match=message):
        read_null_codes(folder, read_manifest(folder))


@pytest.mark.parametrize("chance", [-0.1, 1.1, float("nan")])
def test_dropping_refuses_what_is_no_probability(chance):
    with pytest.raises(ConfigError, match="drop prev must be within 0 and 1"):
        Dropping(prev=chance)
    with pytest.raises(ConfigError, match="drop style must be within 0 and 1"):
        Dropping(style=chance)


def windows(count: int) -> dict:
    return {"clip_id": [f"clip{n // 7}" for n in range(count)], "start_frame": torch.arange(count) % 7 * 5}


def test_drawn_follows_the_chance():
    batch = windows(20_000)
    for chance in (0.0, 0.1, 0.75, 1.0):
        share = Dropping(prev=chance, style=0.5).drawn("prev", batch, epoch=0).double().mean().item()
        assert share == pytest.approx(chance, abs=0.015 if 0 < chance < 1 else 0)


def test_drawn_is_another_by_seed_epoch_and_name_and_independent():
    batch = windows(20_000)
    draws = [
        Dropping(prev=0.5, style=0.5).drawn("prev", batch, 0),
        Dropping(prev=0.5, style=0.5).drawn("style", batch, 0),
        Dropping(prev=0.5, style=0.5).drawn("prev", batch, 1),
        Dropping(prev=0.5, style=0.5, seed=1).drawn("prev", batch, 0),
    ]
    for number, one in enumerate(draws):
        for other in draws[:number]:
            assert (one & other).double().mean().item() == pytest.approx(0.25, abs=0.015)


@given(st.permutations(range(30)), st.integers(1, 30), st.integers(0, 5))
def test_drawn_depends_on_the_window_alone(order, batch_size, epoch):
    """Whatever batch, rank or position a window comes in."""
    batch, dropping = windows(30), Dropping(prev=0.5)
    together = dropping.drawn("prev", batch, epoch)
    for first in range(0, 30, batch_size):
        rows = order[first : first + batch_size]
        part = {"clip_id": [batch["clip_id"][row] for row in rows], "start_frame": batch["start_frame"][rows]}
        assert dropping.drawn("prev", part, epoch).tolist() == together[rows].tolist()


def test_drawn_refuses_a_batch_without_names():
    with pytest.raises(ConfigError, match="the batch lacks clip_id"):
        Dropping().drawn("prev", {"start_frame": torch.zeros(1)}, 0)


def test_apply_replaces_prev_and_style_each_on_its_own(dataset, null):
    batch = next(iter(TokenStream(dataset, 200, has_style=True)))
    before = {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}
    dropping = Dropping(prev=0.3, style=0.6, seed=4)
    changed = dropping.apply(batch, null, epoch=2)
    for name in ("prev", "style"):
        gone = dropping.drawn(name, batch, 2)
        assert 0 < gone.sum() < 200
        np.testing.assert_array_equal(changed[f"{name}_dropped"], gone)
        assert (changed[f"{name}_bits"][gone] == null.prev).all()
        assert not changed[f"{name}_valid_frames"][gone].any()
        for column in (f"{name}_bits", f"{name}_valid_frames"):
            np.testing.assert_array_equal(changed[column][~gone], before[column][~gone])
            assert (changed[column] != before[column]).any()
    np.testing.assert_array_equal(changed["this_bits"], before["this_bits"])
    assert changed["clip_id"] == batch["clip_id"]
    for name, value in before.items():
        np.testing.assert_array_equal(batch[name], value)


def test_apply_drops_only_the_first_prev_of_several_windows(tokens, null):
    dataset = TokenDataset(str(tokens), windows_per_sample=3)
    batch = dataset.batch(range(len(dataset)))
    changed = Dropping(prev=1.0).apply(batch, null, epoch=0)
    assert (changed["prev_bits"][:, 0] == null.prev).all()
    assert not changed["prev_valid_frames"][:, 0].any()
    for column in ("prev_bits", "prev_valid_frames"):
        np.testing.assert_array_equal(changed[column][:, 1:], batch[column][:, 1:])
    assert "style_dropped" not in changed
