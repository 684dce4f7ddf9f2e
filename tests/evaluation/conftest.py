"""Fixtures of the tests of evaluation."""

import pytest

from tests.judge.judge_server import JudgeServer


@pytest.fixture
def serve():
    """Returns a function that starts a chat server; all are stopped at the end."""
    servers = []

    def start(write):
        servers.append(JudgeServer(write))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
