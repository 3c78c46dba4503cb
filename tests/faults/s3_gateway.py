"""The real S3 server of the tests: it can be killed and come back, with its data and on its port.

Knows nothing of what is stored on it.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

S3_START_S = 30
ACCESS_KEY, SECRET_KEY = "test-access", "test-secret-key"


class Gateway:
    """An S3 server on one port for its life; whoever builds it closes it.

    Args:
        folder: holds its data, which outlive a kill.
        host: where it listens.
        prefix: words before its command, such as those that enter a network namespace.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        folder.mkdir(parents=True)
        program = shutil.which("juicefs", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if program is None:
            raise FileNotFoundError("no juicefs program: install the extra motion-tokens[test]")
        meta = f"sqlite3://{folder / 'meta.db'}"
        format_it = [program, "format", "--storage", "file", "--bucket", f"{folder / 'data'}/", meta, "tests"]
        subprocess.run(format_it, check=True, capture_output=True)
        self._folder, self._address = folder, f"{host}:{_free_port()}"
        command = [*prefix, program, "gateway", "--multi-buckets", "--keep-etag", "--no-banner", "--no-usage-report"]
        self._command = [*command, "--cache-dir", str(folder / "cache"), meta, self._address]
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://{self._address}"

    @property
    def options(self) -> dict[str, Any]:
        """Options for fsspec."""
        return {"key": ACCESS_KEY, "secret": SECRET_KEY, "client_kwargs": {"endpoint_url": self.endpoint}}

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        secrets = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
        environment = {**os.environ, **secrets, "HOME": str(self._folder)}
        with (self._folder / "gateway.log").open("ab") as log:
            self._server = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + S3_START_S
        while self._server.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.endpoint}/minio/health/live", timeout=1)
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise TimeoutError(f"no S3 server at {self.endpoint}: {(self._folder / 'gateway.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """End it with SIGKILL, whatever it does."""
        if self._server is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        self._server = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
