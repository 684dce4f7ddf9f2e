"""What `stepaudio_jax.rl` offers to users, imported on first use."""

import subprocess
import sys

import pytest

from stepaudio_jax import rl


@pytest.mark.parametrize("name", rl.__all__)
def test_public_names_can_be_imported(name):
    assert getattr(rl, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'gea'"):
        rl.gea  # noqa: B018


def test_a_loss_needs_neither_the_engine_nor_the_trainer():
    code = (
        "import sys; from stepaudio_jax.rl import policy_loss, verifiers; "
        "print([name for name in sys.modules if name.startswith('stepaudio_jax.generation')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
