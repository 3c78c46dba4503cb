"""Writing a report: OUT/report/report.html, metrics.json and its pictures.

Knows no Ray. Nothing else of a dataset changes; a later report takes the place of an earlier one.
"""

from __future__ import annotations

import json
import math
from typing import Any

from pipeline.dataset.open_dataset import OpenDataset
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import InputNotFoundError
from pipeline.quality.decoding import Float32s
from pipeline.quality.sample import WindowSample, draw_sample
from pipeline.report.measure import REPORT_WINDOWS, decode_and_certify, measure_report, metrics
from pipeline.report.page import report_page
from pipeline.report.pictures import draw_pictures
from pipeline.stages.codec import Codec
from pipeline.stages.read import UnitReader
from pipeline.verify.deep import DeepJob

REPORT_FOLDER = "report"
STAGED_REPORT_FOLDER = "report/staged"
"""Of a dataset that failed the gate beside a published one."""


def sample_of_dataset(job: DeepJob, num_windows: int) -> WindowSample:
    """Return windows of a published dataset with their source motion.

    Raises:
        InputNotFoundError: the dataset has no token store, or the inputs hold nothing of it.
        VerifyError: the input holds other motion than the tokens were made from.
    """
    manifest = job.dataset.manifest
    store = TokenStore.of(job.dataset.folder, manifest.spec_id)
    committed = store.list_fragments()
    units = [unit for unit in job.plan.units if (unit.key, unit.stamp) in committed]
    if not units:
        raise InputNotFoundError(
            f"the token store of {job.dataset.folder} holds nothing of these inputs: name the dataset that tokenize"
            " wrote, and the inputs that it was given, in the same order and under the same names"
        )
    folders = {root.name: root.folder for root in job.roots}
    reader = UnitReader(folders, manifest.contract.spec, mean=job.codec.mean, std=job.codec.std)
    return draw_sample(store, units, reader, num_windows)


def report_dataset(job: DeepJob, num_windows: int = REPORT_WINDOWS) -> str:
    """Write the report of a published dataset with its inputs and codec, and return where it stands.

    Raises:
        InputNotFoundError: the inputs hold nothing of the dataset.
        VerifyError: the dataset is damaged, or the input holds other motion.
    """
    return write_report(job.dataset, job.codec, sample_of_dataset(job, num_windows))


def write_report(
    dataset: OpenDataset,
    codec: Codec | None = None,
    sample: WindowSample | None = None,
    motion: Float32s | None = None,
    place: str = REPORT_FOLDER,
) -> str:
    """Write the report of a dataset and return where it stands, below the output.

    Args:
        codec: what made the tokens, together with a sample; without them nothing is decoded.
        sample: windows with their source motion.
        motion: what they decode to, where that is known.
        place: folder below the output; a report of the published dataset ends that of a staged one.

    Raises:
        VerifyError: a shard is missing or damaged.
        StorageError: storage did not answer after all retries.
    """
    contract = dataset.manifest.contract
    decoded = decode_and_certify(codec.data, contract, sample, motion) if codec and sample else None
    report = measure_report(dataset, decoded)
    pictures = draw_pictures(report)
    page = report_page(report, pictures)
    if place == REPORT_FOLDER:
        for name in dataset.folder.list_names(STAGED_REPORT_FOLDER):
            dataset.folder.delete(f"{STAGED_REPORT_FOLDER}/{name}")
    for name, data in pictures.items():
        dataset.folder.publish(f"{place}/{name}.png", data)
    numbers = json.dumps(_finite(metrics(report)), indent=1, ensure_ascii=False, allow_nan=False)
    dataset.folder.publish(f"{place}/metrics.json", f"{numbers}\n".encode("utf-8", "backslashreplace"))
    path = f"{place}/report.html"
    dataset.folder.publish(path, page.encode("utf-8", "backslashreplace"))
    return path


def _finite(value: Any) -> Any:
    """Return plain values with null for what JSON cannot say."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
