"""The server that all tests of a session share."""

import pytest

from tests.serving.running_server import RunningServer


@pytest.fixture(scope="session")
def server():
    running = RunningServer()
    running.not_ready = running.wait_until_ready()
    yield running
    running.stop()
    assert running.exit_code == 0


@pytest.fixture
def client(server):
    return server.client()
