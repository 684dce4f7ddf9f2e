"""A judge in this process that hears: by its own encoder, and by a policy's features."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from stepaudio_jax.config import ComputeConfig, DataConfig, MeshConfig, SourceConfig
from stepaudio_jax.generation import Sampling, build_engine, build_prompt
from stepaudio_jax.judge.backends import ModelBackend
from stepaudio_jax.judge.clip_embeddings import ClipEmbeddings, encoder_difference
from stepaudio_jax.judge.clips import ClipReader
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.query import Query
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.rl.audio_features import AudioFeatureEncoder
from stepaudio_jax.text import Message, TextPart, parse_reply, render_prompt
from tests.generation.small_model import write_clip
from tests.rl.small_stage import FLOAT32, base

TOKENS = 16
ASKED = " What are the words?"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [
        write_clip(folder / f"{seed}.wav", seconds, seed)
        for seed, seconds in enumerate((0.7, 0.9, 1.2))
    ]


@pytest.fixture(scope="module")
def contents(clips):
    """Returns questions, most of which differ in their sound alone."""
    return [
        (clips[0], ASKED),
        (clips[1], ASKED),
        (clips[2], ASKED),
        (clips[0], clips[1], ASKED),
        (clips[1], clips[0], ASKED),
        (ASKED,),
    ]


def query(*parts):
    """Returns a question of strings and clips."""
    read = functools.partial(ClipReader(), origin="p:1")
    text, places = "", []
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            places.append((len(text), read(part)))
    return Query(text, clips=tuple(places), inputs="audio")


def answers(backend, contents):
    queries = [query(*content) for content in contents]
    return [answer.text for _, answer in sorted(backend.generate_batch(queries))]


@pytest.fixture(scope="module")
def backend():
    return ModelBackend(base(), slots=2, max_tokens=TOKENS)


@pytest.fixture(scope="module")
def answered(backend, contents):
    return answers(backend, contents)


def features_of(clips):
    """Returns the features of a prompt with the clips, as a step of RL computes them."""
    data = DataConfig(
        sources=(SourceConfig(path="unused"),), mel_frames_per_chunk=160, audio_chunks_per_seq=2
    )
    mesh = make_mesh(MeshConfig())
    parts = (*clips, TextPart("Something else."))
    prompt = build_prompt(
        render_prompt([Message("user", parts)], base().tokenizer),
        base().tokenizer,
        base().config.length_convention,
    )
    with jax.set_mesh(mesh):
        encoder = AudioFeatureEncoder(base().config, FLOAT32, data, mesh)
        return encoder(base().parameters, [prompt])


def test_answers_follow_the_sound_and_are_those_of_the_engine(contents, answered):
    assert len(set(answered[:5])) > 1, answered
    model = base()
    prompts = []
    for content in contents:
        parts = tuple(TextPart(part) if isinstance(part, str) else part for part in content)
        segments = render_prompt([Message("user", parts)], model.tokenizer)
        prompts.append(build_prompt(segments, model.tokenizer, model.config.length_convention))
    engine = build_engine(model, prompts, TOKENS, slots=2)
    sampling = Sampling(temperature=0.0, max_new_tokens=TOKENS)
    expected = {
        index: parse_reply(
            completion.tokens, model.tokenizer, ended=completion.finish_reason != "length"
        ).reply
        for index, completion in engine.generate(prompts, [sampling] * len(prompts))
    }
    assert answered == [expected[index] for index in range(len(contents))]


@pytest.mark.slow
def test_shared_features_are_what_the_judge_would_encode(backend, clips, contents, answered):
    engine = backend._engine
    read = functools.partial(ClipReader(), origin="")
    sounds = [read(clip) for clip in clips]
    alone, shared = ClipEmbeddings(base()), ClipEmbeddings(base())
    shared.set_features(features_of(clips[:2]).by_chunk)
    for sequence in ([0], [1], [0, 1], [1, 0], [0, 2]):
        given = [sounds[index] for index in sequence]
        np.testing.assert_allclose(shared(engine, given), alone(engine, given), atol=2e-5)
    assert (alone.num_encoded, shared.num_encoded) == (3, 1)  # the third clip is not in the prompt
    first = shared(engine, [sounds[0], sounds[1]])
    assert shared(engine, [sounds[0], sounds[1]]) is first  # both orders of a pair hold one array

    backend.set_audio_features(features_of(clips[:2]).by_chunk)
    assert answers(backend, contents) == answered
    backend.set_audio_features(
        {digest: -chunk for digest, chunk in features_of(clips[:2]).by_chunk.items()}
    )
    inverted = answers(backend, contents)
    backend.set_audio_features({})
    assert inverted[2] == answered[2], "a clip without features is encoded"
    assert inverted[:2] != answered[:2], "features are what is heard"
    assert inverted[5] == answered[5]


def test_features_are_shared_only_where_encoder_and_front_end_are_the_same():
    model, parameters = base(), base().parameters
    compute = FLOAT32
    assert encoder_difference(model, model.config, compute, parameters) == ""
    half = ComputeConfig(dtype="bfloat16")
    assert "computed in float32" in encoder_difference(model, model.config, half, parameters)
    vllm = dataclasses.replace(model.config, length_convention="vllm")
    assert "length_convention" in encoder_difference(model, vllm, compute, parameters)
    layers = dataclasses.replace(
        model.config, encoder=dataclasses.replace(model.config.encoder, layers=7)
    )
    assert "another shape" in encoder_difference(model, layers, compute, parameters)
    leaves, tree = jax.tree.flatten(parameters["encoder"])
    changed = np.array(leaves[-1])
    changed.flat[0] += 1e-3
    other = {"encoder": jax.tree.unflatten(tree, [*leaves[:-1], jax.numpy.asarray(changed)])}
    assert "other weights" in encoder_difference(model, model.config, compute, other)
    # The adaptor is the judge's own.
    adaptor = jax.tree.map(lambda x: x + 1, parameters["adaptor"])
    assert (
        encoder_difference(
            model, model.config, compute, {"encoder": parameters["encoder"], "adaptor": adaptor}
        )
        == ""
    )


def test_a_judge_of_transcripts_needs_no_features(backend):
    settings = (base().config, FLOAT32, base().parameters)
    assert not Judge(backend, JudgePrompt()).share_audio_encoder(*settings)
    assert Judge(backend, JudgePrompt(inputs="both")).share_audio_encoder(*settings)
