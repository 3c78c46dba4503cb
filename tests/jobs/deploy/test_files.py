"""The Dockerfile and the batch script: linted, and the image's own steps run in a clean folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "jobs" / "deploy"
BIN = Path(sys.executable).parent
MOVED = ("/opt/motion-tokens", "/src")


def test_dockerfile_passes_hadolint():
    done = subprocess.run([BIN / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_scripts_pass_shellcheck():
    scripts = sorted(DEPLOY.rglob("*.sh"))
    assert scripts
    done = subprocess.run([BIN / "shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_dockerfile_ends_every_target_without_root():
    stages = stages_of(DEPLOY / "Dockerfile")
    for target in ("cpu", "cuda"):
        assert stages[target][-1] == ("USER", "1000:1000")
        assert not any(word in ("USER", "ADD") for word, _ in stages["environment"])


def test_dockerfile_pins_its_base():
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}", "runtime"}


def test_dockerfile_takes_torch_from_its_index_and_the_rest_from_pypi(tmp_path):
    """The step itself, by pip, between two small indexes; that of torch has other versions of what PyPI has too."""
    pins = dict(re.findall(r"^(torch|filelock|triton)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pypi, torch_index = tmp_path / "pypi", tmp_path / "torch"
    add_wheel(pypi, "torch", pins["torch"], "filelock", f"triton=={pins['triton']}")
    add_wheel(pypi, "triton", pins["triton"])
    add_wheel(pypi, "filelock", pins["filelock"])
    add_wheel(torch_index, "torch", f"{pins['torch']}+cpu", "filelock")
    add_wheel(torch_index, "filelock", "3.0")
    (step,) = (rest for _, rest in stages_of(DEPLOY / "Dockerfile")["environment"] if "TORCH_INDEX:+" in rest)
    step = step.replace("/opt/motion-tokens/bin/pip", f"{sys.executable} -m pip")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    own |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": pypi.as_uri(),
        "PIP_DRY_RUN": "1",
        "PIP_IGNORE_INSTALLED": "1",
    }

    def chosen(**variables: str) -> set[str]:
        done = subprocess.run(
            ["sh", "-eu", "-c", step],
            cwd=ROOT,
            env={**own, "TORCH_INDEX": "", **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return set(done.stdout.splitlines()[-1].removeprefix("Would install ").split())

    of_pypi = {f"{name}-{version}" for name, version in pins.items()}
    assert chosen() == of_pypi
    from_both = {f"torch-{pins['torch']}+cpu", f"filelock-{pins['filelock']}"}
    assert chosen(TORCH_INDEX=torch_index.as_uri()) == from_both


def add_wheel(index: Path, name: str, version: str, *requirements: str) -> None:
    """Put an empty package into an index of packages, as pip reads it from a folder."""
    file = index / name / f"{name}-{version}-py3-none-any.whl"
    file.parent.mkdir(parents=True, exist_ok=True)
    needs = "".join(f"Requires-Dist: {text}\n" for text in requirements)
    with zipfile.ZipFile(file, "w") as wheel:
        folder = f"{name}-{version}.dist-info"
        wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{folder}/RECORD", "")
    links = "".join(
        f'<a href="{urllib.parse.quote(path.name)}">{path.name}</a>\n' for path in file.parent.glob("*.whl")
    )
    (file.parent / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dockerfile_steps_install_a_command_that_works(tmp_path):
    """The stage `environment`, step by step, with its two folders moved; apt-get and useradd belong to the others."""
    root, context = tmp_path / "root", tmp_path / "context"
    folder = root
    ignored = shutil.ignore_patterns("__pycache__")
    context.mkdir()
    for name in kept(ROOT / ".dockerignore"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=ignored)
        else:
            shutil.copy(source, context / name)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for word, rest in stages_of(DEPLOY / "Dockerfile")["environment"]:
        if word == "ENV":
            environment |= dict(item.split("=", 1) for item in rest.split())
        elif word == "ARG":
            name, _, value = rest.partition("=")
            environment.setdefault(name, value.strip('"'))
        elif word == "WORKDIR":
            folder = root / rest.lstrip("/")
            folder.mkdir(parents=True)
        elif word == "COPY":
            *names, target = rest.split()
            for name in names:
                is_folder = (context / name).is_dir()
                copy = shutil.copytree if is_folder else shutil.copy
                copy(context / name, folder / target if is_folder else folder / target / name)
        elif word == "RUN":
            step = rest
            for path in MOVED:
                step = step.replace(path, str(root / path.lstrip("/")))
            done = subprocess.run(
                ["sh", "-eu", "-c", step],
                cwd=folder if folder.exists() else tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{step}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        else:
            pytest.fail(f"the stage says {word} {rest}: teach this test what that does")
    command = root / "opt" / "motion-tokens" / "bin" / "motion-tokens"
    (tmp_path / "run.yaml").write_text(
        "deploy: {image: 'motion:1', inputs: [s3://a], output: s3://b, checkpoint: demo, secret: keys}"
    )
    words = [command, "deploy", "render", tmp_path / "out", "--config", tmp_path / "run.yaml"]
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "out" / "base" / "ray_job.yaml").is_file()
    shutil.rmtree(root)  # more than a gigabyte


def kept(path: Path) -> list[str]:
    """What .dockerignore lets in."""
    return [line[1:] for line in path.read_text().splitlines() if line.startswith("!")]


def stages_of(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions, as word and rest."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    stages: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            instructions = stages.setdefault(rest.split(" AS ")[1], [])
        elif stages:
            instructions.append((word, rest.strip()))
    return stages
