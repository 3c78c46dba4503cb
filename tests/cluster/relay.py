"""A relay of TCP connections that can cut them all at once, and lose answers. Knows only how a request begins."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Listens on a port of its own for as long as `relayed` lasts, and passes on to an address."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._losing: tuple[bytes, bool] | None = None
        self._deaf: dict[socket.socket, bool] = {}
        self.num_cut = self.num_lost = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Cut every connection, as a network does that goes away for a moment."""
        connections, self._open = self._open, []
        for connection in connections:
            self.num_cut += 1
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def lose_answer(self, beginning: bytes, is_cut: bool) -> None:
        """Lose the answer to the next request that begins so: cut the connection then, or leave it silent."""
        self._losing = beginning, is_cut

    def serve(self) -> None:
        """Take connections until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for pump, source, sink in ((self._ask, near, far), (self._answer, far, near)):
                    threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    def close(self) -> None:
        """Take no more, and cut what is left."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _ask(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                if self._losing is not None and data.startswith(self._losing[0]):
                    self._deaf[far], self._losing = self._losing[1], None
                far.sendall(data)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                if far not in self._deaf:
                    near.sendall(data)
                    continue
                self.num_lost += 1
                if self._deaf[far]:
                    break
                return
        with contextlib.suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relayed(host: str, port: int) -> Iterator[Relay]:
    """Run a relay to an address while it lasts."""
    relay = Relay(host, port)
    threading.Thread(target=relay.serve, daemon=True).start()
    try:
        yield relay
    finally:
        relay.close()
