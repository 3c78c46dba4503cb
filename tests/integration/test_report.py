"""The report and the certificate, from whole jobs: what they show, and what they must not do."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest
from matplotlib.figure import Figure

HOSTILE = [
    "<script>alert(1)</script>",
    "$\\frac{1}{",
    "a & b <img src=x onerror=alert(1)>",
    "\u65e5\u672c\u8a9e",
    "=1+1",
]
PICTURES = {"corpus", "codes", "correlations", "raster", "curves", "scales", "worst", "stability", "drops", "time"}


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory, quality_corpus):
    """A folder with motion, codecs and tokens with their report."""
    folder = tmp_path_factory.mktemp("report")
    codec = quality_corpus.write_codecs(folder)["good"]
    source = quality_corpus.write_corpus(folder / "motion", 12)
    for n, name in enumerate(HOSTILE):
        motion = 3 * quality_corpus.smooth_motion(40 + n, 90)  # among the worst clips
        np.savez(source / f"hostile{n}.npz", motion=motion, fps=25.0, clip_id=name)
    np.savez(source / "short.npz", motion=np.zeros((5, 4), np.float32), fps=25.0, clip_id="<b>short</b>")
    sets = ("--set", "gate=enforce", "--set", "run.report=true", "--set", "units.files=4")
    outcome = command("tokenize", source, folder / "tokens", "-c", codec, *sets, "--local")
    assert outcome.code == 0, outcome.text
    assert "report.html" in outcome.text
    return folder


def metrics_of(folder):
    return json.loads((folder / "tokens" / "report" / "metrics.json").read_text())


def test_tokenize_leaves_a_report_with_every_picture(finished):
    report = finished / "tokens" / "report"
    assert {path.stem for path in report.glob("*.png")} == PICTURES
    for path in report.glob("*.png"):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert (300 < width < 1500, 60 < height < 1500) == (True, True), path
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert len(page) < 3_000_000


def test_report_loads_nothing_and_escapes_names(finished):
    page = (finished / "tokens" / "report" / "report.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>short" not in page
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)""", page) == []
    assert "http" not in re.sub(r"http-equiv", "", page)


LOOK = """
<script>addEventListener("load", () => {
  const shown = [...document.images].map(image => [image.naturalWidth, image.clientWidth]);
  const page = document.documentElement;
  document.title = JSON.stringify({shown, wide: page.scrollWidth, window: innerWidth, text: page.innerText});
})</script>
"""
"""Tells through the title what a browser made of a page."""


@pytest.mark.parametrize("width", [1280, 500])
def test_report_opens_in_a_browser(finished, tmp_path, width):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    page = (finished / "tokens" / "report" / "report.html").read_text()
    policy = re.search(r"<meta http-equiv=.*>", page)[0]  # it lets no script run, ours neither
    (tmp_path / "page.html").write_text(page.replace(policy, LOOK))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    options += [f"--window-size={width},900", "--dump-dom", f"file://{tmp_path}/page.html"]
    found = subprocess.run([chromium, *options], capture_output=True, text=True, check=True, timeout=120).stdout
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", found, re.DOTALL)[1]))
    assert seen["window"] == width
    assert len(seen["shown"]) == len(PICTURES)
    assert all(natural > 300 and 0 < shown <= width for natural, shown in seen["shown"]), seen["shown"]
    assert seen["wide"] <= width, "the page scrolls sideways"
    assert HOSTILE[0] in seen["text"]


def test_metrics_agree_with_the_dataset_and_the_gate(finished):
    found = metrics_of(finished)
    manifest = json.loads((finished / "tokens" / "dataset.json").read_text())
    assert found["status"] == "complete"
    assert found["counts"] == manifest["counts"]
    assert found["drops"] == {"too_short": 1}
    assert sum(source["windows"] for source in found["sources"]) == manifest["counts"]["windows"]
    everything = found["reconstruction"]["all_scales"]
    run = found["runs"][0]
    assert everything["fraction_of_own_mean"] == run["gate"]["fraction_of_own_mean"]
    assert [group["name"] for group in everything["groups"]] == ["expression", "head_pose"]
    assert list(found["reconstruction"]["by_scales"]) == ["1", "1+4", "1+4+10", "1+4+10+20"]
    worst = found["reconstruction"]["worst_clips"]
    assert 0 < len(worst) <= 10
    assert [clip["normalised_l1"] for clip in worst] == sorted((clip["normalised_l1"] for clip in worst), reverse=True)
    assert [scale["tokens"] for scale in found["codes"]["scales"]] == [1, 4, 10, 20]
    for scale in found["codes"]["scales"]:
        assert 0 < scale["distinct_tokens"] <= scale["tokens_counted"]
        assert len(scale["share_of_ones"]) == 8


def test_errors_fall_with_every_scale(finished):
    by_scales = metrics_of(finished)["reconstruction"]["by_scales"]
    errors = [figures["fraction_of_mean"] for figures in by_scales.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5


def test_report_command_without_inputs_shows_the_tokens_alone(command, finished):
    page = finished / "tokens" / "report" / "report.html"
    whole = page.read_text()
    outcome = command("report", finished / "tokens")
    assert (outcome.code, "tokens alone" in outcome.text) == (0, True), outcome.text
    assert "reconstruction" not in metrics_of(finished)
    assert "Are the bits used?" in page.read_text()
    assert "Does it decode" not in page.read_text()
    outcome = command("report", finished / "tokens", finished / "motion", "-c", finished / "good.safetensors")
    assert outcome.code == 0, outcome.text
    assert "Does it decode" in page.read_text()
    assert abs(len(page.read_text()) - len(whole)) < 0.2 * len(whole)


def test_report_command_refuses_what_does_not_belong_to_the_dataset(command, finished, tmp_path, quality_corpus):
    tokens, codec = finished / "tokens", finished / "good.safetensors"
    assert command("report", tokens, finished / "motion").code == 2
    assert command("report", tmp_path / "nothing").code == 2
    outcome = command("report", tokens, finished / "motion", "-c", finished / "random.safetensors")
    assert (outcome.code, "another codec" in outcome.text) == (2, True)
    other = quality_corpus.write_corpus(tmp_path / "other", 2)
    outcome = command("report", tokens, other, "-c", codec)
    assert (outcome.code, "holds nothing of these inputs" in outcome.text) == (2, True)


def test_a_fault_in_the_report_does_not_fail_the_run(command, finished, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no [pictures] today")

    monkeypatch.setattr(Figure, "savefig", fail)
    sets = ("--set", "run.report=true")
    arguments = (finished / "motion", tmp_path / "o", "-c", finished / "good.safetensors", *sets, "--local")
    outcome = command("tokenize", *arguments)
    assert (outcome.code, "no report" in outcome.text, "no [pictures] today" in outcome.text) == (0, True, True)
    assert command("verify", tmp_path / "o").code == 0


def test_a_staged_dataset_has_a_report_too(command, finished, tmp_path):
    sets = ("--set", "gate=enforce", "--set", "run.report=true")
    codec = finished / "random.safetensors"
    outcome = command("tokenize", finished / "motion", tmp_path / "o", "-c", codec, *sets, "--local")
    assert outcome.code == 65
    page = (tmp_path / "o" / "report" / "report.html").read_text()
    assert "staged" in page
    assert "the weights are untrained" in page


def test_a_staged_increment_has_a_report_of_its_own(command, finished, tmp_path, quality_corpus):
    source, output = tmp_path / "motion", tmp_path / "o"
    shutil.copytree(finished / "motion", source)
    sets = ("--set", "gate=enforce", "--set", "run.report=true", "--set", "units.files=4", "--local")
    codec = finished / "good.safetensors"
    assert command("tokenize", source, output, "-c", codec, *sets).code == 0
    published = (output / "report" / "report.html").read_bytes()
    for path in quality_corpus.write_corpus(tmp_path / "degrees", 20, (1, 1, 57.3, 57.3), first=20).iterdir():
        shutil.copy(path, source)
    outcome = command("tokenize", source, output, "-c", codec, *sets)
    assert (outcome.code, "report/staged/report.html" in outcome.text.replace("\n", "")) == (65, True), outcome.text
    assert (output / "report" / "report.html").read_bytes() == published
    assert "The gate failed" in (output / "report" / "staged" / "report.html").read_text()
    assert command("tokenize", source, output, "-c", codec, *sets, "--gate", "warn").code == 0
    assert not (output / "report" / "staged" / "report.html").exists()


def test_report_leaves_the_dataset_as_it_is(command, finished, tools):
    before = tools.tree_of(finished / "tokens")
    assert command("report", finished / "tokens").code == 0
    assert tools.tree_of(finished / "tokens") == before


def test_certify_counts_flips_and_keeps_a_budget(command, finished, tmp_path):
    arguments = ("certify", finished / "tokens", finished / "motion", "-c", finished / "good.safetensors")
    outcome = command(*arguments, "--windows", 12, "--json", tmp_path / "c.json")
    assert (outcome.code, "bfloat16 / float64" in outcome.text) == (0, True), outcome.text
    found = json.loads((tmp_path / "c.json").read_text())
    assert (found["windows"], found["max_flip_rate"], found["is_within_budget"]) == (12, None, True)
    shares = {item["name"]: item["share"] for item in found["comparisons"]}
    assert shares["stored in the dataset"] == 0
    assert shares["reversed order"] == shares["shuffled order"] == 0
    assert shares["float32 / float64"] < 1e-4 < shares["bfloat16 / float64"] < 0.05
    assert sum(found["bits_by_value"]) == 12 * 2 * 35 * 8
    for item in found["comparisons"]:
        if item["first_flips"] is not None:
            assert sum(item["first_flips_by_value"]) == item["first_flips"]
            flips = sum(scale["differing_prev"] + scale["differing_this"] for scale in item["scales"])
            assert item["first_flips"] <= flips
    assert command(*arguments, "--windows", 12, "--max-flip-rate", 0.5).code == 0


def test_certify_fails_above_the_budget(command, finished, tmp_path):
    codec, tokens = finished / "good.safetensors", tmp_path / "o"
    made = command("tokenize", finished / "motion", tokens, "-c", codec, "--precision", "bfloat16", "--local")
    assert made.code == 0, made.text
    arguments = ("certify", tokens, finished / "motion", "-c", codec, "--windows", 12, "--json", tmp_path / "c.json")
    outcome = command(*arguments, "--max-flip-rate", "1e-6")
    assert (outcome.code, "over budget" in outcome.text) == (1, True), outcome.text
    assert json.loads((tmp_path / "c.json").read_text())["is_within_budget"] is False
    assert command(*arguments, "--max-flip-rate", "0.2").code == 0


def test_report_and_certificate_work_on_object_storage(command, finished, s3):
    from s3fs import S3FileSystem

    tokens, codec = s3.url("report/tokens"), finished / "good.safetensors"
    sets = ("--set", "run.report=true", "--set", "gate=enforce")
    outcome = command("tokenize", finished / "motion", tokens, "-c", codec, *sets, "--local")
    assert (outcome.code, f"{tokens}/report/report.html" in outcome.text) == (0, True), outcome.text
    files = S3FileSystem(use_listings_cache=False, **s3.options)
    assert b"Does it decode" in files.cat_file(f"{tokens}/report/report.html")
    assert command("certify", tokens, finished / "motion", "-c", codec, "--windows", 4).code == 0
