"""Fixtures: an S3 server (moto's) in a process of its own, and boto3's client for it.

Requests are served one at a time: moto compares an ETag and writes in two steps, so that two
conditional puts at once could both pass, which on S3 they cannot.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

SERVER = """
import logging, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
moto = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()

def application(environ, start_response):
    with one_at_a_time:
        return list(moto(environ, start_response))

server = make_server("127.0.0.1", 0, application, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""
BUCKET = "fencer"


def s3_client(url: str) -> Any:
    """A client of boto3's; it is the caller's to close."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10),
    )


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The address of a server with an empty bucket."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, env=clean
    ) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        client = s3_client(url)
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield url
        process.kill()


@pytest.fixture
def s3(s3_url: str) -> Iterator[Any]:
    """boto3's client; the keys of other tests may be in the bucket."""
    client = s3_client(s3_url)
    yield client
    client.close()
