"""Clips as files of motion, Parquet or tar, in layouts that the sources read: for demonstrations and benchmarks.

Knows neither where the motion comes from nor where the bytes go.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Motion = npt.NDArray[np.float32]


def parquet_of_clips(
    clips: Mapping[str, Motion], fps: float, is_flat: bool = False, row_group_size: int | None = None
) -> bytes:
    """Return a row a clip; motion as one flat list, or as a list of frames of fixed size.

    Args:
        clips: id -> (frames, dims), one dims for all, one clip at least.
        row_group_size: clips of a row group; None: as many as pyarrow puts there.
    """
    values = pa.array(np.concatenate([motion.reshape(-1) for motion in clips.values()]))
    dims = next(iter(clips.values())).shape[1]
    dims_per_item = 1 if is_flat else dims
    items = values if is_flat else pa.FixedSizeListArray.from_arrays(values, dims)
    edges = np.cumsum([0, *(motion.size // dims_per_item for motion in clips.values())])
    table = pa.table(
        {
            "clip_id": list(clips),
            "fps": pa.array([fps] * len(clips), pa.float32()),
            "motion": pa.ListArray.from_arrays(pa.array(edges, pa.int32()), items),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size)
    return sink.getvalue()


def tar_of_clips(clips: Mapping[str, Motion], fps: float, member: str = "motion.npy") -> bytes:
    """Return a WebDataset tar: motion and rate of every clip, side by side.

    Args:
        clips: id -> (frames, dims); ids without a dot.
        member: what follows a clip's id in the name of its motion.
    """
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for clip_id, motion in clips.items():
            array = io.BytesIO()
            np.save(array, motion, allow_pickle=False)
            fields = json.dumps({"fps": fps, "clip_id": clip_id}).encode()
            for name, data in ((member, array.getvalue()), ("json", fields)):
                entry = tarfile.TarInfo(f"{clip_id}.{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return sink.getvalue()
