"""A judge in this process that hears: by its own encoder, and by a policy's features."""

import dataclasses
import functools

import jax
import pytest

from stepaudio_jax.config import ComputeConfig, DataConfig, SourceConfig
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.generation import Engine, LoadedModel, Sampling, build_prompt
from stepaudio_jax.judge import backends
from stepaudio_jax.judge.backends import ModelBackend
from stepaudio_jax.judge.clips import ClipReader
from stepaudio_jax.judge.query import Query
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.rl.audio_features import AudioFeatureEncoder
from stepaudio_jax.text import Message, TextPart, render_prompt
from tests.generation.small_model import BYTES, CONFIG, peaked_parameters, write_clip

COMPUTE = ComputeConfig(dtype="float32", remat="none", unroll=0)
TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns a judge of random weights."""
    folder = tmp_path_factory.mktemp("judge")
    (folder / "config.json").write_text("{}")
    return LoadedModel(str(folder), CONFIG, peaked_parameters(), BYTES, COMPUTE)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [
        write_clip(folder / f"{seed}.wav", seconds, seed)
        for seed, seconds in enumerate((0.3, 0.5, 0.4))
    ]


def query(*parts):
    """Returns a question of strings and clips, read for the model."""
    read = functools.partial(
        ClipReader(length_convention=CONFIG.length_convention), origin="p:1"
    )
    text, places = "", []
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            places.append((len(text), read(part)))
    return Query(text, clips=tuple(places), inputs="audio")


def questions(clips):
    """Returns questions of which two pairs differ in their sound alone."""
    return [
        query("Hear ", clips[0], " now"),
        query("Hear ", clips[1], " now"),
        query("Hear ", clips[0], clips[1], " now"),
        query("Hear ", clips[1], clips[0], " now"),
        query("Hear  now"),
    ]


def answers(backend, queries):
    return [answer.text for _, answer in sorted(backend.generate_batch(queries))]


@pytest.fixture(scope="module")
def backend(model):
    return ModelBackend(model, slots=2, max_tokens=TOKENS)


@pytest.fixture(scope="module")
def outputs(backend, clips):
    """Returns what the judge answers by its own encoder, raw tokens as text."""
    return answers(backend, questions(clips))


def parse_all(monkeypatch):
    """Lets a random model's output count as its reply: it never closes its reasoning."""

    @dataclasses.dataclass
    class Parsed:
        reply: str

    monkeypatch.setattr(
        backends,
        "parse_reply",
        lambda tokens, tokenizer, ended: Parsed(tokenizer.decode(tokens)),
    )


@pytest.fixture(autouse=True, scope="module")
def whole_outputs():
    with pytest.MonkeyPatch.context() as monkeypatch:
        parse_all(monkeypatch)
        yield


def test_answers_follow_the_sound_and_are_those_of_the_engine(model, clips, outputs):
    assert len(set(outputs)) == len(outputs), "each sound has its own answer"
    engine = Engine(
        CONFIG, model.parameters, BYTES, compute=COMPUTE, slots=1, slot_tokens=CONFIG.decoder.max_positions
    )
    contents = [
        ("Hear ", clips[0], " now"),
        ("Hear ", clips[1], " now"),
        ("Hear ", clips[0], clips[1], " now"),
        ("Hear ", clips[1], clips[0], " now"),
        ("Hear  now",),
    ]
    for content, ours in zip(contents, outputs, strict=True):
        parts = tuple(TextPart(part) if isinstance(part, str) else part for part in content)
        segments = render_prompt([Message("user", parts)], BYTES)
        prompt = build_prompt(segments, BYTES, CONFIG.length_convention, read=load_clip)
        sampling = Sampling(temperature=0.0, max_new_tokens=TOKENS)
        ((_, completion),) = engine.generate([prompt], [sampling])
        assert BYTES.decode(completion.tokens) == ours


@pytest.fixture(scope="module")
def features(model, clips):
    """Returns a policy's features of the first two clips, as a step of RL has them."""
    data = DataConfig(
        sources=(SourceConfig(path="unused"),), mel_frames_per_chunk=160, audio_chunks_per_seq=2
    )
    mesh = make_mesh(None) if False else jax.make_mesh((1,), ("data",))
    encoder = AudioFeatureEncoder(CONFIG, COMPUTE, data, mesh)
    segments = render_prompt([Message("user", (clips[0], TextPart("?"), clips[1]))], BYTES)
    prompt = build_prompt(segments, BYTES, CONFIG.length_convention)
    return encoder(model.parameters, [prompt])
