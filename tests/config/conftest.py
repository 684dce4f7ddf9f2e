"""A configuration with one stage of each objective."""

import pytest

from stepaudio_jax.config import Config, build
from tests.config.minimal import TWO_STAGES


@pytest.fixture
def config():
    return build(Config, TWO_STAGES)
