"""The report as one HTML page: pictures inside it, nothing loaded from elsewhere.

Knows no storage. Names come from strangers: the template escapes everything that it shows.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline.dataset.manifest import Manifest
from pipeline.quality.decoding import SampleFigures
from pipeline.report.measure import NUM_SOURCES, NUM_WORST, Report
from pipeline.run.time_account import who_waits

STATUS_WORDS = {
    "complete": "Decoded motion is as close to the recorded as the codec's own record promises.",
    "unrated": "Nothing is known against these tokens, but they were not held against a recorded quality.",
    "staged": "The gate failed: these tokens are not published.",
}
OUTCOME_WORDS = {
    "passed": "passed, against the error that the checkpoint recorded on held-out motion",
    "passed_without_reference": "passed; the checkpoint records no error to compare with",
    "failed": "failed",
    "not_run": "not run",
}


def report_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        pictures: name -> PNG, of pictures.py.
    """
    manifest, decoded = report.dataset.manifest, report.decoded
    codec = manifest.contract.codec
    return _template().render(
        manifest=manifest,
        codec=codec,
        hours=sum(part.hours for part in manifest.splits.values()),
        num_bytes=sum(file.bytes for file in manifest.all_files),
        status_words=_status_words(manifest),
        outcome_words=OUTCOME_WORDS[manifest.gate.outcome] if manifest.gate else "not known to this dataset",
        findings=_findings(report),
        pictures={name: Markup(_data_uri(data)) for name, data in pictures.items()},
        codes=report.codes,
        scales=list(enumerate(codec.patch_nums)),
        decoded=decoded,
        groups=_rows_of_groups(decoded.figures) if decoded else [],
        worst=decoded.clips[:NUM_WORST] if decoded else [],
        certificate=decoded.certificate if decoded else None,
        sources=report.sources,
        num_sources=report.num_sources,
        max_sources=NUM_SOURCES,
        drops=report.drops,
        examples=report.examples,
        run=report.runs[0] if report.runs else None,
        waits=who_waits(report.runs[0].get("stage_seconds", {})) if report.runs else "",
    )


@cache
def _template() -> Template:
    """Return the page's template, compiled once per process."""
    environment = Environment(
        loader=PackageLoader("pipeline", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(number=_number, share=_share)
    return environment.get_template("report.html.j2")


def _status_words(manifest: Manifest) -> str:
    if manifest.status == "unrated" and manifest.gate and manifest.gate.outcome == "failed":
        return "The gate failed: these tokens were published all the same, as was asked for."
    return STATUS_WORDS[manifest.status]


def _findings(report: Report) -> list[str]:
    """Return what the gate said of this version, as the record of its run tells."""
    version = report.dataset.manifest.version
    for run in report.runs:
        if run.get("version") == version and isinstance(run.get("gate"), dict):
            return [str(line) for line in run["gate"].get("findings", [])]
    return []


def _rows_of_groups(figures: SampleFigures) -> list[dict[str, object]]:
    """Return a row a motion group: errors in its unit, and as a share of keeping the mean."""
    return [
        {
            "name": group.name,
            "unit": group.unit,
            "error": group.mean_absolute,
            "velocity": group.velocity,
            "jerk": group.jerk,
            "jerk_ratio": group.jerk_ratio,
            "fraction": own.fraction_of_mean,
            "own_fraction": own.fraction_of_own_mean,
        }
        for group, own in zip(figures.as_trained.groups, figures.groups, strict=True)
    ]


def _number(value: float) -> str:
    """Return three significant digits, without an exponent where that stays short."""
    return f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "does not move" if value is None else f"{100 * value:.0f} %"


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
