"""A program that the compiler refuses is a plan that does not fit, and any other complaint of the compiler is an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.planning.program import Footprint, compile_lowered


class Refusing:
    """A lowered program that does not compile."""

    def __init__(self, said):
        self.said = said

    def compile(self, compiler_options):
        raise jax.errors.JaxRuntimeError(self.said)


def argument():
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), "x"), PartitionSpec())
    return jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=sharding)


def test_what_a_refused_program_would_take():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (48.5G) exceeds available "
        "HBM (15.75G)."
    )
    compiled, footprint = compile_lowered(Refusing(said), argument())
    peak = int(48.5 * 2**30)
    assert compiled is None
    assert footprint == Footprint(arguments=4000, temporaries=peak - 4000, code=0, peak=peak)


def test_another_complaint_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_lowered(Refusing("INTERNAL: something else"), argument())


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_what_a_compiled_program_takes(effort):
    lowered = jax.jit(lambda x: jnp.outer(x, x).sum()).lower(argument())
    compiled, footprint = compile_lowered(lowered, argument(), effort)
    assert compiled is not None
    assert footprint.arguments == 4000
    assert footprint.peak >= footprint.arguments + footprint.temporaries
