"""What docs/operations.md says in tables: every key of a deployment, and arithmetic that adds up."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from pydantic_core import PydanticUndefined

from bitwise_vae.config import BitwiseVAEConfig
from jobs.deploy.checks import STORE_SHARE, check_deployment
from jobs.deploy.render import TREE
from pipeline.settings.deploy_config import DeployConfig
from pipeline.settings.job_config import UnitConfig, all_keys, load_config
from pipeline.settings.run_config import RunConfig

MIB, GIB = 1 << 20, 1 << 30
READS = 16
"""Read tasks of a pod of 8 CPUs."""
FRAME_BYTES = 4 * BitwiseVAEConfig().motion_dim
TEXT = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text()


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


def assumptions() -> dict[str, float]:
    """What the capacity tables reckon with, by its name in the first of them."""
    return {row[0]: float(row[1].replace(",", "")) for row in rows("## Capacity", "assumption")}


def test_assumptions_of_the_capacity_are_those_of_the_code():
    given = assumptions()
    assert given["bytes a row"] == RunConfig().row_bytes == UnitConfig().bytes
    assert given["bytes a frame"] == FRAME_BYTES


@pytest.mark.parametrize(("title", "stride"), [("**Stride 100**", 100), ("**Every offset (stride 1)**", 1)])
def test_capacity_follows_from_its_assumptions(title, stride):
    given = assumptions()
    window_bytes = given["bytes a frame"] * stride
    table = rows(title, "GPUs")
    assert [row[0] for row in table] == ["1", "8", "64", "256", "1,000"]
    for row in table:
        gpus, wanted, read, cores, rows_per_s, asked, out = numbers(row[:7])
        assert wanted == gpus * given["windows a second, a GPU"]
        read_bytes = wanted * window_bytes
        assert read == pytest.approx(read_bytes / 1e9, abs=0.005)
        assert cores == math.ceil(read_bytes / given["bytes a second, a core that reads Parquet"])
        assert rows_per_s == pytest.approx(read_bytes / given["bytes a row"], rel=0.01, abs=0.05)
        assert asked == pytest.approx(given["requests a unit"] * read_bytes / given["bytes a row"], abs=0.5)
        assert out == pytest.approx(wanted * given["bytes of a window, written"] / 1e9, abs=0.005)
        windows_a_row = given["bytes a row"] / window_bytes
        limits = {
            "GPUs": wanted,
            "rows": given["rows a second, one job"] * windows_a_row,
            "requests": given["requests of one prefix a second"] / given["requests a unit"] * windows_a_row,
        }
        assert row[7] == min(limits, key=limits.__getitem__)
        assert numbers(row[8:]) == [round(min(limits.values()))]


def test_larger_rows_keep_more_gpus_busy_and_take_more_memory():
    given = assumptions()
    for row in rows("**Larger rows**", "`run.row_bytes`"):
        row_bytes, sparse, dense, task, memory, shm = numbers(row)
        for busy, stride in ((sparse, 100), (dense, 1)):
            windows = given["rows a second, one job"] * row_bytes / (given["bytes a frame"] * stride)
            assert busy == pytest.approx(windows / given["windows a second, a GPU"], abs=0.51 if stride == 1 else 0.051)
        assert task == pytest.approx((384 * MIB + 2.5 * row_bytes) / GIB, abs=0.006)
        assert shm == pytest.approx(READS * row_bytes / STORE_SHARE**2 / GIB, rel=0.02)
        assert memory == pytest.approx(1 + READS * task + shm, abs=0.2)
