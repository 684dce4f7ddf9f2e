"""What the model wrote -> reasoning and reply: the inverse of rendering."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

from stepaudio_jax.text.rendering import THINK_END
from stepaudio_jax.text.tokenizer import Tokenizer

Problem = Literal[
    "not_ended",  # it does not end in <|EOT|>: cut off at the limit of length
    "no_think_end",  # </think> never comes: all of it is reasoning
    "several_think_ends",  # </think> comes again within the reply
    "think_end_not_on_its_line",
    "empty_reply",  # nothing but white space
    "special_token",  # one within the text (speech, a second turn)
    "invalid_utf8",
]
_TAG = THINK_END.strip()


@dataclasses.dataclass(frozen=True)
class ParsedReply:
    r"""What the model wrote, taken apart.

    Attributes:
        reasoning: what comes before the first `</think>`; everything, where there is none.
        reply: what comes after it.
        problems: each way in which it departs from `{reasoning}\n</think>\n{reply}<|EOT|>`.
        special_tokens: the names of special tokens within it; they are in neither reasoning nor
            reply.
    """

    reasoning: str
    reply: str
    problems: tuple[Problem, ...] = ()
    special_tokens: tuple[str, ...] = ()

    @property
    def well_formed(self) -> bool:
        """Whether the text is exactly of the format."""
        return not self.problems


def parse_reply(
    tokens: Sequence[int],
    tokenizer: Tokenizer,
    *,
    ended: bool | None = None,
    stop_overlap_bytes: int = 0,
) -> ParsedReply:
    """Takes generated tokens apart.

    Args:
        tokens: all that was generated after the prompt; `<|EOT|>` at the end is allowed.
        tokenizer: of the model.
        ended: whether the model ended its turn itself, where `<|EOT|>` was taken off; None: by
        whether the last token is it.
        stop_overlap_bytes: bytes at the end of the text that are no part of the reply: of a text
            that stops it, whose beginning shares a token with the reply's end.
    """
    has_eot = bool(tokens) and tokens[-1] == tokenizer.special.eot
    written = tokens[:-1] if has_eot else tokens
    special: list[str] = []
    text: list[str] = []
    problems: list[Problem] = []
    runs = [
        (is_special, list(run))
        for is_special, run in itertools.groupby(written, tokenizer.is_special)
    ]
    for index, (is_special, run) in enumerate(runs):
        if is_special:
            special += [tokenizer.decode([token]) for token in run]
            continue
        content = b"".join(map(tokenizer.token_bytes, run))
        if stop_overlap_bytes and index == len(runs) - 1:
            content = content[:-stop_overlap_bytes]
        text.append(content.decode(errors="replace"))
        if text[-1].encode() != content:
            problems.append("invalid_utf8")
    if special:
        problems.append("special_token")
    parsed = parse_reply_text("".join(text), ended=has_eot if ended is None else ended)
    all_problems = tuple(dict.fromkeys((*parsed.problems, *problems)))
    return dataclasses.replace(parsed, problems=all_problems, special_tokens=tuple(special))


def parse_reply_text(text: str, *, ended: bool) -> ParsedReply:
    """Takes generated text apart; `ended` says whether the model ended its turn itself (`<|EOT|>` is not in the text)."""
    problems: list[Problem] = [] if ended else ["not_ended"]
    reasoning, tag, reply = text.partition(_TAG)
    if not tag:
        return ParsedReply(reasoning, "", (*problems, "no_think_end"))
    if _TAG in reply:
        problems.append("several_think_ends")
    if not (reasoning.endswith("\n") and reply.startswith("\n")):
        problems.append("think_end_not_on_its_line")
    reasoning, reply = reasoning.removesuffix("\n"), reply.removeprefix("\n")
    if not reply.strip():
        problems.append("empty_reply")
    return ParsedReply(reasoning, reply, tuple(problems))
