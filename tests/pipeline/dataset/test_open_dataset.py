from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.open_dataset import BitCounts, packed_bits
from pipeline.verify.compare import FieldDifference, compare_settings


def test_bit_counts_by_half_and_scale(make_codec):
    counts = BitCounts(make_codec(patch_nums=(1, 2, 5), code_dim=16))
    ours = np.zeros((3, 2, 16), np.uint8)
    theirs = ours.copy()
    theirs[1, 0, [0, 1, 2]] = 0xFF, 1, 1  # scale 0 has bytes 0 and 1, scale 1 bytes 2 to 5
    theirs[1, 1, 5] = 0b1010
    theirs[2, 1, 15] = 1
    assert counts.add(ours, theirs).tolist() == [0, 12, 1]
    assert counts.differing.tolist() == [[9, 1, 0], [0, 2, 1]]
    assert counts.add(ours, ours).tolist() == [0, 0, 0]
    assert (counts.num_windows, counts.num_differing) == (6, 2)
    assert [counts.compared(scale) for scale in range(3)] == [6 * 16, 6 * 32, 6 * 80]
    assert counts.share == pytest.approx(13 / (6 * 2 * 128))


def test_packed_bits_of_slices_and_of_nothing():
    rows = [bytes([n, n + 1]) for n in range(10)]
    column = pa.chunked_array([pa.array(rows[:4], pa.binary(2)), pa.array(rows[4:], pa.binary(2))])
    table = pa.table({"prev_bits": column, "this_bits": column})
    assert packed_bits(table.slice(2, 1)).tolist() == [[[2, 3], [2, 3]]]
    assert packed_bits(table.slice(3, 4))[:, 1].tolist() == [[3, 4], [4, 5], [5, 6], [6, 7]]
    assert packed_bits(table.slice(0, 0)).shape == (0, 2, 2)


def test_compare_settings_names_leaves_that_differ_or_lack():
    ours = {"codec": {"fps": 25.0, "patch_nums": [1, 2]}, "export": {"splits": {"by": "clip_id"}}, "only": 1}
    theirs = {"codec": {"fps": 25.0, "patch_nums": [1, 3]}, "export": {"splits": {"by": "clip_id"}, "seed": 0}}
    assert compare_settings(ours, theirs) == [
        FieldDifference("codec.patch_nums", [1, 2], [1, 3]),
        FieldDifference("only", 1, None),
        FieldDifference("export.seed", None, 0),
    ]
