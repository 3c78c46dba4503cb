from __future__ import annotations

from pipeline.sources.limits import FREE_BYTES, MAX_CLIP_BYTES, MAX_GROWTH, clip_bytes_fault, growth_fault


def test_clip_bytes_fault_begins_above_the_limit() -> None:
    assert clip_bytes_fault("a", MAX_CLIP_BYTES) == ""
    assert "a has 4294967297 bytes, a clip has 4294967296 at most" in clip_bytes_fault("a", MAX_CLIP_BYTES + 1)


def test_growth_fault_lets_small_ones_pass_and_large_ones_by_their_stored_size() -> None:
    assert growth_fault("a", FREE_BYTES, 0) == ""
    assert "promises 67108865 bytes of 3 stored ones" in growth_fault("a", FREE_BYTES + 1, 3)
    stored = 2 * FREE_BYTES // MAX_GROWTH
    assert growth_fault("a", 2 * FREE_BYTES, stored) == ""
    assert growth_fault("a", 2 * FREE_BYTES + 1, stored)
