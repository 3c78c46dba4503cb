"""Fixtures for all tests: face motion, a real S3 server, one local Ray; and the rule for skipped tests.

The environment is set before anything imports Ray.

A test that needs something this machine lacks is skipped, and the last lines of a run say how many tests were skipped
and why. Where `MOTION_TOKENS_TESTS_REQUIRE_ALL` is set, as in CI, such a skip is a failure, unless its reason begins
with `hardware: `.
"""

from __future__ import annotations

import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from pipeline.contract.specs import CodecSpec, CorpusSpec, WindowRule

with pytest.MonkeyPatch.context() as beside:
    beside.syspath_prepend(str(Path(__file__).parent / "faults"))
    from s3_gateway import Gateway

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    OMP_NUM_THREADS="1",
)
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU, statement by statement


typer.testing._get_command = cache(typer.testing._get_command)  # every call would build all commands anew: 50 ms

REQUIRE_ALL = "MOTION_TOKENS_TESTS_REQUIRE_ALL"
HARDWARE = "hardware: "
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
"""What may lie beside the checkout and is not part of it: recorded motion, KubeRay's schemas."""


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test or a module was skipped."""
    told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return told.removeprefix("Skipped: ")


def _require(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure where every test is required, unless the hardware lacks something."""
    if report.skipped and REQUIRE_ALL in os.environ and not _reason(report).startswith(HARDWARE):
        report.longrepr = f"{report.nodeid} may not be skipped where {REQUIRE_ALL} is set: {_reason(report)}"
        report.outcome = "failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Apply the rule for skips to a test."""
    report = yield
    _require(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Apply the rule for skips to a module that is skipped as a whole."""
    report = yield
    _require(report)
    return report


SHARED_BY_MANY = ("nodes", "ray_local")
"""Fixtures that take seconds to start and idle at a cost: all files that use one run in one process, and first."""


@cache
def _shares(path: str) -> str:
    """Return the fixture of SHARED_BY_MANY that a test file uses, or the file itself."""
    text = (ROOT / path).read_text()
    return next((name for name in SHARED_BY_MANY if re.search(rf"\bdef \w+\([^)]*\b{name}\b", text)), path)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option that leaves two thirds of the slow tests out."""
    parser.addoption("--slow-third", metavar="SEED", help="of the slow tests, run the third that SEED chooses")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort tests so that what lasts longest starts first, and files that share a fixture follow each other."""
    seed = config.getoption("--slow-third")
    if seed is not None:
        left_out = [item for item in items if item.get_closest_marker("slow") and not _is_in_third(seed, item.nodeid)]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    order = (*SHARED_BY_MANY, "tests/faults", "")

    def place(item: pytest.Item) -> int:
        shared = _shares(_file(item.nodeid))
        return next(n for n, begin in enumerate(order) if shared.startswith(begin))

    items.sort(key=place)


def _is_in_third(seed: str, nodeid: str) -> bool:
    return zlib.crc32(f"{seed} {nodeid}".encode()) % 3 == 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return how pytest-xdist deals tests to processes: by file, files that share a fixture together."""
    from xdist.scheduler import LoadScopeScheduling

    class BySharedFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _shares(_file(nodeid))

    return BySharedFixture(config, log)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.fixture(autouse=True, scope="module")
def _end_ray_after_its_files(request: pytest.FixtureRequest) -> None:
    """End the local Ray before the first file that does not use it."""
    if _shares(_file(request.node.nodeid)) != "ray_local" and "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped, and why."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, num_skipped in sorted(reasons.items()):
        terminalreporter.write_line(f"{num_skipped} skipped: {reason}")


@pytest.fixture(scope="session")
def recorded_motion() -> Path:
    """Return the folder of recorded face motion beside the checkout, for tests whose subject is the recording."""
    return _beside("data", "recorded motion")


@pytest.fixture(scope="session")
def kuberay_schemas() -> Path:
    """Return the folder of KubeRay's schemas beside the checkout."""
    return _beside("schemas", "schemas of KubeRay")


def _beside(name: str, what: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {what}: expected shared/{name} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Return the folder of inputs, weights and outputs of the original models."""
    return Path(__file__).parent / "data" / "golden"


FLAME_FRAMES, ARKIT_FRAMES = (1906,), (1846, 1830, 1218)
"""Frames of the procedural takes: as long as recorded ones."""


@pytest.fixture(scope="session")
def procedural_motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of procedural face motion, laid out as the recorded one.

    `flame106/` holds a take of 30 fps with the fields motion and fps; `arkit_iphone/` takes of 60 fps with the fields
    values and fps, some of whose columns are constant, and a csv file.
    """
    import numpy as np

    from jobs.demo.procedural_motion import speech_motion
    from jobs.demo_codecs.procedural_arkit import ARKIT_CHANNELS, arkit_motion

    folder = tmp_path_factory.mktemp("procedural")
    flame, arkit = folder / "flame106", folder / "arkit_iphone"
    flame.mkdir()
    arkit.mkdir()
    for seed, num_frames in enumerate(FLAME_FRAMES):
        np.savez(flame / f"speaker_{seed}.npz", motion=speech_motion(num_frames, seed, 30.0), fps=np.float64(30))
    for seed, num_frames in enumerate(ARKIT_FRAMES):
        values = arkit_motion(num_frames, seed, 60.0)
        values[:, 52:55] = 0
        np.savez(arkit / f"take_{seed}.npz", values=values, channels=np.array(ARKIT_CHANNELS), fps=np.float64(60))
    (arkit / "take_0.csv").write_text("timecode," + ",".join(ARKIT_CHANNELS) + "\n")
    return folder


@pytest.fixture(scope="session", params=["procedural", "recorded"])
def face_motion(request: pytest.FixtureRequest) -> Path:
    """Return procedural and recorded face motion, one after the other, in the same layout."""
    folder: Path = request.getfixturevalue(f"{request.param}_motion")
    return folder


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., CodecSpec]:
    """Return a function that gives a small codec's spec, any field replaced."""
    fields = {
        "weights": "w",
        "statistics": "s",
        "motion_dim": 4,
        "code_dim": 8,
        "patch_nums": (1, 2, 5),
        "hidden_dim": 8,
        "depth": 1,
        "num_heads": 1,
        "fps": 25.0,
    }
    return lambda **changes: CodecSpec(**{**fields, **changes})


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., CorpusSpec]:
    """Return a function that gives the default corpus spec, any field replaced."""
    fields = {
        "motion_field": "motion",
        "clip_id_field": None,
        "motion_dim": None,
        "format": "auto",
        "columns": None,
        "fps": None,
        "resample": "none",
        "max_abs_z": None,
        "max_frozen_frames": None,
        "clips": "",
        "window": WindowRule(stride=5, tail="shift", phases=0, seed=0),
        "unit_bytes": 128 << 20,
        "unit_files": 64,
        "precision": "float32",
        "batch_size": 32,
    }
    return lambda **changes: CorpusSpec(**{**fields, **changes})


@dataclass(frozen=True)
class S3Server:
    """A running S3 server."""

    gateway: Gateway

    @property
    def endpoint(self) -> str:
        """Its address."""
        return self.gateway.endpoint

    @property
    def options(self) -> dict[str, Any]:
        """Options for fsspec."""
        return self.gateway.options

    def url(self, path: str) -> str:
        """Return the URL of ``bucket/prefix``; the bucket is made if it is new."""
        import s3fs

        bucket = path.partition("/")[0]
        filesystem = s3fs.S3FileSystem(use_listings_cache=False, **self.options)
        if not filesystem.exists(bucket):
            filesystem.mkdir(bucket)
        return f"s3://{path}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run an S3 server in a folder of its own; its address stands in the environment too."""
    gateway = Gateway(tmp_path_factory.mktemp("s3") / "server")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in gateway.environment.items():
            patch.setenv(name, value)
        try:
            gateway.start()
            yield S3Server(gateway)
        finally:
            gateway.kill()


@pytest.fixture(scope="session")
def ray_local(s3: S3Server) -> Iterator[Any]:
    """Run one local Ray of eight logical CPUs; its workers inherit the S3 server's address."""
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def write_clips() -> Callable[..., Path]:
    """Return a function that writes a folder of npz clips: ``write_clips(folder, {name: num_frames})``.

    Equal names and lengths give equal motion, in a walk of 4 dims at 25 frames a second unless asked otherwise.
    """
    import numpy as np

    def write(folder: Path, clips: dict[str, int], *, dims: int = 4, fps: float | None = 25.0) -> Path:
        for name, num_frames in clips.items():
            steps = np.random.default_rng(zlib.crc32(f"{name} {num_frames}".encode())).normal(size=(num_frames, dims))
            fields = {"motion": (np.cumsum(steps, axis=0) / 3).astype(np.float32)}
            path = folder / f"{name}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **fields, **({} if fps is None else {"fps": fps}))
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights for 4 dims and windows of 5 frames."""
    import numpy as np

    from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint

    config = BitwiseVAEConfig(
        motion_dim=4, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2, fps=25
    )
    path = tmp_path_factory.mktemp("small") / "codec.safetensors"
    write_checkpoint(random_checkpoint(config, np.zeros(4), np.ones(4), 0), path)
    return path


@pytest.fixture(scope="session")
def write_job() -> Callable[[Path, int, int], Path]:
    """Return a function that writes motion, one npz a clip, and a random codec for a job of some seconds.

    It takes the folder, the number of clips and the depth of the codec.
    """
    import numpy as np

    from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint

    def write(folder: Path, num_clips: int, depth: int) -> Path:
        (folder / "motion").mkdir()
        for n in range(num_clips):
            motion = np.random.default_rng(n).normal(size=(1000, 106)).astype(np.float32)
            np.savez(folder / "motion" / f"clip{n:02}.npz", motion=motion, fps=25)
        config = BitwiseVAEConfig(hidden_dim=256, depth=depth)
        write_checkpoint(random_checkpoint(config, np.zeros(106), np.ones(106), 0), folder / "codec.safetensors")
        return folder

    return write
