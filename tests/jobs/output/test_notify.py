"""Who is told of a run's end: real commands, a real web server."""

from __future__ import annotations

import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator

import pytest

from jobs.output.notify import notify
from pipeline.settings.run_config import NotifyConfig

OUTCOME = {"run_id": "r", "exit_code": 3, "status": "failed"}


class Receiver(http.server.BaseHTTPRequestHandler):
    received: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, self.headers["Content-Type"], body))
        self.send_response(500 if "broken" in self.path else 204)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """Address of a web server, and what it received."""
    handler = type("Handler", (Receiver,), {"received": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}", handler.received
        web.shutdown()


def test_notify_tells_nobody_by_default():
    assert notify(NotifyConfig(), OUTCOME) == []


def test_notify_posts_the_outcome(server):
    address, received = server
    assert notify(NotifyConfig(webhook=f"{address}/told"), OUTCOME) == []
    ((path, kind, body),) = received
    assert (path, kind, json.loads(body)) == ("/told", "application/json", OUTCOME)


def test_notify_hands_the_outcome_to_a_command(tmp_path):
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_bytes(sys.stdin.buffer.read())"
    config = NotifyConfig(command=f'{sys.executable} -c "{code}" "{tmp_path}/with a space"')
    assert notify(config, OUTCOME) == []
    assert json.loads((tmp_path / "with a space").read_text()) == OUTCOME


def test_notify_on_failure_leaves_a_success_alone(server):
    address, received = server
    config = NotifyConfig(webhook=address, when="failure")
    assert notify(config, {"exit_code": 0}) == []
    assert received == []
    notify(config, OUTCOME)
    assert len(received) == 1


@pytest.mark.parametrize(
    ("command", "finding"),
    [
        ("false", "ended with 1"),
        ("sh -c 'exit 4' secret-key", "ended with 4: sh; to see why"),
        ("no-such-program-here", "could not run"),
        ("sh 'unclosed", "could not be read"),
        ("''", "could not run"),
        ("sleep 20", "took longer than 0.5 s"),
    ],
)
def test_notify_says_what_went_wrong_with_a_command(command, finding):
    (line,) = notify(NotifyConfig(command=command, timeout_s=0.5), OUTCOME)
    assert re.search(finding, line), line


def test_notify_shows_nothing_that_a_command_prints():
    (line,) = notify(NotifyConfig(command="sh -c 'echo $0; echo $0 >&2; exit 4' secret-key"), OUTCOME)
    assert "secret-key" not in line


def test_notify_says_what_went_wrong_with_an_address_without_its_secret(server):
    address, _ = server
    lines = notify(NotifyConfig(webhook=f"{address}/broken/secret-key"), OUTCOME)
    lines += notify(NotifyConfig(webhook="http://127.0.0.1:9/secret-key"), OUTCOME)
    assert ["500" in lines[0], "127.0.0.1" in lines[1], "secret-key" in "".join(lines)] == [True, True, False]


@pytest.mark.parametrize(
    "address", ["http://", "http://host:secret-key/", "http://[secret-key", "http://a b/secret-key"]
)
def test_notify_takes_no_harm_from_an_address_that_is_none(address):
    (line,) = notify(NotifyConfig(webhook=address), OUTCOME)
    assert "secret-key" not in line.partition(" was not reached")[2]


def test_notify_posts_to_the_address_that_an_environment_variable_holds(server, monkeypatch):
    address, received = server
    monkeypatch.setenv("TOLD_AT", f"{address}/secret-key\n")
    assert notify(NotifyConfig(webhook="env:TOLD_AT"), OUTCOME) == []
    assert [path for path, *_ in received] == ["/secret-key"]


@pytest.mark.parametrize("value", [None, "", "secret-key", "file:///secret-key"])
def test_notify_says_which_environment_variable_holds_no_address(monkeypatch, value):
    monkeypatch.delenv("TOLD_AT", raising=False)
    if value is not None:
        monkeypatch.setenv("TOLD_AT", value)
    (line,) = notify(NotifyConfig(webhook="env:TOLD_AT"), OUTCOME)
    assert "the environment variable TOLD_AT holds no address" in line
    assert "secret-key" not in line


@pytest.mark.parametrize("webhook", ["file:///etc/passwd", "env:", "env:1", "env:A B", "TOLD_AT", "env:A\n"])
def test_notify_takes_web_addresses_only(webhook):
    with pytest.raises(ValueError, match="http"):
        NotifyConfig(webhook=webhook)
