"""`import stepaudio_jax as sa`: what a notebook needs, and what it does not pay for."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import stepaudio_jax as sa
from stepaudio_jax import config
from stepaudio_jax.errors import CheckpointError, DataError, GenerationError, OutputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY_BASE = ROOT / "models" / "tiny_base"
KITCHEN = ROOT / "examples" / "clips" / "kitchen.flac"
GREEDY = {"temperature": 0, "max_new_tokens": 32}


def test_importing_the_package_is_fast_and_imports_no_jax():
    """Within 0.2 s by Python's own count, and without JAX, so that flags can still be set."""
    program = "import stepaudio_jax, sys; print({'jax', 'numpy', 'flax'} & set(sys.modules))"
    microseconds = []
    for _ in range(3):  # the shortest counts: other programs may run beside one of them
        result = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True
        )
        assert result.stdout == "set()\n"
        last = result.stderr.splitlines()[-1]
        assert last.endswith("stepaudio_jax")
        microseconds.append(int(last.split("|")[1]))
    assert min(microseconds) < 200_000


def test_every_public_name_can_be_had_and_is_listed():
    for name in sa.__all__:
        assert getattr(sa, name) is not None
        assert name in dir(sa)
    with pytest.raises(AttributeError, match="has no attribute 'lod'; did you mean 'load'"):
        _ = sa.lod


def test_every_part_of_a_configuration_is_in_the_face():
    parts = {
        name
        for name in config.__all__
        if dataclasses.is_dataclass(getattr(config, name)) and name not in MODEL_SHAPES
    }
    assert parts - set(sa.__all__) == set()


MODEL_SHAPES = {"AdaptorConfig", "DecoderConfig", "EncoderConfig"}  # in ModelConfig's presets


def test_a_configuration_made_in_python_is_checked():
    with pytest.raises(sa.StepAudioError, match="batch_size=0"):
        sa.DataConfig(sources=(sa.SourceConfig(path="a.jsonl"),), batch_size=0)


@pytest.fixture(scope="module")
def model():
    """The small base model, its engine already as large as every test here needs it."""
    model = sa.load(TINY_BASE)
    model.chat([KITCHEN, "Who is speaking? " * 4], temperature=0, max_new_tokens=64)
    return model


@pytest.fixture(scope="module")
def sound():
    """The clip as (samples, rate)."""
    samples, rate = soundfile.read(KITCHEN, dtype="int16")
    return samples, rate


def test_a_clip_may_be_a_path_or_an_array_in_any_form(model, sound):
    """Sound in: the same tokens out, whichever way it came."""
    words = "What do you hear?"
    reply = model.chat([str(KITCHEN), words], **GREEDY)
    assert reply.text == "female, normal, high, English: today the kitchen is here"
    assert reply.finish_reason == "stop"
    assert len(reply.tokens) == len(reply.logprobs) > 0
    typed = {"type": "audio", "audio": str(KITCHEN)}
    from_datasets = {"array": sound[0], "sampling_rate": sound[1]}
    forms = [
        [KITCHEN, words],
        [sound, words],
        (from_datasets, words),
        [typed, {"type": "text", "text": words}],
        [{"type": "audio", "audio": sound}, words],
        [{"type": "audio", "audio": KITCHEN}, words],
        [{"role": "user", "content": [sound, words]}],
        [{"role": "user", "content": [typed, words]}],
    ]
    for form in forms:
        assert model.chat(form, **GREEDY) == reply
    silent = model.chat([(0 * sound[0], sound[1]), words], **GREEDY)
    assert silent.logprobs != reply.logprobs


def test_words_that_end_as_a_path_stay_words(model):
    text = {"type": "text", "text": str(KITCHEN)}
    assert model.chat(text, **GREEDY) == model.chat(
        [{"role": "user", "content": str(KITCHEN)}], **GREEDY
    )
    model.chat("What is in a .wav", **GREEDY)  # white space, and no such file: words


def test_a_dialogue_continues_after_the_reply(model):
    messages = [{"role": "user", "content": "Hello"}]
    reply = model.chat(messages, **GREEDY)
    messages += [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And?"}]
    model.chat(messages, **GREEDY)
    assert reply.message == {
        "role": "assistant",
        "reasoning_content": reply.reasoning,
        "content": reply.text,
    }
    assert str(reply) == reply.text


def test_a_stream_is_the_reply_piece_by_piece(model):
    question = [KITCHEN, "What do you hear?"]
    reply = model.chat(question, **GREEDY)
    pieces = list(model.stream(question, **GREEDY))
    assert "".join(pieces).endswith(f"</think>\n{reply.text}")
    stream = model.stream(question, **GREEDY)
    next(stream)
    with pytest.raises(GenerationError, match="another reply is being streamed"):
        model.chat("Hello", **GREEDY)
    stream.close()
    assert model.chat(question, **GREEDY) == reply


def test_the_score_of_a_greedy_reply_is_what_generation_said(model, sound):
    """Two programs, the engine's and the scorer's, agree on the probability of each token."""
    question = {"role": "user", "content": [sound, "What do you hear?"]}
    reply = model.chat([question], **GREEDY)
    (score,) = model.score([question, reply.message])
    assert score.token_ids[:-1] == reply.tokens
    np.testing.assert_allclose(score.logprobs[:-1], reply.logprobs, atol=1e-3)
    assert score.logprob == sum(score.logprobs)


REFUSED = {
    "nothing": ([], {}, DataError, "must be a list of messages or of parts, got an empty list"),
    "a number": (3, {}, DataError, "must be a list of messages or of parts, got 3"),
    "a number among parts": (["a", 3], {}, DataError, "part 2 is 3; give text, the path"),
    "turns and parts": (
        [{"role": "user", "content": "a"}, "b"],
        {},
        DataError,
        "item 2 of the dialogue has no 'role'",
    ),
    "a missing clip": (["gone.wav"], {}, DataError, "gone.wav: does not exist"),
    "a file that is no sound": ([__file__], {}, DataError, r"names a file: give pathlib.Path"),
    "channels first": (
        [(np.zeros((2, 16_000)), 16_000)],
        {},
        DataError,
        r"audio <array 1>: .*transpose it",
    ),
    "no user's turn": (
        [{"role": "assistant", "content": "a"}],
        {},
        DataError,
        "the dialogue",
    ),
    "an unknown role": (
        [{"role": "boss", "content": "a"}],
        {},
        DataError,
        "message 1 has the unknown role",
    ),
    "a misspelt setting": (["a"], {"temprature": 1}, GenerationError, "did you mean 'temperature'"),
    "a setting out of range": (["a"], {"top_p": 2}, GenerationError, "top_p=2 must lie in"),
    "too long": (["a"], {"max_new_tokens": 5000}, GenerationError, "lower max_new_tokens"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_dialogues_that_cannot_be_answered_are_refused(model, kind):
    messages, settings, error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        model.chat(messages, **settings)


def test_a_model_for_generation_alone_says_that_it_cannot_score():
    model = sa.load(TINY_BASE, for_generation=True)
    assert model.chat("Hello", **GREEDY).tokens
    with pytest.raises(GenerationError, match="cannot score; load it without"):
        model.score([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def test_weights_go_to_a_checkpoint_and_back(tmp_path):
    assert sa.convert(TINY_BASE, tmp_path / "checkpoint") == tmp_path / "checkpoint"
    sa.convert(tmp_path / "checkpoint", tmp_path / "folder", dtype="bfloat16")
    index = "model.safetensors.index.json"
    before, after = (
        json.loads((folder / index).read_text()) for folder in (TINY_BASE, tmp_path / "folder")
    )
    assert before["weight_map"].keys() == after["weight_map"].keys()
    with pytest.raises(OutputError, match="exists"):
        sa.convert(TINY_BASE, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError):
        sa.convert(tmp_path / "gone", tmp_path / "new")


def test_the_first_code_block_of_the_readme_runs(monkeypatch, capsys):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len(block.strip().splitlines()) <= 7  # six and an empty line
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})
    reply, score = capsys.readouterr().out.splitlines()
    assert reply == "female, normal, high, English: today the kitchen is here"
    assert score.startswith("[TurnScore(token_ids=(")
