"""What docs/operations.md says in tables: every key of a deployment, and arithmetic that adds up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic_core import PydanticUndefined

from jobs.deploy.checks import check_deployment
from jobs.deploy.render import TREE
from pipeline.deploy_config import DeployConfig
from pipeline.job_config import all_keys, load_config

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()


def rows(title: str, first: str) -> list[list[str]]:
    """The cells of the first table under a title whose first column is called so."""
    part = TEXT.partition(f"{title}\n")[2]
    assert part, f"operations.md has no {title!r}"
    lines = part[part.index(f"| {first} |") :].splitlines()[2:]
    table = lines[: next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]


def numbers(cells: list[str]) -> list[float]:
    return [float(cell.replace(",", "")) for cell in cells]


def test_table_lists_every_key_with_its_default():
    keys = all_keys(DeployConfig, "deploy.")
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    table = rows("## Configuration of a deployment", "key")
    assert sorted(row[0] for row in table) == sorted(leaves)
    for key, default, _ in table:
        *sections, leaf = key.split(".")[1:]
        model = DeployConfig
        for section in sections:
            model = model.model_fields[section].annotation
        value = model.model_fields[leaf].default
        wanted = "needed" if value is PydanticUndefined else str(value) if value not in (None, (), {}) else "none"
        assert default == wanted, key


def test_example_fits_its_cluster():
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if "deploy:" in block]
    checked = check_deployment(load_config(example))
    assert yaml.safe_load(example)["deploy"]["image"] == checked.deploy.image


def test_pod_monitor_finds_every_pod_of_ray():
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if "PodMonitor" in block]
    spec = yaml.safe_load(text)["spec"]
    (port,) = [endpoint["port"] for endpoint in spec["podMetricsEndpoints"]]
    wanted = spec["selector"]["matchLabels"].items()
    cluster = yaml.safe_load((TREE / "base" / "ray_cluster.yaml").read_text())["spec"]
    tokenizers = yaml.safe_load((TREE / "components" / "gpu" / "add_group.yaml").read_text())[0]["value"]
    for part in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"], tokenizers):
        assert wanted <= part["template"]["metadata"]["labels"].items()
        (container,) = part["template"]["spec"]["containers"]
        assert {"containerPort": 8080, "name": port} in container["ports"]


@pytest.mark.parametrize(("title", "stride"), [("**Stride 100**", 100), ("**Every offset (stride 1)**", 1)])
def test_capacity_follows_from_its_assumptions(title, stride):
    given = rows("## Capacity", "assumption")
    frame, speed, core, unit, requests, _, _, _, written = numbers([row[1] for row in given])
    table = rows(title, "GPUs")
    assert [row[0] for row in table] == ["1", "8", "64", "256", "1,000"]
    for row in table:
        gpus, windows, read, cores, units, asked, out = numbers(row[:7])
        assert windows == gpus * speed
        read_bytes = windows * frame * stride
        assert read == pytest.approx(read_bytes / 1e9, abs=0.005)
        assert cores == pytest.approx(read_bytes / core, abs=1)
        assert units == pytest.approx(read_bytes / unit, rel=0.05)
        assert asked == pytest.approx(requests * read_bytes / unit, abs=0.5)
        assert out == pytest.approx(windows * written / 1e9, abs=0.005)
