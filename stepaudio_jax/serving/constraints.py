"""Replies of a form: JSON, a JSON schema, calls of tools. Which tokens it allows, token by token.

The grammar is of all that the model writes, its reasoning included: words up to `</think>`, then
the reply. A token may end the reasoning and begin the reply, and is allowed where both parts are.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.errors import GenerationError
from stepaudio_jax.serving.chat_protocol import (
    ChatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    Tool,
)
from stepaudio_jax.serving.errors import ApiError
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.text.dialogue import THINK_END_TAG
from stepaudio_jax.text.special_tokens import CALL_TAGS

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
# Between the parts of a JSON value: without a limit, a small model may write nothing else.
_JSON_OPTIONS = {"whitespace_pattern": r"[ \t\r\n]{0,16}"}
_LOWEST_BIT = np.uint32(1)


def reply_grammar(request: ChatRequest, *, in_reasoning: bool) -> str | None:
    """Returns the grammar, in llguidance's Lark, of the replies that a request allows.

    Args:
        request: its `response_format`, `tools` and `tool_choice` are read.
        in_reasoning: whether the reply begins inside a reasoning.

    Returns:
        None where every reply is allowed.

    Raises:
        ApiError: a tool is asked for that is not there.
    """
    tools, choice = request.tools or [], request.tool_choice
    called = tools
    if isinstance(choice, NamedTool):
        called = [tool for tool in tools if tool.function.name == choice.function.name]
    if isinstance(choice, NamedTool) and not called:
        raise ApiError(
            400, f"tool_choice names no tool: {choice.function.name!r}", param="tool_choice"
        )
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice is 'required' and there are no tools", param="tool_choice")
    schema = _reply_schema(request)
    must_call = choice == "required" or isinstance(choice, NamedTool)
    forms, rules = [], []
    if schema is not None and not must_call:
        forms.append("json")
        rules.append(f"json: {_json_rule(schema)}")
    if must_call or (forms and called and choice != "none"):
        one_call = request.parallel_tool_calls is False or isinstance(choice, NamedTool)
        forms.append("call" if one_call else "call+")
        rules += _call_rules(called)
    if not forms:
        return None
    body = f"body: {' | '.join(forms)}"
    if not in_reasoning:
        return "\n".join(("start: body", body, *rules))
    return "\n".join(
        (
            r'start: reasoning "\n" body',
            f"reasoning[suffix={json.dumps(THINK_END_TAG)}]: /(.|\\n)*/",
            body,
            *rules,
        )
    )


def _reply_schema(request: ChatRequest) -> Any:
    """Returns the JSON schema of the reply; None where it may be words."""
    form = request.response_format
    if isinstance(form, JsonObjectFormat):
        return _ANY_OBJECT
    if isinstance(form, JsonSchemaFormat):
        return form.json_schema.schema_ if form.json_schema.schema_ is not None else _ANY_OBJECT
    return None


def _json_rule(schema: Any) -> str:
    if isinstance(schema, dict):
        schema = {"x-guidance": _JSON_OPTIONS, **schema}
    return f"%json {json.dumps(schema)}"


def _call_rules(tools: Sequence[Tool]) -> list[str]:
    start, end = (json.dumps(tag) for tag in CALL_TAGS)
    rules = [
        f'call: {start} "function\\n" ({" | ".join(f"call_{i}" for i in range(len(tools)))}) {end}'
    ]
    for index, tool in enumerate(tools):
        schema = tool.function.parameters or _ANY_OBJECT
        name = json.dumps(f"{tool.function.name}\n")
        rules += [f"call_{index}: {name} arguments_{index}"]
        rules += [f"arguments_{index}: {_json_rule(schema)}"]
    return rules


class ConstraintFactory:
    """Makes constraints for the tokens of one model.

    Args:
        tokenizer: the model's tokenizer.
        vocab_size: of the model, which may be larger.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    @functools.cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size)),
            n_vocab=self._vocab_size,
        )

    def prepare(self) -> None:
        """Builds what all constraints share, which takes seconds for a large vocabulary."""
        _ = self._vocabulary

    def check(self, grammar: str) -> None:
        """Checks that a grammar can be followed.

        Raises:
            ApiError: it cannot; says why.
        """
        failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
            llguidance.LLMatcher.grammar_from_lark(grammar), self._vocabulary
        )
        if failed:
            raise ApiError(
                400,
                f"the JSON schema of the reply or of a tool cannot be followed: {messages[0]}",
                param="response_format",
                code="invalid_json_schema",
            )

    def make(self, grammar: str) -> "GrammarConstraint":
        """Returns a constraint to the texts of a grammar that was checked."""
        matcher = llguidance.LLMatcher(
            self._vocabulary, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0
        )
        if matcher.is_error():
            raise GenerationError(f"a grammar cannot be followed: {matcher.get_error()}")
        return GrammarConstraint(matcher, self._tokenizer.special.eot)


class GrammarConstraint:
    """Allows the tokens that a grammar does, and the end of the turn where a text may end.

    Args:
        matcher: at the beginning of the text.
        eot: the token that ends the turn.
    """

    def __init__(self, matcher: llguidance.LLMatcher, eot: int):
        self._matcher, self._eot = matcher, eot

    def write_allowed(self, words: NDArray[np.uint32]) -> None:
        """Sets a bit for each token that may come next; see `TokenConstraint`."""
        if not self._matcher.is_stopped():
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if not words.any():  # all is written, or the grammar is too complex to go on
            words[self._eot // 32] |= _LOWEST_BIT << np.uint32(self._eot % 32)

    def accept(self, token: int) -> None:
        """Takes notice of the token that came."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.special.eot
        self.bos_token_id = None
        size = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]
        self.special_token_ids = [token for token in range(size) if tokenizer.is_special(token)]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text)
