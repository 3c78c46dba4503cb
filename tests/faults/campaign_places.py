"""Where the campaign's datasets lie: a folder of this machine, or an S3 server that can be killed and come back.

Knows nothing of what is done to a run.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from s3_gateway import Gateway

from pipeline.storage import Folder

BUCKET = "campaign"
UNPROMISED = ("_store", "runs", "report", "versions")
RAY_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Place:
    """Where motion is read from, and below which address the datasets of trials come to stand."""

    name: str
    motion: str
    root: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def folder(self, name: str) -> Folder:
        """The folder of one dataset."""
        return Folder(f"{self.root}/{name}", self.options)

    @property
    def poll_s(self) -> float:
        """Seconds between two looks at what stands there."""
        return 0.02 if self.name == "local" else 0.3

    def forget_reads(self) -> None:
        """Set back when motion was read last, so that `num_read` counts from now on."""
        if self.name == "local":
            for path in Path(self.motion).iterdir():
                os.utime(path, (1, path.stat().st_mtime))

    def num_read(self) -> int | None:
        """How many motion files were read since `forget_reads`; None where that cannot be known."""
        if self.name != "local":
            return None
        return sum(path.stat().st_atime > 1 for path in Path(self.motion).iterdir())


def local_place(motion: Path, root: Path) -> Place:
    """Input and output on this machine's disk."""
    return Place("local", str(motion), str(root))


def s3_place(motion: Path, gateway: Gateway) -> Place:
    """Input and output in a bucket of the server; the motion is copied there."""
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False, **gateway.options).mkdir(BUCKET)
    place = Place("s3", f"s3://{BUCKET}/motion", f"s3://{BUCKET}", gateway.options, gateway.environment)
    for path in sorted(motion.iterdir()):
        place.folder("motion").publish(path.name, path.read_bytes())
    return place


def tree_of(folder: Folder) -> dict[str, bytes]:
    """Every file whose bytes are promised, by relative path; versions may hold more after a disturbed run.

    Temporary files that a killed process left are not under a final name, and no part of the dataset.
    """
    return {file.path: folder.read(file.path) for file in folder.list_files() if _is_promised(file.path)}


def num_standing(folder: Folder) -> int:
    """How many fragments and promised files stand: it grows as a run goes on."""
    paths = [file.path for file in folder.list_files()]
    return sum(_is_promised(path) or _is_fragment(path) for path in paths)


def num_fragments(folder: Folder) -> int:
    """How many units are committed."""
    return sum(_is_fragment(file.path) for file in folder.list_files("_store"))


def _is_promised(path: str) -> bool:
    return path.split("/")[0] not in UNPROMISED and not _is_temporary(path)


def _is_fragment(path: str) -> bool:
    return "/fragments/" in path and path.endswith(".parquet")


def _is_temporary(path: str) -> bool:
    """Whether a file is one that LocalFiles writes before it moves it to its name."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".tmp")


def units_computed(folder: Folder, besides: set[str] = frozenset()) -> tuple[int, set[str]]:
    """Return how many units the records of runs tell of, and the paths of these records.

    Args:
        besides: paths of records that are not to be counted.
    """
    records = {file.path for file in folder.list_files("runs") if file.path.endswith("/run.json")}
    counts = [json.loads(folder.read(path))["counts"].get("units", 0) for path in records - besides]
    return sum(counts), records


def window_names(tree: dict[str, bytes]) -> list[tuple[str, int]]:
    """Every window in the Parquet shards, by clip and first frame, in no order."""
    names: list[tuple[str, int]] = []
    for path, data in tree.items():
        if path.startswith("parquet/") and path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data), columns=["clip_id", "start_frame"])
            names += zip(table["clip_id"].to_pylist(), table["start_frame"].to_pylist(), strict=True)
    return names


def windows_in_index(tree: dict[str, bytes]) -> int:
    """How many windows the index of clips tells of; 0 without one."""
    data = tree.get("index/clips.parquet")
    return 0 if data is None else sum(pq.read_table(io.BytesIO(data))["num_windows"].to_pylist())
