"""What Ray finds in the environment: the same on every way to start it, and what a person set stays."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from jobs.cluster.submit import STOP_WAIT_S, job_environment
from jobs.deploy.checks import check_deployment
from jobs.deploy.render import render_deployment
from jobs.session.ray_environment import DRIVER_ENVIRONMENT, RAY_ENVIRONMENT, set_for_driver
from pipeline.settings.job_config import load_config

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "jobs" / "deploy"
NAMES = sorted(RAY_ENVIRONMENT | DRIVER_ENVIRONMENT)
NIGHTLY = """
deploy: {image: "motion:1", inputs: [s3://a], output: s3://b, checkpoint: demo, secret: keys}
"""
OWN_RAY = """
import json, os
from jobs.session.ray_start import ray_running
with ray_running():
    import ray
    there = ray.get(ray.remote(num_cpus=0.5)(lambda: dict(os.environ)).remote())
print(json.dumps([dict(os.environ), there]))
"""


def bare() -> dict[str, str]:
    """This process's environment without what is asked about."""
    left = {name: value for name, value in os.environ.items() if name not in (*NAMES, "RAY_ADDRESS")}
    return {**left, "PYTHONPATH": str(ROOT)}


def run(*words: str, **variables: str) -> str:
    done = subprocess.run(words, env=bare() | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_set_for_driver_says_what_it_has_set(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MIMALLOC_PURGE_DELAY", "7")
    set_here = set()
    for _ in range(2):  # a second cluster may lack as much as the first
        assert set_for_driver(set_here) | {"MIMALLOC_PURGE_DELAY": "-1"} == RAY_ENVIRONMENT
        assert "MIMALLOC_PURGE_DELAY" not in set_for_driver(set_here)
        found = {name: os.environ[name] for name in NAMES}
        assert found == RAY_ENVIRONMENT | DRIVER_ENVIRONMENT | {"MIMALLOC_PURGE_DELAY": "7"}


def test_a_shell_sets_what_is_printed():
    script = 'settings=$("$0" -m jobs.session.ray_environment) && eval "$settings" && "$0" -c "$1"'
    asked = "import json, os; print(json.dumps(dict(os.environ)))"
    words = ["bash", "-euc", script, sys.executable, asked]
    found = json.loads(run(*words, RAY_USAGE_STATS_ENABLED="it's 1"))
    assert {name: found[name] for name in RAY_ENVIRONMENT} == RAY_ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "it's 1"}
    assert not DRIVER_ENVIRONMENT.keys() & found.keys()


def test_it_imports_the_standard_library_only():
    asked = "import jobs.session.ray_environment, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run(sys.executable, "-S", "-c", asked).split())
    assert loaded <= {*sys.stdlib_module_names, "__main__", "jobs"}


def test_a_ray_of_our_own_has_it_with_its_workers():
    here, there = json.loads(run(sys.executable, "-c", OWN_RAY).splitlines()[-1])
    for name, value in (RAY_ENVIRONMENT | DRIVER_ENVIRONMENT).items():
        assert (here[name], there[name]) == (value, value)


def test_a_submitted_job_brings_it(monkeypatch):
    for name in (*NAMES, "RAY_JOB_STOP_WAIT_TIME_S"):
        monkeypatch.delenv(name, raising=False)
    assert job_environment() == RAY_ENVIRONMENT | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    for name in ("MALLOC_TRIM_THRESHOLD_", "RAY_JOB_STOP_WAIT_TIME_S"):
        monkeypatch.setenv(name, "5")
        assert job_environment()[name] == "5"


def test_pods_have_it(tmp_path):
    render_deployment(check_deployment(load_config(NIGHTLY)), tmp_path)
    patches = yaml.safe_load((tmp_path / "components" / "values" / "kustomization.yaml").read_text())["patches"]
    (text,) = (each["patch"] for each in patches if each["target"]["name"] == "motion-tokens-environment")
    found = {each["path"].removeprefix("/data/"): each["value"] for each in yaml.safe_load(text)}
    assert {name: found[name] for name in RAY_ENVIRONMENT} == RAY_ENVIRONMENT


def test_nodes_of_slurm_have_it():
    text = (DEPLOY / "slurm" / "tokenize.sh").read_text()
    assert text.index('eval "$settings"') < text.index("exec ray start")
    assert re.search(r"^settings=\$\(python -m jobs\.session\.ray_environment\) \|\| exit", text, re.MULTILINE)


def test_no_file_of_a_deployment_states_it_again():
    """But the image, for whoever starts Ray in it by hand: nothing is to be reported from there either."""
    stated = {
        (path.name, *found)
        for path in DEPLOY.rglob("*")
        if path.suffix in ("", ".sh", ".yaml", ".py") and path.is_file()
        for found in re.findall(rf"\b({'|'.join(NAMES)})[=:] *\"?([^\s\"\\]+)", path.read_text())
    }
    assert stated == {("Dockerfile", "RAY_USAGE_STATS_ENABLED", RAY_ENVIRONMENT["RAY_USAGE_STATS_ENABLED"])}
