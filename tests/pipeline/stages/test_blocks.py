import numpy as np
import pyarrow as pa
import pytest

from pipeline.stages.blocks import RUN_LEDGER_SCHEMA, MotionBlock, TokenBlock


def motion_block(num_frames: int) -> MotionBlock:
    return MotionBlock(
        units=(),
        motion=np.arange(num_frames * 4, dtype=np.float32).reshape(num_frames, 4),
        ledger=RUN_LEDGER_SCHEMA.empty_table(),
        start_frame=np.arange(3),
        seconds={"read": 1.5},
    )


@pytest.mark.parametrize("num_frames", [5, 0])
def test_motion_block_from_table_gives_what_to_table_took(num_frames: int) -> None:
    block = motion_block(num_frames)
    found = MotionBlock.from_table(block.to_table())
    np.testing.assert_array_equal(found.motion, block.motion)
    np.testing.assert_array_equal(found.start_frame, block.start_frame)
    assert found.ledger.equals(block.ledger)
    assert found.seconds["read"] == 1.5
    assert found.seconds["tokenize_queue"] >= 0


def test_motion_block_from_table_copies_no_motion() -> None:
    row = motion_block(5).to_table()
    data = row["motion"].chunk(0).buffers()[2]
    address = MotionBlock.from_table(row).motion.__array_interface__["data"][0]
    assert data.address <= address < data.address + data.size


def test_from_table_reads_a_row_that_is_a_slice() -> None:
    first, second = motion_block(2).to_table(), motion_block(7).to_table()
    both = pa.concat_tables([first, second]).combine_chunks()
    np.testing.assert_array_equal(MotionBlock.from_table(both.slice(1, 1)).motion, motion_block(7).motion)


def test_token_block_from_table_gives_what_to_table_took() -> None:
    motion = motion_block(5)
    block = TokenBlock(
        units=(),
        bits=np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4),
        ledger=motion.ledger,
        start_frame=motion.start_frame,
        emitted={"this_latent": np.ones((3, 5, 2), np.float16)},
    )
    found = TokenBlock.from_table(block.to_table())
    np.testing.assert_array_equal(found.bits, block.bits)
    np.testing.assert_array_equal(found.emitted["this_latent"], block.emitted["this_latent"])
