"""Bad weather between an S3 client and a real S3 server: an HTTP proxy that harms a seeded share of requests.

Knows no test and no S3 beyond the body of one error. Headers pass unchanged, Host too: it is part of the signature.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>%s</Code><Message>%s</Message><RequestId>0</RequestId><HostId>0</HostId></Error>"
)
_XML = [("Content-Type", "application/xml")]
_ERRORS = {
    "slow_down": (503, _XML, _ERROR % (b"SlowDown", b"Please reduce your request rate.")),
    "not_implemented": (501, _XML, _ERROR % (b"NotImplemented", b"A header implies what is not implemented.")),
}
_OF_ONE_CONNECTION = ("connection", "keep-alive", "expect")


@dataclass(frozen=True)
class Weather:
    """Share of requests that meet each fault; what is left passes."""

    slow_down: float = 0.05
    """503 SlowDown without asking the server."""
    reset: float = 0.01
    """The connection is reset before the server hears of the request."""
    lost_answer: float = 0.01
    """The connection is reset after the server has done what was asked."""
    truncated: float = 0.04
    """Half of the body arrives, then the connection ends; answers without a body pass."""
    stall: float = 0.006
    """Nothing happens for a while, then the request passes."""
    stall_s: float = 2.0

    def fault(self, draw: float) -> str:
        """Return the fault that a number from [0, 1) falls on, "" for none."""
        for name in ("slow_down", "reset", "lost_answer", "truncated", "stall"):
            draw -= getattr(self, name)
            if draw < 0:
                return name
        return ""


class WeatherProxy(ThreadingHTTPServer):
    """Run by `running`; every connection has a thread and its own connection to the server."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, server: str, forecast: Weather, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = urlsplit(server)
        self.forecast = forecast
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """Return the address for clients."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, request: BaseHTTPRequestHandler) -> str:
        """Draw what a request meets; tests override it to choose by method or header."""
        del request
        with self._lock:
            return self.forecast.fault(self._random.random())

    def count(self, fault: str) -> None:
        """Remember that a fault was injected."""
        with self._lock:
            self.counts[fault] += 1

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close without the orderly end that the base class gives: a reset stays a reset."""
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that give up are part of the weather."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: WeatherProxy

    def setup(self) -> None:
        super().setup()
        self._upstream = http.client.HTTPConnection(self.server.server.hostname, self.server.server.port, timeout=60)

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault(self)
        self.server.count("requests")
        if fault in ("slow_down", "not_implemented", "reset", "stall"):
            self.server.count(fault)
        if fault in _ERRORS:
            self._answer(*_ERRORS[fault])
            return
        if fault == "reset":
            self._reset()
            return
        if fault == "stall":
            time.sleep(self.server.forecast.stall_s)
        status, headers, data = self._ask_server(body)
        if fault == "lost_answer":
            self.server.count(fault)
            self._reset()
        elif fault == "truncated" and len(data) > 1:
            self.server.count(fault)
            self._answer(status, headers, data, num_sent=len(data) // 2)
            self.close_connection = True
        else:
            self._answer(status, headers, data)

    def _ask_server(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _OF_ONE_CONNECTION:
                self._upstream.putheader(name, value)
        self._upstream.endheaders(body)
        response = self._upstream.getresponse()
        return response.status, response.getheaders(), response.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, num_sent: int | None = None) -> None:
        """Send an answer whose Content-Length is right, and of its body the first `num_sent` bytes."""
        self.send_response_only(status)
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in (*_OF_ONE_CONNECTION, "transfer-encoding", "content-length"):
                self.send_header(name, value)
        is_bodiless = self.command == "HEAD" or status in (204, 304)
        if status != 204:
            self.send_header("Content-Length", lengths[0] if is_bodiless and lengths else str(len(data)))
        self.end_headers()
        if not is_bodiless:
            self.wfile.write(data[:num_sent])

    def _reset(self) -> None:
        """End the connection at once, so that the client sees a reset instead of an answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


for _verb in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Handler, f"do_{_verb}", _Handler.relay)


@contextmanager
def running(proxy: WeatherProxy) -> Iterator[WeatherProxy]:
    """Serve for as long as the context lasts."""
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
