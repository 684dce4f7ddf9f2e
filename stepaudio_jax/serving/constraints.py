"""Replies of a form: JSON, a JSON schema, calls of tools. Which tokens it allows, token by token.

The grammar is of all that the model writes, its reasoning included: words up to `</think>`, then
the reply. A token may end the reasoning and begin the reply, and is allowed where both parts are.
"""

import codecs
import collections
import functools
import json
import threading
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.errors import ApiError, GenerationError
from stepaudio_jax.serving.chat_protocol import (
    ChatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    Tool,
)
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.text.dialogue import THINK_END_TAG
from stepaudio_jax.text.special_tokens import CALL_TAGS

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
# Between the parts of a JSON value: without a limit, a small model may write nothing else.
_JSON_OPTIONS = {"whitespace_pattern": r"[ \t\r\n]{0,16}"}
_MAX_KEPT_GRAMMARS = 256
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
        self._matchers: collections.OrderedDict[str, llguidance.LLMatcher] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

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
        """Checks that a grammar can be followed, and keeps it compiled: that may take long.

        Raises:
            ApiError: it cannot; says why.
        """
        try:
            self._compiled(grammar)
        except GenerationError as error:
            raise ApiError(
                400, str(error), param="response_format", code="invalid_json_schema"
            ) from None

    def make(self, grammar: str) -> "GrammarConstraint":
        """Returns a constraint to the texts of a grammar, quickly if it was checked before.

        Raises:
            GenerationError: it cannot be followed.
        """
        return GrammarConstraint(self._compiled(grammar).deep_copy(), self._tokenizer)

    def _compiled(self, grammar: str) -> llguidance.LLMatcher:
        """Returns a matcher at the beginning of a text, which nobody may move."""
        with self._lock:
            matcher = self._matchers.get(grammar)
            if matcher is not None:
                self._matchers.move_to_end(grammar)
                return matcher
        matcher = llguidance.LLMatcher(
            self._vocabulary, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0
        )
        if matcher.is_error():
            raise GenerationError(
                "the JSON schema of the reply or of a tool cannot be followed:"
                f" {matcher.get_error()}"
            )
        with self._lock:
            self._matchers[grammar] = matcher
            if len(self._matchers) > _MAX_KEPT_GRAMMARS:
                self._matchers.popitem(last=False)
        return matcher


class GrammarConstraint:
    """Allows the tokens that a grammar does, and the end of the turn where a text may end.

    Args:
        matcher: at the beginning of the text.
        tokenizer: of the model.
    """

    def __init__(self, matcher: llguidance.LLMatcher, tokenizer: Tokenizer):
        self._matcher, self._tokenizer = matcher, tokenizer
        self._eot = tokenizer.special.eot
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_partial = 0  # the last tokens, which have not completed a character

    def write_allowed(self, words: NDArray[np.uint32]) -> None:
        """Sets a bit for each token that may come next; see `TokenConstraint`."""
        if not self._matcher.is_stopped():
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if not words.any():  # all is written, or the grammar is too complex to go on
            words[self._eot // 32] |= _LOWEST_BIT << np.uint32(self._eot % 32)

    def accept(self, token: int) -> None:
        """Takes notice of the token that came."""
        if self._matcher.is_stopped():
            return
        if self._num_partial and not self._matcher.validate_tokens([token]):
            # A thinking budget has ended the reasoning within a character, which is dropped here.
            self._matcher.rollback(self._num_partial)
            self._characters.reset()
        self._matcher.consume_token(token)
        self._characters.decode(self._tokenizer.token_bytes(token))
        is_whole = not self._characters.getstate()[0]
        self._num_partial = 0 if is_whole else self._num_partial + 1


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
