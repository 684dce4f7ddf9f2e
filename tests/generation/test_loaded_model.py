"""A loaded model and its engine: where the weights are, and how many copies there are."""

import pathlib

import jax
import numpy as np
import pytest

from stepaudio_jax.generation import Engine, load_model

BASE = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny_base"


@pytest.mark.parametrize("int8_weights", [False, True])
def test_an_engine_needs_no_second_copy_of_a_model_loaded_for_generation(int8_weights):
    settings = {"slots": 1, "slot_tokens": 32}
    model = load_model(BASE, "float32", int8_weights=int8_weights, for_generation=True)
    engine = Engine(
        model.config, model.parameters, model.tokenizer, compute=model.compute, **settings
    )
    held, loaded = (jax.tree.leaves(tree) for tree in (engine._parameters, model.parameters))
    assert [ours.unsafe_buffer_pointer() for ours in held] == [
        theirs.unsafe_buffer_pointer() for theirs in loaded
    ]
    stacked = load_model(BASE, "float32", int8_weights=int8_weights)
    other = Engine(
        stacked.config, stacked.parameters, stacked.tokenizer, compute=stacked.compute, **settings
    )
    for ours, theirs in zip(held, jax.tree.leaves(other._parameters), strict=True):
        np.testing.assert_array_equal(ours, theirs)
