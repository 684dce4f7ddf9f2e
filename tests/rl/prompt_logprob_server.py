"""A real HTTP server that returns the log-probabilities of a prompt's tokens by a real model."""

import functools
import threading

import numpy as np

from stepaudio_jax.generation import Prompt
from stepaudio_jax.generation.scoring import Scorer
from tests.judge.judge_server import JudgeServer
from tests.rl.small_stage import base


class PromptLogprobServer(JudgeServer):
    """Answers /v1/completions by the shipped small base, in the form of one kind of server.

    Attributes:
        url: up to and including /v1.
        change: is given the answer to a request, and returns the one that is sent.
    """

    def __init__(self, form: str = "prompt_logprobs", *, tokenizer=None):
        super().__init__()
        self._form, self._tokenizer = form, tokenizer or base().tokenizer
        self._vocab_size = base().config.decoder.vocab_size
        self._lock = threading.Lock()
        self.change = lambda answer: answer
        self.trouble = self._answer

    def _answer(self, number, handler):
        path, _, body = self.requests[number - 1]
        if path != "/v1/completions":
            handler.reply(404, {"error": {"message": f"no {path}"}})
        elif max(body["prompt"]) >= self._vocab_size or body["max_tokens"] < 1:
            handler.reply(400, {"error": {"message": "out of vocabulary, or nothing to generate"}})
        elif self._form == "strict_echo" and "prompt_logprobs" in body:
            handler.reply(400, {"error": {"message": "unknown argument prompt_logprobs"}})
        else:
            handler.reply(200, self.change({"choices": [self._choice(body)]}))
        return True

    def _choice(self, body):
        tokens = body["prompt"]
        with self._lock:
            logprobs = logprobs_of(tokens)
        values = [None, *map(float, logprobs[1:])]
        texts = [self._spell(token) for token in tokens]
        choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None}
        if self._form == "prompt_logprobs" and "prompt_logprobs" in body:
            # The best token stands beside the prompt's own.
            entries = zip(tokens, values, texts, strict=True)
            choice["prompt_logprobs"] = [
                None
                if value is None
                else {
                    "7": {"logprob": -0.1, "rank": 1, "decoded_token": self._spell(7)},
                    str(token): {"logprob": value, "rank": 2, "decoded_token": text},
                }
                for token, value, text in entries
            ]
        if self._form.endswith("echo") and body.get("echo"):
            choice["logprobs"] = {
                "tokens": [*texts, "x"],
                "token_logprobs": [*values, -1.5],
                "top_logprobs": None,
            }
        return choice

    def _spell(self, token):
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")


def logprobs_of(tokens):
    """Returns the small base's log-probability of each token of a text; the first is undefined."""
    tokens = np.asarray(tokens, np.int32)
    nothing = np.zeros(tokens.size, np.bool_)
    return _scorer().logprobs(Prompt(tokens, nothing, nothing, (), ()))


@functools.cache
def _scorer():
    model = base()
    return Scorer(model.config, model.parameters, model.tokenizer, compute=model.compute)
