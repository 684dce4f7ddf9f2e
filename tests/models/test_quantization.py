"""Matrices in int8: what is stored, and that the model computes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import qwix

from stepaudio_jax.models import abstract_model, merge_per_layer, quantize_weights, unstack_layers
from tests.models.random_model import FLOAT32, SMALL, random_parameters


def test_every_matrix_of_the_decoder_has_a_scale_for_each_output_channel():
    parameters = random_parameters(SMALL)
    quantized = quantize_weights(SMALL, parameters)
    assert all(
        ours is theirs
        for part in ("encoder", "adaptor")
        for ours, theirs in _leaves(quantized[part], parameters[part])
    )
    summed_sizes = {}
    for (path, ours), (_, theirs) in zip(
        _named(quantized["decoder"]), _named(parameters["decoder"]), strict=True
    ):
        if not isinstance(ours, qwix.QArray):
            assert ours is theirs
            continue
        summed = tuple(axis for axis, size in enumerate(ours.scale.shape) if size == 1)
        weights = np.asarray(theirs, np.float64)
        scale = (
            np.abs(weights).max(axis=summed, keepdims=True) / 127.5
        )  # the largest weight becomes 127.5, and is clipped to 127
        np.testing.assert_allclose(ours.scale, scale, rtol=1e-5)
        assert ours.qvalue.dtype == np.int8
        assert (
            np.abs(np.asarray(ours.qvalue) * np.asarray(ours.scale, np.float64) - weights).max()
            <= 0.51 * scale.max()
        )
        summed_sizes[path] = tuple(weights.shape[axis] for axis in summed)
    hidden, ffn, heads, head_dim = (
        SMALL.decoder.hidden,
        SMALL.decoder.ffn,
        SMALL.decoder.heads,
        SMALL.decoder.head_dim,
    )
    layer = "['layers']"
    assert summed_sizes == {
        **{
            f"{layer}['attention']['{name}']['kernel']": (hidden,)
            for name in ("query", "key", "value")
        },
        f"{layer}['attention']['output']['kernel']": (heads, head_dim),
        **{f"{layer}['mlp']['{name}']['kernel']": (hidden,) for name in ("gate", "up")},
        f"{layer}['mlp']['down']['kernel']": (ffn,),
        "['lm_head']['kernel']": (hidden,),
    }


def test_the_model_computes_with_the_rounded_weights():
    parameters = random_parameters(SMALL)
    quantized = unstack_layers(quantize_weights(SMALL, parameters))
    model, layers = merge_per_layer(abstract_model(SMALL, FLOAT32)[0], quantized)
    kernel = quantized["decoder"]["layers"][1]["mlp"]["gate"]["kernel"]
    rounded = np.asarray(kernel.qvalue, np.float64) * np.asarray(kernel.scale, np.float64)
    x = np.random.default_rng(0).standard_normal((2, 3, SMALL.decoder.hidden)).astype(np.float32)
    np.testing.assert_allclose(
        layers[1].mlp.gate(jnp.asarray(x)), x @ rounded, rtol=1e-5, atol=1e-5
    )
    assert model.decoder.lm_head_kernel().dtype == np.float32


def _named(tree):
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, qwix.QArray))
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _leaves(ours, theirs):
    return zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
