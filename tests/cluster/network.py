"""Hosts on this machine with addresses of their own: network namespaces on a bridge. Knows not what runs on them."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator

from ray_nodes import Host

SUBNET = "10.213.77"


@contextlib.contextmanager
def network(num_hosts: int) -> Iterator[list[Host]]:
    """Give so many hosts that reach each other and this machine, while it lasts.

    Raises:
        PermissionError: this machine makes no network namespaces.
        FileNotFoundError: the program ip is missing.
    """
    ip = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    tag = secrets.token_hex(2)
    names = [f"mt{tag}h{number}" for number in range(num_hosts)]
    bridge = f"mt{tag}br"

    def run(*words: str) -> None:
        subprocess.run([str(ip), *words], check=True, capture_output=True)

    if ip is None:
        raise FileNotFoundError("no program ip: apt-get install iproute2")
    try:
        run("link", "add", bridge, "type", "bridge")
        run("address", "add", f"{SUBNET}.1/24", "dev", bridge)
        run("link", "set", bridge, "up")
        for number, name in enumerate(names):
            run("netns", "add", name)
            run("link", "add", f"{name}o", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("link", "set", f"{name}o", "master", bridge, "up")
            run("-n", name, "address", "add", f"{SUBNET}.{number + 2}/24", "dev", "eth0")
            run("-n", name, "link", "set", "eth0", "up")
            run("-n", name, "link", "set", "lo", "up")
        yield [Host(f"{SUBNET}.{n + 2}", (ip, "netns", "exec", name)) for n, name in enumerate(names)]
    except subprocess.CalledProcessError as error:
        raise PermissionError(f"no network namespaces here: {error.stderr.decode().strip()}") from error
    finally:
        for name in names:
            subprocess.run([str(ip), "netns", "delete", name], check=False, capture_output=True)
        subprocess.run([str(ip), "link", "delete", bridge], check=False, capture_output=True)
