"""The compiled programs of the engine."""

import jax
import numpy as np

from stepaudio_jax.generation import slots as device
from stepaudio_jax.generation.prefill_programs import EngineSpec
from stepaudio_jax.models import quantize_weights, unstack_layers
from tests.generation.small_model import CONFIG, peaked_parameters
from tests.models.random_model import FLOAT32


def test_matrices_in_int8_are_expanded_within_the_decode_loop():
    """Before it, all of them would be there at once, beside the small ones."""
    spec = EngineSpec(CONFIG, FLOAT32, "float32")
    parameters = unstack_layers(quantize_weights(CONFIG, peaked_parameters()))
    slots = device.empty_slots(spec, 2, 32)
    (call,) = jax.make_jaxpr(device.decode, static_argnums=(0, 5))(
        spec, parameters, slots, np.zeros(4, np.int32), False, 8
    ).eqns
    outside = [
        equation for equation in call.params["jaxpr"].eqns if equation.primitive.name != "while"
    ]
    assert len(outside) < len(call.params["jaxpr"].eqns)
    assert not [
        equation
        for equation in outside
        if any(value.aval.dtype == np.int8 for value in equation.invars)
    ]
