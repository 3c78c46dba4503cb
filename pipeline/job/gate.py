"""The publish gate: do these tokens decode to the motion they were made from? Asked before a dataset is published.

Knows no Ray. It looks at a seeded sample; what is measured goes to run.json and the report, and only what is equal on
every machine into dataset.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from bitwise_vae.checkpoints.checkpoint import read_checkpoint
from bitwise_vae.checkpoints.digest import sample_digest
from bitwise_vae.checkpoints.quality_record import QualityRecord
from bitwise_vae.model import BitwiseVAE
from pipeline.dataset.manifest import GateRecord, Manifest, Status, read_manifest
from pipeline.errors import GateFailedError, OutputMismatchError
from pipeline.job.request import Job
from pipeline.plan.plan import Plan
from pipeline.plan.units import Unit
from pipeline.quality.certificate import certify_sample
from pipeline.quality.decoding import Float32s, GroupFigures, SampleFigures, decode_sample, measure_sample
from pipeline.quality.sample import WindowSample, draw_sample
from pipeline.settings.job_config import JobConfig
from pipeline.stages.codec import Codec, pick_device
from pipeline.stages.read import UnitReader

GATE_WINDOWS = 64
MEAN_LIMIT, GROUP_LIMIT = 0.7, 0.9
"""Shares of the error of keeping the checkpoint's mean that decoded motion must stay under: all columns, and one group
alone. Random weights come to 1 and more."""
OWN_MEAN_LIMIT = 2.0
"""The same of keeping the sample's own mean: a calm speaker whose mean is another may exceed 1, other units go far
beyond."""
TINY = 1e-9
UNITS_RATIO = 10.0
"""Deviations of data and checkpoint that differ by more make one think of other units."""


@dataclass(frozen=True)
class GateResult:
    """What the gate found; built by `judge`, used up by the job and its report."""

    record: GateRecord
    status: Status
    findings: tuple[str, ...] = ()
    """Why it failed, in words, with what was measured."""
    figures: SampleFigures | None = None
    sample: WindowSample | None = field(default=None, repr=False)
    """What was looked at; None where the gate did not run."""
    decoded: Float32s | None = field(default=None, repr=False)
    """What its tokens decode to."""
    codec: Codec | None = field(default=None, repr=False)
    draw: Callable[[], WindowSample] | None = field(default=None, repr=False)
    """Draws the same sample, for a report after a gate that did not run."""

    @property
    def described(self) -> dict[str, Any]:
        """Return what was measured, for run.json."""
        tree: dict[str, Any] = {"outcome": self.record.outcome, "findings": list(self.findings)}
        if self.figures is not None and self.sample is not None:
            groups = {group.name: asdict(group) for group in self.figures.groups}
            tree.update(
                windows=len(self.sample),
                normalised_l1=self.figures.as_trained.normalised_l1,
                fraction_of_mean=self.figures.as_trained.fraction_of_mean,
                fraction_of_own_mean=self.figures.fraction_of_own_mean,
                groups=groups,
            )
        return tree

    def require_passed(self, place: str) -> None:
        """Make sure that the dataset may be used.

        Args:
            place: of the dataset, for the message.

        Raises:
            GateFailedError: the gate failed and is enforced.
        """
        if self.status == "staged":
            raise GateFailedError(f"the gate failed, {place} stays staged: {'; '.join(self.findings)}. Next: {_NEXT}")


_NEXT = "check codec, units and columns of the motion; --gate warn publishes nevertheless"


def judge(job: Job, plan: Plan) -> GateResult:
    """Decode a sample of a job's fragments and say which status the dataset gets.

    Raises:
        VerifyError: the input holds other motion than the fragments were made from.
        StorageError: storage did not answer after all retries.
    """
    config, recorded = job.config, job.codec.record
    settings = gate_settings(config)
    draw = partial(_sample_of_job, job, plan, _new_units(job, plan))
    not_run = GateResult(GateRecord(**settings, outcome="not_run"), "unrated", codec=job.codec, draw=draw)
    if config.gate == "off":
        return not_run
    sample = draw()
    if not len(sample):
        return not_run
    model = read_checkpoint(job.codec.data, "codec.safetensors").to(pick_device())
    decoded = decode_sample(model, sample.bits)
    figures = measure_sample(model, sample, decoded)
    found = {
        "digest": _digest_findings(model, recorded),
        "error": _error_findings(figures, recorded, config.max_error_ratio),
        "mean": _mean_findings(figures),
        "flips": _flip_findings(job, sample),
    }
    failed = tuple(name for name, findings in found.items() if findings)
    findings = tuple(line for lines in found.values() for line in lines)
    outcome = "failed" if failed else "passed" if recorded else "passed_without_reference"
    record = GateRecord(**settings, outcome=outcome, failed=failed, reference=_reference(recorded))
    return GateResult(record, _status(record), findings, figures, sample, decoded, job.codec)


def gate_settings(config: JobConfig) -> dict[str, Any]:
    """Return what of a configuration decides about the gate."""
    return {
        "mode": config.gate,
        "max_error_ratio": config.max_error_ratio,
        "max_flip_rate": config.max_flip_rate,
    }


def is_judged(manifest: Manifest, config: JobConfig) -> bool:
    """Return whether a published dataset stands as the gate, under these settings, would leave it."""
    gate = manifest.gate
    if gate is None or manifest.status == "staged":
        return False
    return {name: getattr(gate, name) for name in gate_settings(config)} == gate_settings(config)


def _status(record: GateRecord) -> Status:
    if record.outcome == "failed":
        return "staged" if record.mode == "enforce" else "unrated"
    return "complete" if record.outcome == "passed" else "unrated"


def _reference(recorded: QualityRecord | None) -> dict[str, float] | None:
    if recorded is None:
        return None
    return {"fraction_of_mean": recorded.fraction_of_mean, "normalised_l1": recorded.normalised_l1}


def _sample_of_job(job: Job, plan: Plan, first: Sequence[Unit]) -> WindowSample:
    folders = {root.name: root.folder for root in job.roots}
    reader = UnitReader(folders, job.contract.spec, job.clips, job.codec.mean, job.codec.std)
    return draw_sample(job.store, plan.units, reader, GATE_WINDOWS, first=first)


def _new_units(job: Job, plan: Plan) -> list[Unit]:
    """Return the units that the published dataset of this store does not hold: they are looked at first."""
    manifest = read_manifest(job.output)
    if manifest is None or manifest.status == "staged" or manifest.spec_id != job.contract.spec.spec_id:
        return []
    try:
        published = job.store.plan_of_version(manifest.version)
    except OutputMismatchError:
        return []
    standing = {(unit.key, unit.stamp) for unit in published.units}
    return [unit for unit in plan.units if (unit.key, unit.stamp) not in standing]


def _digest_findings(model: BitwiseVAE, recorded: QualityRecord | None) -> list[str]:
    if recorded is None:
        return []
    if recorded.patch_nums != model.patch_nums:
        return [f"the weights were trained with the schedule {recorded.patch_nums}, not {model.patch_nums}"]
    if recorded.sample_digest != sample_digest(model):
        return [
            "the built-in sample gives other bits than were recorded with the weights: they or their statistics"
            " or sizes are not those of the training"
        ]
    return []


def _error_findings(figures: SampleFigures, recorded: QualityRecord | None, max_ratio: float) -> list[str]:
    """Compare with the recorded error, in the checkpoint's deviations and as a share of keeping its mean.

    The smaller ratio counts: livelier motion than the training's raises the one, calmer motion the other.
    """
    if recorded is None:
        return []
    found = figures.as_trained
    ratio = min(
        found.normalised_l1 / max(recorded.normalised_l1, TINY),
        found.fraction_of_mean / max(recorded.fraction_of_mean, TINY),
    )
    if ratio <= max_ratio:
        return []
    return [
        f"decoded motion is {ratio:.3g} times as far off as the checkpoint recorded on held-out motion"
        f" ({found.normalised_l1:.3g} deviations against {recorded.normalised_l1:.3g}; {max_ratio:g} times are allowed)"
    ]


def _mean_findings(figures: SampleFigures) -> list[str]:
    """Compare with keeping the mean, the checkpoint's and the sample's own, all columns and group by group."""
    findings = []
    share, own_share = figures.as_trained.fraction_of_mean, figures.fraction_of_own_mean
    if _reaches(share, MEAN_LIMIT):
        findings.append(
            f"decoded motion is {share:.3g} times as far off as keeping the mean would be, under {MEAN_LIMIT:g} is"
            " wanted: the weights are untrained, or made for other motion or other statistics"
        )
    elif _reaches(own_share, OWN_MEAN_LIMIT):
        findings.append(
            f"decoded motion is {own_share:.3g} times as far off as keeping the sample's own mean would be: the motion"
            " is small beside the checkpoint's statistics, as in other units"
        )
    for group in figures.groups:
        if group.fraction_of_own_mean is None:
            continue  # it does not move
        if _reaches(group.fraction_of_mean, GROUP_LIMIT):
            share_text = f"{group.fraction_of_mean:.3g} times as far off as keeping the mean would be"
        elif _reaches(group.fraction_of_own_mean, OWN_MEAN_LIMIT):
            share_text = f"{group.fraction_of_own_mean:.3g} times as far off as keeping its own mean would be"
        else:
            continue
        findings.append(f"{group.name} is {share_text}{_units_hint(group)}")
    return findings


def _reaches(share: float | None, limit: float) -> bool:
    """Return whether a share is too large; one that is no number is."""
    return share is not None and not share < limit


def _units_hint(group: GroupFigures) -> str:
    ratio = group.deviation_ratio
    if 1 / UNITS_RATIO < ratio < UNITS_RATIO:
        return ""
    named = f" (in {group.unit})" if group.unit else ""
    ratio_text = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / max(ratio, TINY):.3g} of"
    degrees = ", as degrees do where radians are wanted" if 40 < max(ratio, 1 / max(ratio, TINY)) < 80 else ""
    return f": its values spread {ratio_text} what the checkpoint expects{named}{degrees}"


def _flip_findings(job: Job, sample: WindowSample) -> list[str]:
    budget = job.config.max_flip_rate
    if budget is None:
        return []
    certificate = certify_sample(job.codec.data, job.contract, sample, other_precisions=False)
    return certificate.over_budget(budget)
