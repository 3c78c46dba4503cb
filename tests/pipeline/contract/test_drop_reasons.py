from __future__ import annotations

from pipeline.contract.drop_reasons import NEXT_STEP, DropReason


def test_every_reason_has_a_next_step():
    assert set(NEXT_STEP) == set(DropReason)
