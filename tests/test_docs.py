"""What the documents say: their examples run, and their tables name what the code names."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint
from jobs.cli import app
from jobs.cluster.submit import MEANINGS
from pipeline.contract import schema
from pipeline.contract.columns import token_schema
from pipeline.contract.drop_reasons import DropReason
from pipeline.contract.resolve import corpus_spec, export_spec
from pipeline.contract.specs import CodecSpec, TokenSpec
from pipeline.contract.windows import WindowRule, window_starts
from pipeline.dataset.manifest import Manifest
from pipeline.settings.job_config import JobConfig, all_keys, load_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.is_file()
]
FORMATS = ROOT / "docs" / "formats.md"

ANY_CODEC = CodecSpec(
    weights="", statistics="", motion_dim=106, code_dim=32, patch_nums=(1, 5, 25, 50, 100), hidden_dim=512, depth=6,
    num_heads=8, fps=25,
)  # fmt: skip
ASKED_FOR = {"flips.": "emit=flips", "input.audio.": "input.audio.field=wav"}
"""Keys of a section -> what has to be set for them to have an effect."""

BLOCK = re.compile(r"^```python\n(# runs\n.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")

ANOTHER_VALUE = {
    "input.format": "npz",
    "input.clip_id_field": "name",
    "input.motion_field": "exp",
    "input.motion_dim": "112",
    "input.columns": "0:106",
    "input.fps": "30",
    "input.resample": "linear",
    "input.max_abs_z": "50",
    "input.max_frozen_frames": "25",
    "input.clips.include": "ids.txt",
    "input.clips.exclude": "ids.txt",
    "input.carry": "[speaker]",
    "input.audio.field": "sound",
    "input.audio.rate_hz": "16000",
    "input.audio.mode": "reference",
    "input.audio.encoding": "flac",
    "input.audio.tolerance_s": "1",
    "input.duplicate_ids": "suffix",
    "input.checksum": "true",
    "window.preset": "training",
    "window.stride": "7",
    "window.tail": "pad",
    "window.phases": "3",
    "window.seed": "5",
    "units.bytes": "1000",
    "units.files": "3",
    "precision": "float16",
    "batch_size": "8",
    "emit": "[latent]",
    "flips.pairs": "2",
    "flips.ratio": "0.1",
    "flips.seed": "5",
    "export.formats": "parquet",
    "export.windows_per_shard": "100",
    "export.shuffle": "shard",
    "export.seed": "5",
    "export.splits.by": "source",
    "export.splits.ratios": "{train: 1}",
    "export.splits.salt": "b",
    "export.splits.file": "splits.json",
    "export.where": "num_frames > 500",
    "export.clips.include": "ids.txt",
    "export.clips.exclude": "ids.txt",
    "gate": "warn",
    "max_error_ratio": "3",
    "max_flip_rate": "1e-5",
    "run.workers": "3",
    "run.min_workers": "2",
    "run.gpus_per_worker": "0.5",
    "run.wait_for_resources_s": "60",
    "run.address": "auto",
    "run.threads": "3",
    "run.row_bytes": "1000",
    "run.local": "true",
    "run.when_active": "leave",
    "run.grace_s": "3",
    "run.deadline": "06:00",
    "run.max_runtime": "90m",
    "run.restart": "true",
    "run.numerics": "mixed",
    "run.max_dropped": "10",
    "run.report": "false",
    "run.log_format": "json",
    "run.metrics_port": "8090",
    "run.notify.command": "true now",
    "run.notify.webhook": "https://host/x",
    "run.notify.when": "failure",
    "run.notify.timeout_s": "3",
    "run.storage_options": "{anon: true}",
    "deploy": "{image: 'motion:1', inputs: [s3://a], output: s3://b, checkpoint: demo}",
}


def examples() -> list[Any]:
    """Every python block that says it runs, named by document and line."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(1)) + 1
            found.append(pytest.param(path, line, match[1], id=f"{path.name}:{line}"))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `motion/`, `codec.safetensors` of the released codec's shapes, and `tokens/` made of them."""
    folder = tmp_path_factory.mktemp("place")
    config = BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=2)
    write_checkpoint(random_checkpoint(config, np.zeros(106), np.ones(106), 0), folder / "codec.safetensors")
    (folder / "motion").mkdir()
    for n in range(12):
        steps = np.random.default_rng(n).normal(size=(100 + 25 * n, 106))
        motion = (steps.cumsum(axis=0) / 10).astype(np.float32)
        np.savez(folder / "motion" / f"clip{n:02}.npz", motion=motion, fps=25.0)
    np.savez(folder / "motion" / "short.npz", motion=np.zeros((9, 106), np.float32), fps=25.0)
    arguments = ["tokenize", folder / "motion", folder / "tokens", "-c", folder / "codec.safetensors", "--local"]
    arguments += ["--gate", "off"]
    ratios = "export.splits.ratios={train: 0.8, val: 0.2}"
    result = CliRunner().invoke(app, [*map(str, arguments), "--set", ratios])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize(("document", "line", "code"), examples())
def test_examples_run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document, line, code):
    """Each in a copy of the folder, with nothing of the examples before it but the names of their files."""
    shutil.copytree(place, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    lines_before = "\n" * (line - 1)
    exec(compile(lines_before + code, str(document), "exec"), {"__name__": "__main__"})


def test_examples_are_found():
    assert {path.name for path in DOCUMENTS} >= {"formats.md", "codec.md"}
    assert len(examples()) >= 7


def test_readme_names_every_command():
    named = re.findall(r"^\| (`[\w`, ]+`) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert commands <= {name for cell in named for name in re.findall(r"\w+", cell)}


def section(title: str) -> str:
    """The text under a heading of formats.md, up to the next heading of the same or a higher level."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |^### |\Z)", FORMATS.read_text(), re.S | re.M)
    assert match, f"formats.md has no section {title!r}"
    return match[2]


def table(title: str, first_column: str) -> list[list[str]]:
    """The cells of the section's table whose first column is called so, without its head; code marks removed."""
    lines = section(title).splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith(f"| {first_column} |")), None)
    assert start is not None, f"section {title!r} has no table of {first_column!r}"
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def names(title: str, first_column: str) -> list[str]:
    return [row[0].strip("`") for row in table(title, first_column)]


def leaves() -> list[str]:
    keys = all_keys(JobConfig)
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]


def test_configuration_table_lists_every_key():
    assert names("Configuration", "key") == leaves()


def test_configuration_table_states_the_defaults():
    for key, default, *_ in table("Configuration", "key"):
        value: Any = JobConfig()
        for part in key.strip("`").split("."):
            value = getattr(value, part)
        if isinstance(value, tuple):
            wanted = ",".join(value) or "none"
        elif value is None or value == "":
            wanted = "none" if value is None else "empty"
        elif isinstance(value, dict) and value:
            wanted = ", ".join(f"{name}: {share}" for name, share in value.items())
        else:
            wanted = str(value).lower()
        assert default.strip("`") == wanted, key


def test_configuration_table_states_what_a_key_changes(make_codec):
    codec: CodecSpec = make_codec(patch_nums=(1, 5, 25, 50, 100))

    def specs(*assignments: str) -> tuple[Any, Any]:
        config = load_config(None, assignments)
        listed = [
            f"{clips.include} {clips.exclude}" if clips.include or clips.exclude else ""
            for clips in (config.input.clips, config.export.clips)
        ]
        corpus = corpus_spec(config, codec, batch_size=config.batch_size or 32, clips_digest=listed[0])
        exported = export_spec(
            config, TokenSpec(codec=codec, corpus=corpus), config.export.splits.file or "", listed[1]
        )
        return corpus, exported.export_id

    plain = specs()
    for row in table("Configuration", "key"):
        key = row[0].strip("`")
        more = ["export.splits.by=file"] if key == "export.splits.file" else []
        asked = [item for above, item in ASKED_FOR.items() if key.startswith(above) and not item.startswith(f"{key}=")]
        without = specs(*asked) if asked else plain
        corpus, exported = specs(f"{key}={ANOTHER_VALUE[key]}", *more, *asked)
        found = "fragment" if corpus != without[0] else "shard" if exported != without[1] else "nothing"
        assert row[-1] == found, key


def test_quarantine_table_lists_every_reason():
    assert names("Quarantine reasons", "reason") == [reason.value for reason in DropReason]


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("Columns of a token shard", token_schema(ANY_CODEC)),
        ("index/clips.parquet", schema.CLIP_INDEX_SCHEMA),
        ("index/units.parquet", schema.UNIT_INDEX_SCHEMA),
        ("index/windows.parquet", schema.WINDOW_INDEX_SCHEMA),
        ("quarantine.parquet", schema.QUARANTINE_SCHEMA),
    ],
)
def test_column_tables_list_every_column_with_its_type(title, wanted):
    rows = table(title, "column")
    assert [row[0].strip("`") for row in rows] == wanted.names
    for row, field in zip(rows, wanted, strict=True):
        found = str(field.type)
        assert row[1].split(" of ")[0] in (found, found.split("[")[0], found.split("<")[0]), row


def test_ledger_columns_are_named():
    text = section("Columns of a token shard").partition("holds the ledger")[2]
    assert re.findall(r"`(\w+)`", text) == schema.LEDGER_SCHEMA.names


def test_dataset_json_table_lists_every_field():
    fields = {name.split(".")[0] for name in names("dataset.json", "field")}
    assert fields == set(Manifest.model_fields)


def test_output_tree_lists_every_file(place):
    tree = section("Output").split("```text\n")[1].split("```")[0]
    patterns, names_above = [], [""] * 9
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names_above[depth] = re.split(r"  ", line.strip())[0]
        parts = re.split(r"(<[^>]+>)", "".join(names_above[1 : depth + 1]))
        pattern = "".join("[^/]+" if part.startswith("<") else re.escape(part) for part in parts)
        patterns.append(re.compile(pattern))
    output = place / "tokens"
    files = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    assert "  versions/<16 hex>/  " in tree
    for file in files:
        name = re.sub(r"^versions/[0-9a-f]{16}/", "", file)  # a version's files have the names above
        assert any(pattern.fullmatch(name) for pattern in patterns), file


def test_window_table_is_right():
    for frames, stride, tails, starts, _ in table("Windows", "clip, frames"):
        for tail in re.findall(r"`(\w+)`", tails) or ("shift", "drop", "pad"):
            for step in (int(stride),) if stride != "any" else (1, 50, 100):
                rule = WindowRule(stride=step, tail=tail, phases=0, seed=0)
                found = window_starts("clip-1", int(frames), 100, rule).tolist()
                assert ", ".join(map(str, found)) == starts.replace("none", ""), (frames, step, tail)
    rule = WindowRule(stride=50, tail="shift", phases=1, seed=0)
    found = window_starts("clip-1", 330, 100, rule).tolist()
    assert f"the starts {', '.join(map(str, found))}." in section("Windows")


def test_picture_is_whole():
    root = ET.parse(ROOT / "docs" / "dataflow.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "viewBox" in root.attrib


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.parent.name == "docs"], ids=lambda p: p.name)
def test_links_of_documents_lead_somewhere(document):
    for link in LINK.findall(document.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        assert target.is_file(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, link


@pytest.mark.parametrize(
    ("document", "title", "others"),
    [("formats.md", "## Exit codes", {141}), ("operations.md", "## Exit codes and what to do", {137})],
)
def test_tables_of_exit_codes_name_those_that_there_are(document, title, others):
    part = (ROOT / "docs" / document).read_text().partition(f"\n{title}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in part.splitlines() if re.match(r"\| *\d", line)]
    assert {int(code) for cell in cells for code in cell.split(",")} == set(MEANINGS) | others


def test_no_document_promises_an_exit_code_that_there_is_not():
    found = {
        (path.name, int(code))
        for path in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md")
        for code in re.findall(r"(?:ends?|leaves|refuses) with (?:exit code )?(\d+)\b(?! [a-z]*s\b)", path.read_text())
    }
    assert {(name, code) for name, code in found if code not in {*MEANINGS, 137, 141}} == set()
