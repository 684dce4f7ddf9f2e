"""The train step of preferences: what is packed changes nothing, and step 0 is exact."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepaudio_jax.config import Preference
from stepaudio_jax.data import collate
from stepaudio_jax.data.preference_pairs import CHOSEN, REJECTED, UNRELATED, PairFormat
from stepaudio_jax.models.logprobs import chunked_logprobs
from stepaudio_jax.training.initial_weights import ModelParams
from stepaudio_jax.training.preference_step import (
    make_preference_eval_step,
    make_preference_step,
    make_reference_step,
    preference_means,
)
from stepaudio_jax.training.train_step import forward
from tests.models.random_model import random_parameters
from tests.training.preference_data import (
    MODEL,
    TOKENIZER,
    pair_batch,
    preprocessor,
    records,
    run_config,
    write_records,
)
from tests.training.stages import init_stage

LAYOUT = [[0, 2], [1], [3, 5], [4]]
DPO = Preference(beta=0.3)
# Every term of the step counts.
FULL = dataclasses.replace(DPO, target_margin_per_level=0.1, next_token_coef=0.2)
KTO = Preference(loss="kto", beta=0.3, undesirable_weight=0.7)
LORA = {"trainable": (), "lora": (("rank", 2),)}
DESCENT = optax.sgd(1.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def parameters():
    return random_parameters(MODEL, seed=1)


@functools.cache
def stage(objective, **settings):
    """Returns configuration, model definition, and a function to the initial state."""
    config = run_config(
        objective,
        **{name: dict(value) if name == "lora" else value for name, value in settings.items()},
    )
    params = ModelParams(random_parameters(MODEL, seed=1))
    definition, optimizer, state = init_stage(config, 0, MODEL, params)
    return config.stages[0], definition, optimizer, state


@functools.cache
def descent_step(objective, **settings):
    """Returns the step with plain descent of rate 1, compiled once for each shape of its batch."""
    config, definition, _, _ = stage(objective, **settings)
    return jax.jit(make_preference_step(definition, config, DESCENT))


@functools.cache
def reference_step():
    return jax.jit(make_reference_step(stage(DPO)[1]))


def gradient_of(objective, batch, state=None, **settings):
    """Returns the metrics of a step, and what it changes, with plain descent of rate 1."""
    state = stage(objective, **settings)[3] if state is None else state
    state = dataclasses.replace(state, opt_state=DESCENT.init(state.trainable))
    after, metrics = descent_step(objective, **settings)(state, batch)
    gradient = jax.tree.map(lambda old, new: old - new, state.trainable, after.trainable)
    return {name: float(value) for name, value in metrics.items()}, gradient


def assert_close(trees, tolerance=1e-5):
    for path_, (left, right) in jax.tree.leaves_with_path(
        jax.tree.map(lambda *leaves: leaves, *trees), is_leaf=lambda x: isinstance(x, tuple)
    ):
        np.testing.assert_allclose(left, right, atol=tolerance, err_msg=jax.tree_util.keystr(path_))


def moved(state):
    """Returns the state of a policy that is no longer the reference."""
    rng = np.random.default_rng(2)
    trainable = jax.tree.map(
        lambda leaf: leaf + 0.02 * rng.standard_normal(leaf.shape).astype(np.float32),
        state.trainable,
    )
    return state.with_trainable(trainable)


def test_each_reply_has_the_log_probability_that_it_has_alone(path, parameters, tmp_path):
    """The oracle renders each reply as a dialogue of its own, in a row of its own."""
    batch = pair_batch(path, PairFormat(DPO, shares_prompt=True), LAYOUT)
    _, definition, _, state = stage(DPO)
    computed = reference_step()(state, batch)
    dialogues = []
    for record in records():
        prompt = record["prompt"]
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        prompt = [
            {**turn, "loss": False} if turn["role"] == "assistant" else turn for turn in prompt
        ]
        for key in ("chosen", "rejected"):
            reply = record[key]
            reply = [{"role": "assistant", "content": reply}] if isinstance(reply, str) else reply
            dialogues.append({"messages": [*prompt, *reply]})
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes((path.parent / name).read_bytes())
    prepare = preprocessor(write_records_as(tmp_path, dialogues), None)
    rng = np.random.default_rng(0)
    examples = [
        prepare.examples(prepare._sources[0][number], rng)[0] for number in range(len(dialogues))
    ]
    alone = collate([[example] for example in examples], prepare.shape)

    @jax.jit
    def logprobs(state, batch):
        model, _ = definition.merge(state)
        hidden, _ = forward(model, None, batch)
        compute = model.decoder.compute
        return chunked_logprobs(
            hidden,
            model.decoder.lm_head_kernel(),
            jnp.asarray(batch.targets),
            chunks=1,
            rules=compute.rules,
        )[0]

    expected = (np.asarray(logprobs(state, alone)) * alone.loss_weights).sum(axis=1)
    expected_tokens = alone.loss_weights.sum(axis=1)
    for row, numbers in enumerate(LAYOUT):
        for place, number in enumerate(numbers):
            # Two of three people call the second reply of record 4 the better one.
            replies = (REJECTED, CHOSEN) if number == 4 else (CHOSEN, REJECTED)
            for which, reply in enumerate(replies):
                dialogue = 2 * number + which
                assert computed["tokens"][row, place, reply] == expected_tokens[dialogue]
                assert float(computed["logprobs"][row, place, reply]) == pytest.approx(
                    expected[dialogue], abs=2e-5
                )
    assert np.asarray(computed["tokens"])[..., UNRELATED].sum() == 0


def write_records_as(folder, rows):
    import json

    path = folder / "dialogues.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_labels_margins_and_rows(path):
    batch = pair_batch(path, PairFormat(DPO, shares_prompt=True), LAYOUT)
    pairs = batch.pairs
    np.testing.assert_allclose(pairs.labels[:, :2], [[1, 1], [1, 0], [0.5, 1], [2 / 3, 0]])
    np.testing.assert_allclose(pairs.margins[:, :2], [[0, 0], [3, 0], [0, 0], [2 / 3, 0]])
    np.testing.assert_array_equal(pairs.weights.sum(axis=1), [2, 1, 2, 1])
    assert pairs.records[0, :2].tolist() == [[0, 0], [0, 2]]
    # The prompt of a pair and its clip stand in the row once.
    patches = batch.tokens == TOKENIZER.special.audio_patch
    audio = batch.audio_index >= 0
    np.testing.assert_array_equal(patches, audio)
    unshared = pair_batch(path, PairFormat(DPO, shares_prompt=False), LAYOUT)
    assert unshared.pairs.prefix_ids is None
    assert (unshared.audio_index >= 0).sum() == 2 * audio.sum()
    np.testing.assert_array_equal(unshared.mel_lengths, batch.mel_lengths)
    assert unshared.loss_weights.sum() == batch.loss_weights.sum()


@pytest.mark.parametrize(
    "settings", [LORA, pytest.param({}, marks=pytest.mark.slow)], ids=["lora", "copy"]
)
def test_at_step_0_the_loss_is_log_2_and_the_margins_are_0(path, settings):
    batch = pair_batch(path, PairFormat(DPO, shares_prompt=True), LAYOUT)
    metrics, _ = gradient_of(DPO, batch, **settings)
    tolerance = 0 if settings else 1e-5 * metrics["tokens/chosen"]
    assert abs(metrics["rewards/margin"]) <= tolerance
    assert abs(metrics["rewards/chosen"]) <= tolerance
    assert metrics["loss"] == pytest.approx(np.log(2), abs=max(tolerance, 1e-7))
    if settings:
        assert metrics["rewards/accuracy"] == 0.5


def test_swapped_labels_flip_the_gradient_exactly_at_step_0(path):
    batch = pair_batch(path, PairFormat(DPO, shares_prompt=True), LAYOUT)
    labels = np.where(batch.pairs.weights > 0, 1.0, 0.0).astype(np.float32)
    flipped = [
        dataclasses.replace(batch, pairs=dataclasses.replace(batch.pairs, labels=of_pairs))
        for of_pairs in (labels, 1 - labels)
    ]
    (_, gradient), (_, opposite) = (gradient_of(DPO, labelled, **LORA) for labelled in flipped)
    assert any(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))
    for left, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(opposite), strict=True):
        np.testing.assert_array_equal(left, -right)


@pytest.mark.parametrize(
    ("objective", "change"),
    [
        (FULL, "rows"),
        *(
            pytest.param(objective, change, marks=pytest.mark.slow)
            for objective, change in (
                *((FULL, "prompts"), (FULL, "parts")),
                *((KTO, "prompts"), (KTO, "parts")),
            )
        ),
    ],
    ids=lambda value: getattr(value, "loss", value),
)
def test_rows_micro_batches_and_shared_prompts_change_nothing(path, objective, change):
    """With a policy that differs from the reference, so that every term counts."""
    state = moved(stage(objective)[3])
    batch = pair_batch(path, PairFormat(objective, shares_prompt=True), LAYOUT)
    expected = gradient_of(objective, batch, state)
    other, settings = batch, {}
    if change == "rows":
        layout = [[1], [0], [4], [2, 5, 3]]
        other = pair_batch(path, PairFormat(objective, shares_prompt=True), layout)
    elif change == "prompts":
        other = pair_batch(path, PairFormat(objective, shares_prompt=False), LAYOUT)
    else:
        settings = {"gradient_accumulation_steps": 2}
    metrics, gradient = gradient_of(objective, other, state, **settings)
    for name in ("loss", "rewards/margin", "rewards/accuracy", "logprobs/chosen"):
        assert metrics[name] == pytest.approx(expected[0][name], abs=1e-5), name
    assert_close((gradient, expected[1]))
    assert abs(expected[0]["rewards/margin"]) > 1e-3


def test_stored_log_probabilities_equal_those_of_the_step(path):
    state = moved(stage(FULL)[3])
    batch = pair_batch(path, PairFormat(FULL, shares_prompt=True), LAYOUT)
    reference = reference_step()(state.with_reference_policy(), batch)
    stored = np.where(reference["tokens"] > 0, reference["logprobs"], np.nan)
    stored = dataclasses.replace(
        batch, pairs=dataclasses.replace(batch.pairs, reference_logprobs=stored)
    )
    precomputed = dataclasses.replace(FULL, precompute_reference=True)
    metrics, gradient = gradient_of(precomputed, stored, state)
    expected_metrics, expected = gradient_of(FULL, batch, state)
    for name in ("loss", "rewards/margin", "rewards/chosen"):
        assert metrics[name] == pytest.approx(expected_metrics[name], abs=1e-4), name
    assert_close((gradient, expected), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        Preference(loss="ipo"),
        Preference(length_normalized=True, beta=2.0),
        Preference(loss="simpo", beta=2.0, target_margin=0.5),
        Preference(loss="orpo", beta=0.5),
        Preference(loss="kto", beta=0.3),
    ],
    ids=lambda objective: objective.loss,
)
def test_every_loss_learns_the_pairs(path, objective):
    config, definition, optimizer, state = stage(objective)
    left_out = [3] if objective.skips_equal_pairs else []
    layout = [[number for number in row if number not in left_out] for row in LAYOUT]
    batch = pair_batch(path, PairFormat(objective, shares_prompt=True), layout)
    step = jax.jit(make_preference_step(definition, config, optimizer))
    # ORPO's next-token loss comes first: both replies become likelier, then one of them.
    for _ in range(100 if objective.loss == "orpo" else 40):
        state, _ = step(state, batch)
    evaluated = jax.jit(make_preference_eval_step(definition, objective))(state, batch)
    means = preference_means(evaluated, objective)
    assert float(means["rewards/accuracy"]) > 0.9
    assert float(means["rewards/margin"]) > 0
    if objective.has_reference:
        assert float(means["reference_kl"]) > 1e-4
