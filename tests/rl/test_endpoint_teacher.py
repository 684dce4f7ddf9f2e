"""A teacher behind a real HTTP server: its numbers are those of the model, its errors are told."""

import json

import numpy as np
import pytest

from stepaudio_jax.config import TeacherEndpointConfig
from stepaudio_jax.errors import ConfigError, EndpointError
from stepaudio_jax.rl.endpoint_teacher import EndpointTeacher
from stepaudio_jax.text import Tokenizer
from tests.rl.prompt_logprob_server import PromptLogprobServer, logprobs_of
from tests.rl.small_stage import base

FORMS = ("prompt_logprobs", "echo", "strict_echo")


@pytest.fixture
def serve():
    """Returns a function that starts a server; all are stopped at the end."""
    servers = []

    def start(form="prompt_logprobs", **settings):
        servers.append(PromptLogprobServer(form, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def teacher_of(server, tokenizer=None, **settings):
    config = TeacherEndpointConfig(
        **{"url": server.url, "model": "m", "api_key_env": None, "retries": 0, **settings}
    )
    return EndpointTeacher(config, tokenizer or base().tokenizer)


def dialogues():
    encode = base().tokenizer.encode
    prompts = [np.array(encode(text), np.int32) for text in ("What is it?", "3 plus 4 is", "é")]
    replies = [np.array(encode(text), np.int32) for text in ("A low tone.", "7", "naïve 语")]
    return prompts, replies


@pytest.mark.parametrize("form", FORMS)
def test_the_log_probabilities_are_the_models(serve, form):
    server = serve(form)
    teacher = teacher_of(server)
    teacher.connect()
    prompts, replies = dialogues()
    scored = teacher.logprobs(prompts, replies)
    for prompt, reply, values in zip(prompts, replies, scored, strict=True):
        expected = logprobs_of([*prompt, *reply])[prompt.size :]
        assert values.shape == reply.shape
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert all(body["temperature"] == 1.0 for _, _, body in server.requests)


def test_another_tokenizer_is_refused(serve):
    other = Tokenizer.train(["quite other words for quite another vocabulary"] * 3, merges=300)
    server = serve(tokenizer=other)
    with pytest.raises(ConfigError, match=r"spells token \d+ .* must have the student's tokenizer"):
        teacher_of(server).connect()
    # The student's vocabulary is larger than the model's.
    large = Tokenizer.byte_level()
    large.required_vocab_size = 5000
    with pytest.raises(ConfigError, match=r"status 400.*out of vocabulary"):
        teacher_of(serve(), large).connect()


def test_a_server_that_says_nothing_of_the_prompt_is_refused(serve):
    with pytest.raises(ConfigError) as error:
        teacher_of(serve("nothing")).connect()
    assert "objective.teacher_endpoint: m at http://127.0.0.1" in str(error.value)
    assert "asked with prompt_logprobs, it returns none; asked with echo" in str(error.value)
    server = serve()
    server.change = lambda answer: json.loads(
        json.dumps(answer).replace("decoded_token", "another_key")
    )
    with pytest.raises(ConfigError, match="does not say how it spells tokens"):
        teacher_of(server).connect()


def replace_first(answer, value):
    """Returns the answer with another log-probability of its last token."""
    entries = answer["choices"][0]["prompt_logprobs"]
    for entry in list(entries[-1].values())[1:]:
        entry["logprob"] = value
    return answer


def shorten(answer):
    answer["choices"][0]["prompt_logprobs"].pop()
    return answer


def rename(answer):
    last = answer["choices"][0]["prompt_logprobs"][-1]
    last["999999"] = last.pop(list(last)[-1])
    return answer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorten, "log-probabilities for"),
        (rename, "no log-probability of token"),
        (lambda answer: replace_first(answer, float("-inf")), "-inf is no log-probability"),
        (lambda answer: replace_first(answer, float("nan")), "nan is no log-probability"),
        (lambda answer: replace_first(answer, 0.5), "0.5 is no log-probability"),
        (lambda answer: replace_first(answer, "-1"), "'-1' is no log-probability"),
        (lambda answer: {"choices": []}, "not a completion with log-probabilities"),
        (lambda answer: [], "not a completion with log-probabilities"),
        (lambda answer: b"[" * 100_000, "not a completion with log-probabilities"),
        (lambda answer: {"choices": [{"text": "x"}]}, "no log-probabilities of the prompt"),
    ],
)
def test_malformed_answers_are_errors_of_one_line(serve, change, message):
    server = serve()
    teacher = teacher_of(server)
    teacher.connect()
    server.change = change
    with pytest.raises(EndpointError, match=message) as error:
        teacher.logprobs(*dialogues())
    assert "\n" not in str(error.value)


def test_a_server_that_is_gone_and_a_key_that_is_not_there(serve, monkeypatch):
    server = serve()
    teacher = teacher_of(server)
    teacher.connect()
    server.close()
    with pytest.raises(EndpointError, match="no answer after 1 attempts"):
        teacher.logprobs(*dialogues())
    with pytest.raises(ConfigError, match="no answer after 1 attempts"):
        teacher_of(server).connect()
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY holds no key"):
        teacher_of(server, api_key_env="NO_SUCH_KEY").connect()
