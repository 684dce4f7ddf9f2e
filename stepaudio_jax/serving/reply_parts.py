r"""Splits a reply, piece by piece as it is generated, into reasoning, words and calls of tools.

    {reasoning}\n</think>\n{words}<tool_call>function\n{name}\n{arguments}</tool_call>

What may turn out to be the beginning of a tag is held back until it is known, so the pieces of a
stream, joined, are what splitting all of the text at once gives.
"""

import dataclasses
import json

from stepaudio_jax.text.dialogue import THINK_END_TAG
from stepaudio_jax.text.special_tokens import CALL_TAGS

_CALL_START, _CALL_END = CALL_TAGS
_CALL_KIND = "function\n"
_LINED_END = f"\n{THINK_END_TAG}"


@dataclasses.dataclass(frozen=True)
class ParsedCall:
    """A call of a tool: the function's name, and its arguments as the model wrote them, in JSON."""

    name: str
    arguments: str


@dataclasses.dataclass
class ReplyPiece:
    """What a piece of text adds to a reply."""

    reasoning: str = ""
    content: str = ""
    calls: list[ParsedCall] = dataclasses.field(default_factory=list)


class ReplySplitter:
    """Splits a reply.

    Args:
        in_reasoning: whether the text begins inside a reasoning.
        parses_calls: whether calls of tools are taken out of the words.
    """

    def __init__(self, *, in_reasoning: bool, parses_calls: bool):
        self._in_reasoning = in_reasoning
        self._parses_calls = parses_calls
        self._at_reply_start = False  # a line break here belongs to the tag before it
        self._pending = ""

    def add(self, text: str) -> ReplyPiece:
        """Adds text; returns what is certain now."""
        self._pending += text
        piece = ReplyPiece()
        if self._in_reasoning:
            self._take_reasoning(piece)
        if not self._in_reasoning:
            self._take_reply(piece, last=False)
        return piece

    def finish(self) -> ReplyPiece:
        """Returns what was held back, now that nothing follows."""
        piece = ReplyPiece()
        if self._in_reasoning:
            piece.reasoning, self._pending = self._pending, ""
        else:
            self._take_reply(piece, last=True)
        return piece

    def _take_reasoning(self, piece: ReplyPiece) -> None:
        before, tag, after = self._pending.partition(THINK_END_TAG)
        if tag:
            piece.reasoning = before.removesuffix("\n")
            self._pending, self._in_reasoning, self._at_reply_start = after, False, True
            return
        held = max(partial_tag(self._pending, tag) for tag in (_LINED_END, THINK_END_TAG))
        shown = len(self._pending) - held
        piece.reasoning, self._pending = self._pending[:shown], self._pending[shown:]

    def _take_reply(self, piece: ReplyPiece, *, last: bool) -> None:
        if self._at_reply_start and self._pending:
            self._pending = self._pending.removeprefix("\n")
            self._at_reply_start = False
        while self._parses_calls:
            before, start, rest = self._pending.partition(_CALL_START)
            if not start:
                break
            inner, end, after = rest.partition(_CALL_END)
            if not end:
                piece.content += before
                self._pending = start + rest
                if last:  # a call that was cut short is words
                    piece.content += self._pending
                    self._pending = ""
                return
            piece.content += before
            call = parse_call(inner)
            if call is None:
                piece.content += f"{start}{inner}{end}"
            else:
                piece.calls.append(call)
            self._pending = after
        held = partial_tag(self._pending, _CALL_START) if self._parses_calls and not last else 0
        shown = len(self._pending) - held
        piece.content += self._pending[:shown]
        self._pending = self._pending[shown:]


def parse_call(text: str) -> ParsedCall | None:
    r"""Returns the call between two tags, `function\n{name}\n{arguments}`; None if it is none."""
    if not text.startswith(_CALL_KIND):
        return None
    name, _, arguments = text.removeprefix(_CALL_KIND).partition("\n")
    arguments = arguments.strip() or "{}"
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return ParsedCall(name.strip(), arguments) if name.strip() and isinstance(value, dict) else None


def partial_tag(text: str, tag: str) -> int:
    """Returns how many characters at the end of a text may be the beginning of a tag."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0
