"""Every number of a report, from a published dataset and, where given, a sample of its source motion.

Knows no Ray, pictures or HTML. Bounded: shards, runs and windows that are looked at do not grow with the dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bitwise_vae.checkpoints.checkpoint import read_checkpoint
from bitwise_vae.model import BitwiseVAE
from bitwise_vae.training.metrics import CodeFigures, CodeStatistics
from pipeline.contract.drop_reasons import NEXT_STEP, DropReason
from pipeline.contract.specs import Contract
from pipeline.dataset.open_dataset import OpenDataset, packed_bits
from pipeline.hashing import hash64
from pipeline.quality.certificate import Certificate, certify_sample
from pipeline.quality.decoding import Float32s, SampleFigures, decode_sample, measure_sample
from pipeline.quality.sample import WindowSample
from pipeline.run.history import read_runs
from pipeline.stages.codec import pick_device
from pipeline.tables import read_table

REPORT_WINDOWS, SCALE_WINDOWS, CERTIFIED_WINDOWS = 64, 8, 8
"""Windows that are decoded; that are decoded with fewer scales; that are encoded again."""
CODE_WINDOWS, CODE_SHARDS = 4096, 4
"""Windows whose bits are counted, and shards that they come from."""
NUM_WORST, NUM_SOURCES, NUM_RUNS = 10, 20, 5


@dataclass(frozen=True)
class ClipError:
    """Error of one clip's sampled windows."""

    clip_id: str
    source: str
    start_frame: int
    row: int
    """Of the sample: its worst window."""
    normalised_l1: float
    num_windows: int


@dataclass(frozen=True)
class Decoded:
    """A sample with what its tokens decode to."""

    model: BitwiseVAE
    sample: WindowSample
    motion: Float32s
    """(n, 2T, M)."""
    figures: SampleFigures
    by_scales: tuple[tuple[str, SampleFigures], ...]
    """Which scales were used, such as 1+5, and what came of it; on some of the windows."""
    clips: tuple[ClipError, ...]
    """Worst first."""
    certificate: Certificate


@dataclass(frozen=True)
class Codes:
    """How bits are used in some of the dataset's windows."""

    num_windows: int
    figures: CodeFigures
    window: NDArray[np.uint8]
    """(L, C): bits of one `this`, for a picture."""
    clip_id: str
    start_frame: int


@dataclass(frozen=True)
class SourceShare:
    """What one source, or a folder of sources, gave."""

    name: str
    clips: int
    windows: int
    hours: float


@dataclass(frozen=True)
class Report:
    """All that a report shows; built by `measure_report`, used up by pictures and page."""

    dataset: OpenDataset
    codes: Codes
    sources: tuple[SourceShare, ...]
    num_sources: int
    drops: tuple[tuple[str, int, str], ...]
    """Reason, clips, what to do."""
    examples: Mapping[str, Sequence[str]]
    """Reason -> a few dropped clips."""
    runs: tuple[Mapping[str, Any], ...]
    """run.json of the last runs, newest first."""
    decoded: Decoded | None


def measure_report(dataset: OpenDataset, decoded: Decoded | None) -> Report:
    """Look at a dataset.

    Raises:
        VerifyError: a shard is missing or damaged.
    """
    sources, num_sources = _sources(dataset)
    drops = tuple(
        (reason, count, NEXT_STEP[DropReason(reason)])
        for reason, count in sorted(dataset.manifest.drops.items(), key=lambda item: (-item[1], item[0]))
    )
    examples = _examples(dataset)
    return Report(
        dataset,
        _codes(dataset),
        sources,
        num_sources,
        drops,
        examples,
        tuple(reversed(read_runs(dataset.folder, NUM_RUNS))),
        decoded,
    )


def decode_and_certify(
    codec: bytes, contract: Contract, sample: WindowSample, motion: Float32s | None = None
) -> Decoded | None:
    """Decode a sample with all scales and with fewer, and encode some of it again; None for an empty one.

    Args:
        codec: safetensors bytes of the checkpoint.
        contract: of the dataset.
        sample: windows with their source motion.
        motion: what they decode to, where that is known.
    """
    if not len(sample):
        return None
    model = read_checkpoint(codec, "codec.safetensors").to(pick_device())
    if motion is None:
        motion = decode_sample(model, sample.bits)
    figures = measure_sample(model, sample, motion)
    some = sample.head(SCALE_WINDOWS)
    patch_nums = model.config.patch_nums
    by_scales = tuple(
        ("+".join(map(str, patch_nums[:count])), _figures_of_scales(model, some, count))
        for count in range(1, len(patch_nums) + 1)
    )
    certificate = certify_sample(codec, contract, sample.head(CERTIFIED_WINDOWS))
    clips = _clip_errors(model, sample, motion)
    return Decoded(model.cpu(), sample, motion, figures, by_scales, clips, certificate)


def metrics(report: Report) -> dict[str, Any]:
    """Return the numbers of a report as plain values: metrics.json."""
    manifest, codes = report.dataset.manifest, report.codes
    tree: dict[str, Any] = {
        "status": manifest.status,
        "spec_id": manifest.spec_id,
        "version": manifest.version,
        "gate": manifest.gate.model_dump(mode="json") if manifest.gate else None,
        "counts": manifest.counts,
        "splits": {name: part.model_dump() for name, part in manifest.splits.items()},
        "sources": [asdict(source) for source in report.sources],
        "num_sources": report.num_sources,
        "drops": manifest.drops,
        "codes": {
            "windows": codes.num_windows,
            "scales": [
                {
                    "tokens": tokens,
                    "tokens_counted": codes.figures.num_tokens[scale],
                    "mean_share_of_ones": float(codes.figures.share_of_ones[scale].mean()),
                    "mean_entropy_bits": codes.figures.mean_entropy[scale],
                    "dead_bits": [bit for at, bit in codes.figures.dead_bits if at == scale],
                    "distinct_tokens": codes.figures.distinct_tokens[scale],
                    "mean_correlation": codes.figures.mean_correlation[scale],
                    "share_of_ones": codes.figures.share_of_ones[scale].tolist(),
                    "entropy_bits": codes.figures.entropy[scale].tolist(),
                }
                for scale, tokens in enumerate(manifest.contract.codec.patch_nums)
            ],
        },
        "runs": list(report.runs),
    }
    if report.decoded is not None:
        tree["reconstruction"] = _reconstruction(report.decoded)
        tree["stability"] = report.decoded.certificate.described()
    return tree


def _reconstruction(decoded: Decoded) -> dict[str, Any]:
    return {
        "windows": len(decoded.sample),
        "clips": len(decoded.clips),
        "all_scales": _described(decoded.figures),
        "by_scales": {name: _described(figures) for name, figures in decoded.by_scales},
        "by_scales_windows": len(decoded.sample.head(SCALE_WINDOWS)),
        "worst_clips": [asdict(clip) for clip in decoded.clips[:NUM_WORST]],
    }


def _described(figures: SampleFigures) -> dict[str, Any]:
    groups = zip(figures.as_trained.groups, figures.groups, strict=True)
    return {
        "normalised_l1": figures.as_trained.normalised_l1,
        "fraction_of_mean": figures.as_trained.fraction_of_mean,
        "fraction_of_own_mean": figures.fraction_of_own_mean,
        "groups": [{**asdict(as_trained), **asdict(own)} for as_trained, own in groups],
    }


def _figures_of_scales(model: BitwiseVAE, some: WindowSample, count: int) -> SampleFigures:
    return measure_sample(model, some, decode_sample(model, some.bits, count))


def _clip_errors(model: BitwiseVAE, sample: WindowSample, motion: Float32s) -> tuple[ClipError, ...]:
    lost = np.abs(motion - sample.motion) / model.motion_std.cpu().numpy()
    weight = sample.is_compared.sum(axis=1)
    by_window = np.where(sample.is_compared[..., None], lost, 0).sum(axis=(1, 2)) / (weight * lost.shape[2])
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(sample.clip_ids):
        rows_of.setdefault(name, []).append(row)
    clips = []
    for name, rows in rows_of.items():
        worst = max(rows, key=lambda row: by_window[row])
        mean = float(np.average(by_window[rows], weights=weight[rows]))
        clips.append(ClipError(name, sample.sources[worst], int(sample.start_frame[worst]), worst, mean, len(rows)))
    return tuple(sorted(clips, key=lambda clip: (-clip.normalised_l1, clip.clip_id)))


def _codes(dataset: OpenDataset) -> Codes:
    codec = dataset.manifest.contract.codec
    name = "parquet" if "parquet" in dataset.manifest.shards else next(iter(dataset.manifest.shards))
    shards = dataset.shards(name)
    order = sorted(range(len(shards)), key=lambda index: hash64(shards[index].sha256))[:CODE_SHARDS]
    statistics = CodeStatistics(codec.patch_nums, codec.code_dim)
    num_windows, shown = 0, None
    for position, index in enumerate(order):
        table = dataset.read_shard(name, index)
        wanted = (CODE_WINDOWS - num_windows) // (len(order) - position)
        rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), max(1, wanted))).astype(np.int64))
        table = table.take(pa.array(rows))
        bits = packed_bits(table)[:, 1].reshape(len(rows), codec.num_tokens, -1)
        statistics.add_packed(bits)
        num_windows += len(rows)
        if shown is None:
            middle = len(rows) // 2
            shown = (np.unpackbits(bits[middle], axis=-1), table.slice(middle, 1).to_pylist()[0])
    if shown is None:
        raise ValueError("a published dataset has at least one shard")
    window, row = shown
    return Codes(num_windows, statistics.figures(), window, row["clip_id"], row["start_frame"])


def _sources(dataset: OpenDataset) -> tuple[tuple[SourceShare, ...], int]:
    """Return clips and windows by source, those of the most windows first; many sources by their folder."""
    fps = dataset.manifest.contract.codec.fps
    clips = dataset.kept.select(["source", "num_windows", "num_frames"])
    if pc.count_distinct(clips["source"]).as_py() > NUM_SOURCES:
        folders = pc.replace_substring_regex(clips["source"], r"/?[^/]*$", "/")
        if pc.count_distinct(folders).as_py() > 1:
            clips = clips.set_column(0, "source", folders)
    grouped = clips.group_by("source").aggregate(
        [("num_windows", "sum"), ("num_windows", "count"), ("num_frames", "sum")]
    )
    grouped = grouped.sort_by([("num_windows_sum", "descending"), ("source", "ascending")])
    shares = tuple(
        SourceShare(
            _named(row["source"]), row["num_windows_count"], row["num_windows_sum"], row["num_frames_sum"] / fps / 3600
        )
        for row in grouped.slice(0, NUM_SOURCES).to_pylist()
    )
    return shares, grouped.num_rows


def _named(folder: str) -> str:
    return "./" if folder == "/" else folder


def _examples(dataset: OpenDataset) -> dict[str, list[str]]:
    try:
        table = read_table(dataset.folder.read("quarantine.parquet"))
    except FileNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for reason in pc.unique(table["reason"]).to_pylist():
        rows = table.filter(pc.equal(table["reason"], reason)).slice(0, 3).to_pylist()
        found[reason] = [f"{row['clip_id'] or row['source']}: {row['detail']}" for row in rows]
    return found
