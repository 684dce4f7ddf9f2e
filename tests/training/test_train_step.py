"""The train step: gradients equal torch's, accumulation is exact, frozen parts do not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stepaudio_jax.config import AuxiliaryConfig, ComputeConfig, Config, NextToken, build
from stepaudio_jax.training.initial_weights import ModelParams, merge_adapters
from stepaudio_jax.training.losses import UNKNOWN
from stepaudio_jax.training.train_state import num_optimizer_updates
from stepaudio_jax.training.train_step import (
    make_eval_step,
    make_train_step,
)
from tests.models import torch_reference
from tests.models.random_model import SMALL, model_with, random_parameters
from tests.training.batches import next_token_loss, random_batch
from tests.training.stages import init_stage

pytestmark = pytest.mark.first

AUXILIARY = AuxiliaryConfig(
    ctc_weight=0.3,
    ctc_words=("one", "two", "three"),
    attribute_weight=0.5,
    attributes={"gender": ("f", "m"), "rate": ("a", "b")},
)


def run_config(**stage):
    config = build(
        Config,
        {
            "run_dir": "unused",
            "stages": [
                {
                    "name": "sft",
                    "steps": 10,
                    "data": {"sources": [{"path": "unused"}], "batch_size": 4},
                    **stage,
                }
            ],
            "compute": {"dtype": "float32", "remat": "none"},
        },
    )
    return dataclasses.replace(config, model=SMALL)


@pytest.fixture(scope="module")
def parameters():
    return random_parameters(SMALL, seed=3)


def test_gradients_of_the_whole_model_equal_torch(parameters):
    """For every tensor; with one dialogue a row, so that torch needs no packing."""
    batch = random_batch(rows=2, seed=1)
    batch = dataclasses.replace(
        batch,
        segment_ids=np.ones_like(batch.segment_ids),
        positions=np.broadcast_to(
            np.arange(batch.tokens.shape[1], dtype=np.int32), batch.tokens.shape
        ),
    )

    def loss(parameters):
        return next_token_loss(model_with(parameters, SMALL), batch)

    value, gradients = jax.jit(jax.value_and_grad(loss))(parameters)

    leaves, tree = jax.tree.flatten(torch_reference.to_torch(parameters))
    for leaf in leaves:
        leaf.requires_grad_(True)
    reference = jax.tree.unflatten(tree, leaves)
    total = torch.tensor(0.0)
    for row in range(2):
        audio_index = torch.tensor(batch.audio_index[row])
        audio_outputs = []
        for chunk, length in enumerate(batch.mel_lengths[row]):
            padded = torch.zeros(8, SMALL.decoder.hidden)
            if length:
                mel = torch.tensor(batch.mel[row, chunk, :, :length])
                features = torch_reference.encode(
                    reference["encoder"], mel, heads=SMALL.encoder.heads, convention="hf"
                )
                outputs = torch_reference.adapt(reference["adaptor"], features)
                padded = torch.cat([outputs, padded])[:8]
            audio_outputs.append(padded)
        audio = torch.cat(audio_outputs)
        embeddings = reference["decoder"]["embedding"][torch.tensor(batch.tokens[row]).long()]
        embeddings = torch.where(
            (audio_index >= 0)[:, None], audio[audio_index.clamp(min=0)], embeddings
        )
        log_probs = torch.log_softmax(
            torch_reference.decode(reference["decoder"], embeddings, SMALL.decoder), dim=-1
        )
        picked = log_probs.gather(-1, torch.tensor(batch.targets[row]).long()[:, None])[:, 0]
        total = total - (picked * torch.tensor(batch.loss_weights[row])).sum()
    total = total / float(batch.loss_weights.sum())
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-5)
    for (path, gradient), leaf in zip(jax.tree.leaves_with_path(gradients), leaves, strict=True):
        expected = leaf.grad.numpy()
        # The key of softmax attention has no bias in the encoder, and in the decoder its gradient
        # is zero but for rounding.
        scale = max(np.abs(expected).max(), 1e-6)
        error = np.abs(np.asarray(gradient) - expected).max() / scale
        assert error <= 1e-3, f"{jax.tree_util.keystr(path)}: relative error {error}"


@pytest.mark.parametrize("auxiliary", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_accumulation_gives_the_update_of_the_whole_batch(parameters, auxiliary):
    """Rows have different numbers of loss tokens and labels: a mean of means would differ."""
    batch = random_batch(auxiliary=auxiliary)
    batch.loss_weights[0] *= 0
    results = []
    for accumulation in (1, 4):
        stage = {
            "gradient_accumulation_steps": accumulation,
            "trainable": ("encoder", "adaptor", "decoder"),
        }
        config = run_config(
            **stage, **({"objective": NextToken(auxiliary=AUXILIARY)} if auxiliary else {})
        )
        definition, optimizer, state = init_stage(config, 0, SMALL, ModelParams(parameters))
        results.append(
            jax.jit(make_train_step(definition, config.stages[0], optimizer))(state, batch)
        )
    (whole, whole_metrics), *others = results
    expected = {"loss", "loss/next_token"} | (
        {"loss/ctc", "loss/attributes"} if auxiliary else set()
    )
    assert expected <= whole_metrics.keys()
    for state, metrics in others:
        for name in whole_metrics:
            assert float(metrics[name]) == pytest.approx(float(whole_metrics[name]), rel=1e-5), name
        # Adam's first update is sign-like, so compare its first moment: the gradient itself.
        for left, right in zip(
            jax.tree.leaves(whole.opt_state), jax.tree.leaves(state.opt_state), strict=True
        ):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("auxiliary", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_without_loss_tokens_changes_only_the_count(parameters, auxiliary):
    """Also in micro-batches; a single loss token in one of them changes all parameters."""
    settings = {
        "gradient_accumulation_steps": 4,
        "trainable": ("encoder", "adaptor", "decoder"),
    }  # as above, so that JAX need not compile it again
    if auxiliary:
        settings["objective"] = NextToken(auxiliary=AUXILIARY)
    config = run_config(**settings)
    definition, optimizer, state = init_stage(config, 0, SMALL, ModelParams(parameters))
    step = jax.jit(make_train_step(definition, config.stages[0], optimizer))
    batch = random_batch(auxiliary=auxiliary)
    empty = dataclasses.replace(batch, loss_weights=np.zeros_like(batch.loss_weights))
    if auxiliary:
        empty.auxiliary.ctc_weight[:] = 0
        empty.auxiliary.attributes[:] = UNKNOWN
    after, metrics = step(state, empty)
    assert (float(metrics["loss"]), float(metrics["zero_gradient_steps"]), int(after.step)) == (
        0,
        1,
        1,
    )
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal, (after.trainable, after.opt_state), (state.trainable, state.opt_state)
        )
    )
    empty.loss_weights[2, 10] = 1
    after, metrics = step(state, empty)
    assert (float(metrics["zero_gradient_steps"]), num_optimizer_updates(after)) == (0, 1)
    assert not np.array_equal(
        after.trainable["decoder"]["embedding"], state.trainable["decoder"]["embedding"]
    )


def test_only_trainable_parts_change_and_have_optimizer_state(parameters):
    config = run_config(
        trainable=("adaptor",), optimizer={"learning_rate": 0.01, "decay": "constant"}
    )
    definition, optimizer, state = init_stage(config, 0, SMALL, ModelParams(parameters))
    assert state.trainable.keys() == {"adaptor"}
    adaptor_size = sum(leaf.size for leaf in jax.tree.leaves(parameters["adaptor"]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * adaptor_size
    after, _ = jax.jit(make_train_step(definition, config.stages[0], optimizer))(
        state, random_batch()
    )
    for before, now in zip(
        jax.tree.leaves(state.frozen_params), jax.tree.leaves(after.frozen_params), strict=True
    ):
        assert (before == now).all()
    assert all(
        bool((before != now).any())
        for before, now in zip(
            jax.tree.leaves(state.trainable), jax.tree.leaves(after.trainable), strict=True
        )
    )


def test_frozen_parts_are_kept_in_the_compute_dtype(parameters):
    config = dataclasses.replace(
        run_config(trainable=("decoder",)), compute=ComputeConfig(dtype="bfloat16")
    )
    _, _, state = init_stage(config, 0, SMALL, ModelParams(parameters))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen_params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_batch_can_be_memorised(parameters, optimizer):
    """Encoder and auxiliary heads included; the loss falls well below the entropy of a guess."""
    config = run_config(
        trainable=("encoder", "adaptor", "decoder"),
        optimizer={
            "name": optimizer,
            "learning_rate": 0.01,
            "muon_learning_rate": 0.02,
            "decay": "constant",
        },
        objective=NextToken(auxiliary=AUXILIARY),
    )
    definition, transformation, state = init_stage(config, 0, SMALL, ModelParams(parameters))
    step = jax.jit(make_train_step(definition, config.stages[0], transformation))
    batch = random_batch(auxiliary=True)
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch)
        losses.append(
            {name: float(value) for name, value in metrics.items() if name.startswith("loss")}
        )
    assert losses[-1]["loss/next_token"] < 0.5 * losses[0]["loss/next_token"]
    assert losses[-1]["loss/ctc"] < 0.5 * losses[0]["loss/ctc"]
    assert losses[-1]["loss/attributes"] < 0.7 * losses[0]["loss/attributes"]


@pytest.mark.slow
def test_muon_updates_hidden_matrices_and_adamw_the_rest(parameters):
    config = run_config(
        optimizer={"name": "muon", "decay": "constant", "clip_norm": 0.0, "weight_decay": 0.0}
    )
    definition, optimizer, state = init_stage(config, 0, SMALL, ModelParams(parameters))
    after, _ = jax.jit(make_train_step(definition, config.stages[0], optimizer))(
        state, random_batch()
    )
    change = jax.tree.map(lambda a, b: np.asarray(a - b), after.trainable, state.trainable)
    query = change["decoder"]["layers"]["attention"]["query"]["kernel"]
    # a [H, N*D] matrix by itself: five Newton-Schulz steps level all but the smallest singular
    # values
    for layer in query:
        values = np.linalg.svd(layer.reshape(layer.shape[0], -1), compute_uv=False)
        assert values[len(values) // 2] > 0.6 * values[0]
    head = np.abs(change["decoder"]["lm_head"]["kernel"])
    assert (
        np.isclose(head[head > 0], np.median(head), rtol=0.05).mean() > 0.9
    )  # Adam's first step is one size everywhere


@pytest.mark.slow
def test_weight_decay_touches_matrices_only(parameters):
    """With so large an epsilon Adam's own step is nothing beside it: what moves is decayed."""
    settings = {"learning_rate": 0.1, "weight_decay": 0.5, "decay": "constant", "eps": 1e9}
    config = run_config(optimizer=settings)
    definition, optimizer, state = init_stage(config, 0, SMALL, ModelParams(parameters))
    after, _ = jax.jit(make_train_step(definition, config.stages[0], optimizer))(
        state, random_batch()
    )
    for path, leaf in jax.tree.leaves_with_path(after.trainable):
        before = state.trainable
        for key in path:
            before = before[key.key]
        factor = 0.95 if path[-1].key == "kernel" else 1.0
        np.testing.assert_allclose(
            leaf, factor * before, rtol=1e-6, atol=1e-8, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_evaluation_counts_equal_a_direct_computation(parameters, micro_batches):
    config = run_config()
    definition, _, state = init_stage(config, 0, SMALL, ModelParams(parameters))
    batch = random_batch()
    sums = jax.jit(make_eval_step(definition, micro_batches))(state, batch)
    model = model_with(parameters, SMALL)
    arrays = jax.tree.map(jnp.asarray, batch)
    audio = model.encode_audio(arrays.mel, arrays.mel_lengths)
    embeddings = model.embed(arrays.tokens, audio, arrays.audio_index)
    hidden = model.decode(embeddings, arrays.positions, arrays.segment_ids)
    logits = np.asarray(model.logits(hidden), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, batch.targets[..., None], -1)[..., 0]
    assert float(sums["loss_sum"]) == pytest.approx(-(picked * batch.loss_weights).sum(), rel=1e-5)
    assert (
        float(sums["correct_tokens"])
        == ((logits.argmax(-1) == batch.targets) * batch.loss_weights).sum()
    )
    assert float(sums["loss_tokens"]) == batch.loss_weights.sum()


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [("adaptor",), ()])
def test_lora_leaves_the_decoder_and_the_merged_model_computes_the_same(parameters, trainable):
    config = run_config(
        trainable=trainable,
        lora={"rank": 2},
        optimizer={"learning_rate": 0.02, "decay": "constant"},
    )
    definition, optimizer, state = init_stage(
        config, 0, SMALL, ModelParams(jax.tree.map(jnp.array, parameters))
    )
    assert set(state.params) == set(trainable)
    assert set(state.trainable) == {*trainable, "lora"}
    batch = random_batch()
    step = jax.jit(make_train_step(definition, config.stages[0], optimizer))
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    assert jax.tree.all(
        jax.tree.map(np.array_equal, state.frozen_params["decoder"], parameters["decoder"])
    )
    evaluate = jax.jit(make_eval_step(definition))
    scales = [("sft", definition.lora_scale)]
    merged = merge_adapters(definition.params_after_stage(state, "sft"), scales, "float32")
    assert set(merged) == {"encoder", "adaptor", "decoder"}
    without_adapter = dataclasses.replace(state, params=merged, frozen_params={}, lora_params=None)
    np.testing.assert_allclose(
        evaluate(state, batch)["loss_sum"],
        evaluate(without_adapter, batch)["loss_sum"],
        rtol=1e-5,
    )
