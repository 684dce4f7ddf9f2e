"""Tests compilation: a program that cannot fit has a footprint; other failures are errors."""

import glob
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.errors import ConfigError
from stepaudio_jax.planning.compile import Footprint, check_compiler_flags, compile_lowered


class RefusedProgram:
    """Raises the compiler's error with a given message, in place of a lowered program."""

    def __init__(self, message):
        self.message = message

    def compile(self, compiler_options):
        raise jax.errors.JaxRuntimeError(self.message)


def argument():
    """Returns an array of 4000 bytes, as a shape with a sharding."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), "x"), PartitionSpec())
    return jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=sharding)


def test_footprint_of_a_refused_program():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (48.5G) exceeds available HBM (15.75G)."
    )
    compiled, footprint = compile_lowered(RefusedProgram(message), argument())
    peak = int(48.5 * 2**30)
    assert compiled is None
    assert footprint == Footprint(arguments=4000, temporaries=peak - 4000, code=0, peak=peak)


def test_another_compiler_failure_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_lowered(RefusedProgram("INTERNAL: something else"), argument())


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_footprint_of_a_compiled_program(effort):
    lowered = jax.jit(lambda x: jnp.outer(x, x).sum()).lower(argument())
    compiled, footprint = compile_lowered(lowered, argument(), effort)
    assert compiled is not None
    assert footprint.arguments == 4000
    assert footprint.peak >= footprint.arguments + footprint.temporaries


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is for Linux on x86-64"
)


@needs_compiler
def test_unknown_compiler_flag_is_a_configuration_error(monkeypatch):
    """Such a flag ends the compiler's process, which is therefore another one."""
    monkeypatch.setenv(
        "LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=true --xla_tpu_no_such_flag=true"
    )
    with pytest.raises(
        ConfigError, match=r"LIBTPU_INIT_ARGS=.*Unknown command line flag 'xla_tpu_no_such_flag'"
    ):
        check_compiler_flags(("--xla_enable_async_all_gather=true", "--xla_tpu_no_such_flag=true"))


@needs_compiler
@pytest.mark.skipif(
    bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")), reason="there is a TPU"
)
def test_compiler_is_silent_where_there_is_no_tpu():
    """JAX starts an installed compiler in every program, and then runs on the CPU."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TPU_", "JAX_PLATFORMS"))
    }
    program = "import stepaudio_jax, jax; print(jax.devices()[0].platform)"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert ended.stdout.strip() in ("cpu", "gpu")
    assert "TPU" not in ended.stderr
    assert ended.returncode == 0
