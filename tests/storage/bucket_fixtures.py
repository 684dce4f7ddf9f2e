"""Fixtures of tests that use buckets: servers on loopback for gs:// and s3://."""

import contextlib
import logging
import time
import urllib.request

import pytest

from stepaudio_jax.storage import bucket_clients
from tests.storage.gcs_server import gcs_server


@pytest.fixture
def gcs(monkeypatch):
    """A server with the buckets `bucket` and `other`, to which this process is led."""
    with gcs_server("bucket", "other") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        pytest.importorskip("gcsfs")
        bucket_clients.forget_clients()
        yield server
        bucket_clients.forget_clients()


@pytest.fixture
def s3(monkeypatch):
    """The address of moto's server, with the bucket `bucket`, to which this process is led."""
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(server.stop)
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
        bucket_clients.forget_clients()
        bucket_clients.client_of("s3").fs.call_s3("create_bucket", Bucket="bucket")
        yield f"http://{host}:{port}"
        bucket_clients.forget_clients()


@pytest.fixture(params=["gs", "s3"])
def bucket(request):
    """The root of an empty bucket of either service."""
    request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])
    return f"{request.param}://bucket"


@pytest.fixture
def no_waiting(monkeypatch):
    """Shortens the pauses before the clients ask again."""
    import asyncio

    sleep = asyncio.sleep

    async def short_sleep(delay, *arguments):
        await sleep(min(delay, 0.01), *arguments)

    monkeypatch.setattr(asyncio, "sleep", short_sleep)
    return time.monotonic()
