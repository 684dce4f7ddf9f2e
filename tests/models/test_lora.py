"""LoRA: the model with adapters attached against the model with their products merged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax.config import LoRAConfig
from stepaudio_jax.models import (
    abstract_lora,
    abstract_model,
    attach_lora,
    combine_lora,
    init_lora,
    merge_lora,
)
from tests.models.random_model import FLOAT32, SMALL, random_parameters

LORA = LoRAConfig(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def parts():
    """Parameters, an adapter whose matrices are all random, and inputs."""
    tree = abstract_lora(SMALL, LORA)
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), tree.shapes)
    embeddings = rng.standard_normal((2, 7, SMALL.decoder.hidden)).astype(np.float32)
    return random_parameters(SMALL), lora, embeddings


@functools.partial(jax.jit, static_argnames="remat")
def hidden(parameters, decoder, embeddings, remat="none"):
    graphdef, _ = abstract_model(SMALL, dataclasses.replace(FLOAT32, remat=remat))
    model = nnx.merge(graphdef, {**parameters, "decoder": decoder})
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    return model.decode(embeddings, positions, jnp.ones_like(positions))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_outputs_and_gradients_equal_those_of_the_merged_model(parts, remat):
    parameters, lora, embeddings = parts

    def attached(lora):
        return hidden(
            parameters, attach_lora(parameters["decoder"], lora, LORA.scale), embeddings, remat
        )

    def merged(lora):
        return hidden(parameters, merge_lora(parameters["decoder"], lora, LORA.scale), embeddings)

    weights = (
        np.random.default_rng(1).standard_normal((2, 7, SMALL.decoder.hidden)).astype(np.float32)
    )
    ours, ours_gradient = jax.jit(
        jax.value_and_grad(lambda lora: jnp.sum(attached(lora) * weights))
    )(lora)
    theirs, theirs_gradient = jax.jit(
        jax.value_and_grad(lambda lora: jnp.sum(merged(lora) * weights))
    )(lora)
    assert ours == pytest.approx(float(theirs), rel=1e-4)
    for our_leaf, leaf in zip(
        jax.tree.leaves(ours_gradient), jax.tree.leaves(theirs_gradient), strict=True
    ):
        np.testing.assert_allclose(our_leaf, leaf, atol=1e-4 * float(np.abs(leaf).max()))
        assert np.abs(leaf).max() > 0.01


def test_merging_scales_by_alpha_over_rank(parts):
    parameters, lora, _ = parts
    merged = merge_lora(parameters["decoder"], lora, 2.0)
    pair = lora["attention"]["output"]
    product = np.einsum(
        "lndr,lrh->lndh", *(np.asarray(pair[name], np.float64) for name in ("down", "up"))
    )
    kernel = parameters["decoder"]["layers"]["attention"]["output"]["kernel"]
    np.testing.assert_allclose(
        merged["layers"]["attention"]["output"]["kernel"],
        kernel + 2.0 * product,
        rtol=1e-5,
        atol=1e-6,
    )
    assert merged["embedding"] is parameters["decoder"]["embedding"]


def test_combined_adapters_are_the_sum_of_their_products(parts):
    _, lora, _ = parts
    other = {
        "attention": {
            "query": jax.tree.map(lambda leaf: leaf[..., ::-1], lora["attention"]["query"])
        }
    }
    combined, scale = combine_lora([(lora, 2.0), (other, 0.5)])

    def product(tree):
        return np.einsum(
            "lhr,lrnd->lhnd", *(np.asarray(tree[name], np.float64) for name in ("down", "up"))
        )

    for name, expected in (
        (
            "query",
            2.0 * product(lora["attention"]["query"]) + 0.5 * product(other["attention"]["query"]),
        ),
        ("key", 2.0 * product(lora["attention"]["key"])),
    ):
        np.testing.assert_allclose(
            scale * product(combined["attention"][name]), expected, atol=1e-5
        )
    assert combine_lora([(lora, 2.0)]) == (lora, 2.0)


def test_merging_in_fp32_keeps_what_bf16_rounds_away(parts):
    parameters, lora, _ = parts
    kernel = jnp.asarray(parameters["decoder"]["layers"]["mlp"]["up"]["kernel"], jnp.bfloat16)
    decoder = {"layers": {"mlp": {"up": {"kernel": kernel}}}}
    small = {"mlp": {"up": {name: 0.05 * leaf for name, leaf in lora["mlp"]["up"].items()}}}
    before = np.asarray(kernel, np.float32)
    changed = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        kernel = merge_lora(decoder, small, 1.0, dtype)["layers"]["mlp"]["up"]["kernel"]
        assert kernel.dtype == dtype
        changed[dtype] = np.mean(np.asarray(kernel, np.float32) != before)
    assert changed[jnp.float32] > 0.95
    assert changed[jnp.bfloat16] < 0.5


def test_initial_adapters_change_nothing(parts):
    parameters, _, embeddings = parts
    begin = init_lora(abstract_lora(SMALL, LORA), jax.random.key(0))
    before = hidden(parameters, parameters["decoder"], embeddings)
    after = hidden(parameters, attach_lora(parameters["decoder"], begin, LORA.scale), embeddings)
    np.testing.assert_array_equal(before, after)
    down = np.asarray(begin["mlp"]["down"]["down"])
    assert down.std() == pytest.approx(1 / np.sqrt(SMALL.decoder.ffn), rel=0.1)


def test_targets_choose_the_adapted_kernels():
    tree = abstract_lora(SMALL, dataclasses.replace(LORA, targets=("up", "down", "query")))
    hidden_size, ffn = SMALL.decoder.hidden, SMALL.decoder.ffn
    heads, head_dim, layers = SMALL.decoder.heads, SMALL.decoder.head_dim, SMALL.decoder.layers
    shapes = jax.tree.map(lambda leaf: leaf.shape, tree.shapes)
    assert shapes == {
        "attention": {
            "query": {"down": (layers, hidden_size, 3), "up": (layers, 3, heads, head_dim)}
        },
        "mlp": {
            "up": {"down": (layers, hidden_size, 3), "up": (layers, 3, ffn)},
            "down": {"down": (layers, ffn, 3), "up": (layers, 3, hidden_size)},
        },
    }
    assert tree.axes["attention"]["query"] == {
        "down": ("layers", "embed", "rank"),
        "up": ("layers", "rank", "heads", "head_dim"),
    }
    assert tree.contracting_dims["mlp"]["down"] == {"down": (1,), "up": (1,)}
