"""Fixtures for all tests: real motion, a real S3 server, one local Ray.

The environment is set before anything imports Ray.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import CodecSpec, CorpusSpec, WindowRule

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    OMP_NUM_THREADS="1",
)

S3_START_S = 30
ACCESS_KEY, SECRET_KEY = "test-access", "test-secret-key"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real motion: `shared/data` beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.fail(f"real motion is missing: wanted {folder} with flame106/ and arkit_iphone/")
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

    endpoint: str

    @property
    def options(self) -> dict[str, Any]:
        """Options for fsspec."""
        return {"key": ACCESS_KEY, "secret": SECRET_KEY, "client_kwargs": {"endpoint_url": self.endpoint}}

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
    folder = tmp_path_factory.mktemp("s3")
    program = shutil.which("juicefs", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.fail("no juicefs program: install the extra motion-tokens[test]")
    meta = f"sqlite3://{folder / 'meta.db'}"
    subprocess.run(
        [program, "format", "--storage", "file", "--bucket", f"{folder / 'data'}/", meta, "tests"],
        check=True,
        capture_output=True,
    )
    address = f"127.0.0.1:{_free_port()}"
    environment = {
        **os.environ,
        "HOME": str(folder),
        "MINIO_ROOT_USER": ACCESS_KEY,
        "MINIO_ROOT_PASSWORD": SECRET_KEY,
    }
    command = [program, "gateway", "--multi-buckets", "--keep-etag", "--no-banner", "--no-usage-report"]
    with (folder / "gateway.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--cache-dir", str(folder / "cache"), meta, address],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        try:
            _wait_for_s3(f"http://{address}", server, folder / "gateway.log")
            yield S3Server(f"http://{address}")
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="session")
def ray_local(s3: S3Server) -> Iterator[Any]:
    """Run one local Ray of eight logical CPUs; its workers inherit the S3 server's address."""
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_s3(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + S3_START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{endpoint}/minio/health/live", timeout=1)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"the S3 server does not answer at {endpoint}: {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def write_clips() -> Callable[..., Path]:
    """Return a function that writes a folder of npz clips: ``write_clips(folder, {name: num_frames})``.

    Equal names and lengths give equal motion, in a walk of 4 dims at 25 frames a second unless asked otherwise.
    """
    import zlib

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
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights for 4 dims and windows of 5 frames."""
    import numpy as np

    from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint

    config = BitwiseVAEConfig(
        motion_dim=4, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2, fps=25
    )
    path = tmp_path_factory.mktemp("small") / "codec.safetensors"
    write_checkpoint(random_checkpoint(config, np.zeros(4), np.ones(4), 0), path)
    return path
