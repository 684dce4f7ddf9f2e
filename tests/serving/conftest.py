"""The server that all tests of a session share."""

import pytest

for _name in ("fastapi", "uvicorn", "openai", "llguidance", "prometheus_client"):
    pytest.importorskip(_name, reason="needs the extra `serve`, and OpenAI's client")


@pytest.fixture(scope="session")
def server():
    from tests.serving.running_server import RunningServer

    running = RunningServer()
    running.not_ready = running.wait_until_ready()
    yield running
    running.stop()
    assert running.exit_code == 0


@pytest.fixture
def client(server):
    return server.client()
