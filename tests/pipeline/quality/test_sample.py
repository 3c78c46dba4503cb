"""Samples of a token store: the right motion beside the right bits, the same for all, within bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.contract.specs import Contract, Numerics, TokenSpec
from pipeline.dataset.fragment import fragment_to_bytes
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import VerifyError
from pipeline.plan.plan import make_plan
from pipeline.quality.sample import SAMPLE_BYTES, draw_sample
from pipeline.stages.blocks import TokenBlock
from pipeline.stages.read import UnitReader
from pipeline.stages.write import FragmentWriter
from pipeline.storage import Folder, open_inputs

SUFFIXES = (".npz",)


@pytest.fixture
def place(tmp_path, make_codec, make_corpus):
    """Motion whose frames say clip and time, and a store whose bits say window and unit."""
    (tmp_path / "motion").mkdir()
    for n in range(9):
        frames = np.arange(12 + 5 * n, dtype=np.float32)
        motion = np.stack([np.full_like(frames, n), frames, frames, frames], axis=1)
        np.savez(tmp_path / "motion" / f"clip{n}.npz", motion=motion, fps=25.0)
    np.savez(tmp_path / "motion" / "short.npz", motion=np.zeros((2, 4), np.float32), fps=25.0)
    spec = TokenSpec(codec=make_codec(), corpus=make_corpus(unit_files=2))
    roots = open_inputs([str(tmp_path / "motion")], SUFFIXES, {})
    units = make_plan(roots, spec.corpus).units
    reader = UnitReader({root.name: root.folder for root in roots}, spec)
    store = TokenStore(Folder(str(tmp_path / "store")))
    contract = Contract(codec=spec.codec, corpus=spec.corpus, numerics=Numerics(device="d", torch="t", pyarrow="p"))
    for unit in units:
        block = reader.read([unit])
        clip_of = np.repeat(np.arange(block.ledger.num_rows), block.ledger["num_windows"].to_numpy())
        names = [block.ledger["clip_id"][int(row)].as_py() for row in clip_of]
        bits = np.zeros((len(names), 2, spec.codec.half_bytes), np.uint8)
        bits[:, 1, 0] = [int(name[4:]) for name in names]
        bits[:, 1, 1] = block.start_frame
        FragmentWriter(store, contract).write(TokenBlock(block.units, bits, block.ledger, block.start_frame))
    return store, units, reader


def test_draw_sample_pairs_motion_with_its_bits(place):
    store, units, reader = place
    assert len(units) > 2
    found = draw_sample(store, units, reader, 1000)
    assert len(found) == sum(store.read_fragment(unit.key, unit.stamp).num_rows for unit in units)
    half = reader.spec.codec.window_frames
    for row, name in enumerate(found.clip_ids):
        start = int(found.start_frame[row])
        frames = np.arange(start - half, start + half)
        np.testing.assert_array_equal(found.is_real[row], frames >= 0)
        np.testing.assert_array_equal(found.motion[row, :, 1], np.maximum(frames, 0))
        np.testing.assert_array_equal(found.motion[row, found.is_real[row], 0], int(name[4:]))
        assert found.bits[row, 1, :2].tolist() == [int(name[4:]), start]
        assert found.sources[row] == f"{name}.npz"


def test_draw_sample_is_the_same_for_any_order_of_units(place):
    store, units, reader = place
    one, other = (draw_sample(store, some, reader, 20) for some in (units, units[::-1]))
    assert len(one) == 20
    assert one.clip_ids == other.clip_ids
    np.testing.assert_array_equal(one.start_frame, other.start_frame)
    codec = reader.spec.codec.model_copy(update={"weights": "x"})
    elsewhere = replace(reader, spec=reader.spec.model_copy(update={"codec": codec}))
    assert draw_sample(store, units, elsewhere, 20).start_frame.tolist() != one.start_frame.tolist()


@pytest.mark.parametrize("bound", ["units", "bytes"])
def test_draw_sample_keeps_its_bounds_and_looks_at_the_wanted_first(place, bound):
    store, units, reader = place
    limits = {"max_units": 1} if bound == "units" else {}
    if bound == "bytes":
        units = [replace(unit, num_bytes=SAMPLE_BYTES) for unit in units]
    for unit in units:
        num_rows = store.read_fragment(unit.key, unit.stamp).num_rows
        found = draw_sample(store, units, reader, 1000, first=[unit], **limits)
        assert 0 < len(set(found.clip_ids)) < 9
        if num_rows:
            assert len(found) == num_rows
            assert set(found.sources) <= {part.source for part in unit.parts}


def test_draw_sample_looks_last_at_units_beyond_the_bound_of_bytes(place):
    store, units, reader = place
    filled = [unit for unit in units if store.read_fragment(unit.key, unit.stamp).num_rows]
    small, *large = filled
    large = [replace(unit, num_bytes=SAMPLE_BYTES + 1) for unit in large]
    found = draw_sample(store, [*large, small], reader, 1000, first=large)
    assert set(found.sources) <= {part.source for part in small.parts}
    assert len(draw_sample(store, large[:1], reader, 1000)) > 0


def test_draw_sample_refuses_other_motion_under_the_same_stamp(place):
    store, units, reader = place
    for unit in units:
        table, ledger = store.read_fragment(unit.key, unit.stamp), store.read_ledger(unit.key, unit.stamp)
        column = ledger.schema.get_field_index("motion_digest")
        other = ledger.set_column(column, ledger.schema.field(column), [["other"] * ledger.num_rows])
        contract = Contract(
            codec=reader.spec.codec, corpus=reader.spec.corpus, numerics=Numerics(device="d", torch="t", pyarrow="p")
        )
        store.folder.publish(store.fragment_path(unit.key, unit.stamp), fragment_to_bytes(table, other, contract))
    with pytest.raises(VerifyError, match="other motion"):
        draw_sample(store, units, reader, 10)


def test_draw_sample_leaves_out_units_with_clips_that_kill(place):
    store, units, reader = place
    contract = Contract(
        codec=reader.spec.codec, corpus=reader.spec.corpus, numerics=Numerics(device="d", torch="t", pyarrow="p")
    )
    lethal = next(unit for unit in units if store.read_fragment(unit.key, unit.stamp).num_rows)
    table, ledger = store.read_fragment(lethal.key, lethal.stamp), store.read_ledger(lethal.key, lethal.stamp)
    column = ledger.schema.get_field_index("drop_reason")
    other = ledger.set_column(column, ledger.schema.field(column), [["crashed"] * ledger.num_rows])
    store.folder.publish(store.fragment_path(lethal.key, lethal.stamp), fragment_to_bytes(table, other, contract))
    found = draw_sample(store, units, reader, 1000, first=[lethal])
    assert not set(found.sources) & {part.source for part in lethal.parts}
    assert len(draw_sample(store, [lethal], reader, 10)) == 0
