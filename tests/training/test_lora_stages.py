"""Adapters (LoRA) reach the next stage and the finished model exactly, even with a bf16 decoder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax import hub
from stepaudio_jax.config import Config, LoRAConfig, build
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.models import abstract_lora, abstract_parameters
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.checkpoints import export_model
from stepaudio_jax.training.initial_weights import ModelParams, adapters_before_stage
from tests.models.random_model import SMALL
from tests.training.stages import init_stage

MODEL = dataclasses.replace(
    SMALL, decoder=dataclasses.replace(SMALL.decoder, vocab_size=290)
)  # for bytes as tokens
FIRST, SECOND = {"rank": 2, "alpha": 6.0}, {"rank": 3, "alpha": 3.0, "targets": ["query", "down"]}
KERNEL = ("layers", "attention", "query", "kernel")


def run_config(*stages, **compute):
    data = {"sources": [{"path": "unused"}]}
    values = [
        {"name": f"s{number}", "steps": 1, "data": data, **stage}
        for number, stage in enumerate(stages)
    ]
    config = build(
        Config, {"run_dir": "unused", "tokenizer": "bytes", "stages": values, "compute": compute}
    )
    return dataclasses.replace(config, model=MODEL)


@pytest.fixture(scope="module")
def base():
    """Returns bf16 weights of usual size: most small updates are below one rounding unit."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(0.1 * rng.standard_normal(leaf.shape, np.float32), "bfloat16")

    return ModelParams(jax.tree.map(draw, abstract_parameters(MODEL)))


def small_adapter(settings, seed):
    """Returns an adapter whose product changes a weight by about 1e-5."""
    lora = build(LoRAConfig, settings)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: 2e-3 * rng.standard_normal(leaf.shape, np.float32),
        abstract_lora(MODEL, lora).shapes,
    )


def product(matrices, settings, path=("attention", "query")):
    lora = build(LoRAConfig, settings)
    pair = functools.reduce(lambda tree, name: tree[name], path, matrices)
    return lora.scale * np.einsum(
        "lhr,lr...->lh...", *(np.asarray(pair[name], np.float64) for name in ("down", "up"))
    )


def at(tree, path):
    return functools.reduce(lambda node, name: node[name], path, tree)


def finish(config, index, params, matrices=None):
    """Returns what a stage leaves if it trained its adapter to `matrices`, and its first state."""
    definition, _, state = init_stage(config, index, MODEL, params)
    trained = state
    if matrices is not None:
        trained = dataclasses.replace(state, lora_params=jax.tree.map(jnp.asarray, matrices))
    return definition.params_after_stage(trained, config.stages[index].name), state


def test_a_stage_that_trains_the_decoder_starts_from_the_sum_in_fp32(base):
    config = run_config({"trainable": ["adaptor"], "lora": FIRST}, {})
    matrices = small_adapter(FIRST, 1)
    left, _ = finish(config, 0, base, matrices)
    assert left.params["decoder"]["layers"]["attention"]["query"]["kernel"].dtype == jnp.bfloat16
    _, state = finish(config, 1, left)
    kernel = at(state.params["decoder"], KERNEL)
    assert kernel.dtype == jnp.float32
    before = np.asarray(at(base.params["decoder"], KERNEL), np.float64)
    assert (
        np.mean(np.asarray(kernel).astype(jnp.bfloat16) == at(base.params["decoder"], KERNEL)) > 0.5
    )  # these changes would be lost in bf16
    np.testing.assert_allclose(kernel - before, product(matrices, FIRST), atol=2e-8)


@pytest.mark.parametrize(
    "last", [{"trainable": ["adaptor"], "lora": SECOND}, {"trainable": ["adaptor"]}]
)
def test_adapters_stay_beside_a_frozen_decoder_and_are_saved_with_it(base, tmp_path, last):
    config = run_config({"trainable": ["adaptor"], "lora": FIRST}, last)
    first, second = small_adapter(FIRST, 1), small_adapter(SECOND, 2)
    left, _ = finish(config, 0, base, first)
    left, state = finish(config, 1, left, second if "lora" in last else None)
    assert set(state.frozen_params) == {"encoder", "decoder"}
    np.testing.assert_array_equal(
        state.frozen_lora_params["s0"]["attention"]["query"]["up"],
        first["attention"]["query"]["up"],
    )
    adapters = adapters_before_stage(config, 2, None)
    export_model(
        tmp_path / "model", left, adapters, config, MODEL, Tokenizer.byte_level(), source="a test"
    )
    adapter = hub.read_source_adapter(tmp_path / "model")
    assert adapter.lora.rank == (5 if "lora" in last else 2)
    merged = hub.read_parameters(tmp_path / "model", config=MODEL)["decoder"]
    for path in (("attention", "query"), ("mlp", "gate")):
        expected = product(first, FIRST, path)
        if "lora" in last and path[-1] == "query":
            expected = expected + product(second, SECOND, path)
        kernel = at(merged["layers"], (*path, "kernel"))
        before = np.asarray(at(base.params["decoder"]["layers"], (*path, "kernel")), np.float64)
        assert kernel.dtype == jnp.float32
        np.testing.assert_allclose(kernel - before, expected, atol=3e-8)
    without = hub.read_parameters(tmp_path / "model", merge_adapter=False)["decoder"]
    np.testing.assert_array_equal(at(without, KERNEL), at(base.params["decoder"], KERNEL))


def test_parts_that_an_earlier_stage_trained_are_frozen_in_fp32(base):
    config = run_config({}, {"trainable": ["adaptor"], "lora": FIRST})
    _, state = finish(
        config, 1, jax.tree.map(lambda leaf: leaf.astype("float32") * (1 + 1e-5), base)
    )
    kernel = at(state.frozen_params["decoder"], KERNEL)
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(
        kernel, at(base.params["decoder"], KERNEL).astype("float32") * (1 + 1e-5), rtol=1e-7
    )


def test_a_stage_continues_the_adapter_in_a_folder(base, tmp_path):
    config = run_config({"trainable": ["adaptor"], "lora": FIRST})
    matrices = small_adapter(FIRST, 1)
    left, _ = finish(config, 0, base, matrices)
    export_model(
        tmp_path / "model",
        left,
        adapters_before_stage(config, 1, None),
        config,
        MODEL,
        Tokenizer.byte_level(),
        source="a test",
    )
    folder = str(tmp_path / "model" / hub.ADAPTER)
    policy = {
        "objective": {
            "name": "policy_gradient",
            "rewards": [{"verifier": "number", "verifier_weight": 1.0}],
        },
    }
    again = run_config({"trainable": ["adaptor"], "lora": {**FIRST, "adapter": folder}, **policy})
    _, state = finish(again, 0, base)
    jax.tree.map(np.testing.assert_array_equal, state.lora_params, matrices)
    jax.tree.map(
        np.testing.assert_array_equal, state.reference_lora_params, matrices
    )  # else: the base without it
    other = run_config(
        {"trainable": ["adaptor"], "lora": {"rank": 4, "alpha": 6.0, "adapter": folder}}
    )
    with pytest.raises(
        ConfigError, match=r"to go on with it, set stages\.s0\.lora\.rank=2 \(not 4\)"
    ):
        finish(other, 0, base)
    with pytest.raises(ConfigError, match="rank=0 has no adapter"):
        run_config({"lora": {"adapter": folder}})
