"""The train step of distillation, against float64 sums over the vocabulary, one dialogue a row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax.config import DataConfig, Distillation, SourceConfig
from stepaudio_jax.data import Preprocessor, collate, evaluation_batches, open_sources
from stepaudio_jax.data.record import Visit
from stepaudio_jax.errors import DataError
from stepaudio_jax.models import abstract_model
from stepaudio_jax.training.distillation_step import (
    distillation_means,
    make_distillation_eval_step,
    make_distillation_step,
)
from stepaudio_jax.training.initial_weights import ModelParams
from stepaudio_jax.training.teacher import TeacherDef
from stepaudio_jax.training.train_step import forward
from tests.models.random_model import random_parameters
from tests.training.preference_data import MODEL, SIZES, TOKENIZER, run_config, write_records
from tests.training.stages import init_stage

TEACHER = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, hidden=48, ffn=32))
TRANSCRIPT = "one two"


def dialogues(read: bool) -> list[dict]:
    """Returns dialogues with sound, or with the transcripts in its place as their text."""
    clip = {"type": "audio", "audio": "a.wav", "transcript": TRANSCRIPT}
    heard = {"type": "text", "text": TRANSCRIPT} if read else clip
    joint = {"type": "text", "text": "\nWhat?" if read else "What?"}
    reply = {"role": "assistant", "content": "It is low.", "reasoning_content": "300 Hz"}
    return [
        {"messages": [{"role": "user", "content": [heard, joint]}, reply]},
        {"messages": [{"role": "user", "content": "1+1?"}, {**reply, "content": "2"}]},
        {
            "messages": [
                {"role": "user", "content": [heard]},
                reply,
                {"role": "user", "content": "And now?"},
                {**reply, "content": "The same."},
            ]
        },
    ]


def batch_of(folder, rows, layout, *, teacher_reads):
    folder.mkdir(exist_ok=True)
    path = write_records(folder, rows)
    sources = open_sources((SourceConfig(path=str(path)),))
    config = DataConfig(sources=(SourceConfig(path=str(path)),), **SIZES)
    prepare = Preprocessor(
        config, TOKENIZER, MODEL, None, sources, seed=0, teacher_reads=teacher_reads
    )
    return collate(
        [
            [example for number in row for example in prepare(Visit(0, number, 0)).examples]
            for row in layout
        ],
        prepare.shape,
    )


def stage(objective):
    config = run_config(objective)
    params = ModelParams(random_parameters(MODEL, seed=1))
    definition, optimizer, state = init_stage(config, 0, MODEL, params)
    teacher = TeacherDef(TEACHER, abstract_model(TEACHER, config.compute)[0], "drawn")
    return config.stages[0], definition, optimizer, state, teacher


def log_softmax(model, batch):
    """Returns log-probabilities of the next token, float64."""
    graphdef, params = nnx.split(model)

    @jax.jit
    def compute(params, batch):
        merged = nnx.merge(graphdef, params)
        return merged.logits(forward(merged, None, batch)[0])

    logits = np.asarray(compute(params, batch), np.float64)
    highest = logits.max(axis=-1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))


def kl(p, q):
    return (np.exp(p) * (p - q)).sum(axis=-1)


@pytest.mark.parametrize(
    "beta", [0.3, *(pytest.param(beta, marks=pytest.mark.slow) for beta in (0.0, 1.0))]
)
def test_a_teacher_that_reads_is_compared_at_the_tokens_of_the_reply(tmp_path, beta):
    """The oracle has both sides alone: who hears and who reads, each in rows of its own."""
    objective = Distillation(teacher="drawn", teacher_inputs="transcripts", beta=beta)
    config, definition, optimizer, state, teacher = stage(objective)
    teacher_params = random_parameters(TEACHER, seed=2)
    packed = batch_of(tmp_path / "a", dialogues(False), [[0, 1], [2]], teacher_reads=True)
    heard = batch_of(tmp_path / "b", dialogues(False), [[0], [1], [2]], teacher_reads=False)
    read = batch_of(tmp_path / "c", dialogues(True), [[0], [1], [2]], teacher_reads=False)
    student, _ = definition.merge(state)
    ours = log_softmax(student, heard)[heard.loss_weights > 0]
    theirs = log_softmax(teacher.merge(teacher_params), read)[read.loss_weights > 0]
    np.testing.assert_array_equal(
        heard.targets[heard.loss_weights > 0], read.targets[read.loss_weights > 0]
    )
    if beta == 0.0:
        expected = kl(theirs, ours)
    elif beta == 1.0:
        expected = kl(ours, theirs)
    else:
        mixture = np.log(beta * np.exp(theirs) + (1 - beta) * np.exp(ours))
        expected = beta * kl(theirs, mixture) + (1 - beta) * kl(ours, mixture)
    step = jax.jit(make_distillation_step(definition, config, optimizer, teacher))
    _, metrics = step(state, packed, teacher_params)
    assert float(metrics["loss"]) == pytest.approx(expected.mean(), abs=1e-5)
    assert float(metrics["student_kl"]) == pytest.approx(kl(theirs, ours).mean(), abs=1e-5)
    if beta == 0.3:
        return
    evaluated = jax.jit(make_distillation_eval_step(definition, config, 1, teacher))(
        state, packed, teacher_params
    )
    means = distillation_means(evaluated, objective)
    assert float(means["loss"]) == pytest.approx(expected.mean(), abs=1e-5)


def test_rows_of_what_a_teacher_reads(tmp_path):
    batch = batch_of(tmp_path, dialogues(False), [[0, 1], [2]], teacher_reads=True)
    teacher, in_loss = batch.teacher, batch.loss_weights > 0
    assert (teacher.target_index >= 0).sum() == in_loss.sum()
    np.testing.assert_array_equal(teacher.target_index >= 0, in_loss)
    rows, places = np.nonzero(in_loss)
    # The token after the one that predicts is the target.
    predicted = teacher.tokens[rows, teacher.target_index[rows, places] + 1]
    np.testing.assert_array_equal(predicted, batch.targets[rows, places])
    assert TOKENIZER.special.audio_patch not in teacher.tokens
    for row in range(2):
        segments = teacher.segment_ids[row]
        text = TOKENIZER.decode(teacher.tokens[row][segments > 0])
        assert text.count(TRANSCRIPT) == (1, 2)[row]  # the second dialogue has two views
        assert segments.max() == batch.segment_ids[row].max()


def test_transcripts_that_are_longer_than_their_clips_take_the_row(tmp_path):
    rows = dialogues(False)
    rows[0]["messages"][0]["content"][0]["transcript"] = "word " * 30
    batch = batch_of(tmp_path / "long", rows, [[0], [1]], teacher_reads=True)
    assert (batch.teacher.segment_ids[0] > 0).sum() > (batch.segment_ids[0] > 0).sum() + 100
    rows[0]["messages"][0]["content"][0]["transcript"] = "word " * 80
    with pytest.raises(DataError, match=r"pairs.jsonl:1: with transcripts .* seq_len=320"):
        batch_of(tmp_path / "longer", rows, [[0]], teacher_reads=True)
    del rows[0]["messages"][0]["content"][0]["transcript"]
    with pytest.raises(DataError, match=r"pairs.jsonl:1: .*a\.wav.* has no transcript"):
        batch_of(tmp_path / "none", rows, [[0]], teacher_reads=True)


def test_what_a_teacher_reads_packs_without_overflow(tmp_path):
    """A row is full when either side is."""
    rows = dialogues(False)
    rows[0]["messages"][0]["content"][0]["transcript"] = "word " * 30
    path = write_records(tmp_path, [rows[0]] * 6)
    config = DataConfig(sources=(SourceConfig(path=str(path)),), batch_size=2, **SIZES)
    batches = list(evaluation_batches(config, TOKENIZER, MODEL, teacher_reads=True))
    counted = sum(float(jnp.sum(batch.loss_weights)) for batch in batches)
    assert counted == sum((batch.teacher.target_index >= 0).sum() for batch in batches)
    for batch in batches:
        rows_, places = np.nonzero(batch.loss_weights)
        index = batch.teacher.target_index[rows_, places] + 1
        np.testing.assert_array_equal(
            batch.teacher.tokens[rows_, index], batch.targets[rows_, places]
        )
