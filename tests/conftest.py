"""Fixtures for all tests: real motion, a real S3 server, one local Ray.

The environment is set before anything imports Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import CodecSpec, CorpusSpec, WindowRule

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
