"""An S3 server that heeds conditions, beside the gateway of all tests, which does not."""

from __future__ import annotations

import threading

import pytest
import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class QuietHandler(WSGIRequestHandler):
    def log_request(self, *_):
        pass


@pytest.fixture(scope="module")
def moto():
    """URL and options of a bucket on moto's server, which heeds If-Match and If-None-Match, one request at a time."""
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), request_handler=QuietHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
    s3fs.S3FileSystem(**options).call_s3("create_bucket", Bucket="faults")
    yield "s3://faults", options
    server.shutdown()
    thread.join()
    server.server_close()
