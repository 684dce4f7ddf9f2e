"""Splitting a reply into reasoning, words and calls, however its text arrives."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies

from stepaudio_jax.serving.reply_parts import ParsedCall, ReplySplitter
from stepaudio_jax.text.prompt_format import parse_reply_text

CALL = '<tool_call>function\nget\n{"a": 1}</tool_call>'
PIECES = (
    *(
        "</think>",
        "\n</think>\n",
        "\n",
        "<",
        "</th",
        "ink>",
        "a",
        "你好",
        "<tool_call>",
        "function\n",
    ),
    *(
        CALL,
        "</tool_call>",
        "<tool_call>function\nbad\n{1}</tool_call>",
        "<tool_call>function\n\n{}",
    ),
)


def split(texts, *, in_reasoning=True, parses_calls=True):
    splitter = ReplySplitter(in_reasoning=in_reasoning, parses_calls=parses_calls)
    pieces = [*map(splitter.add, texts), splitter.finish()]
    return (
        "".join(piece.reasoning for piece in pieces),
        "".join(piece.content for piece in pieces),
        [call for piece in pieces for call in piece.calls],
    )


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    strategies.lists(strategies.sampled_from(PIECES), max_size=12), strategies.randoms()
)
def test_how_a_text_arrives_makes_no_difference(pieces, random):
    text = "".join(pieces)
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(4)) if text else []
    bounds = [0, *cuts, len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(bounds)]
    for in_reasoning in (True, False):
        options = {"in_reasoning": in_reasoning}
        assert split(parts, **options) == split([text], **options) == split(text, **options)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(strategies.lists(strategies.sampled_from(PIECES), max_size=8))
def test_reasoning_and_reply_are_those_of_the_prompt_format(pieces):
    text = "".join(pieces)
    parsed = parse_reply_text(text, ended=True)
    reasoning, content, calls = split(text, parses_calls=False)
    assert (reasoning, content, calls) == (parsed.reasoning, parsed.reply, [])


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"Wait.{CALL}", "Wait.", [ParsedCall("get", '{"a": 1}')]),
        (f"{CALL}{CALL}", "", [ParsedCall("get", '{"a": 1}')] * 2),
        ("<tool_call>function\nget\n</tool_call>", "", [ParsedCall("get", "{}")]),
        (
            "<tool_call>function\nget\n[1]</tool_call>",
            "<tool_call>function\nget\n[1]</tool_call>",
            [],
        ),
        ("<tool_call>function\nget\n{", "<tool_call>function\nget\n{", []),
        ("1 < 2 <tool", "1 < 2 <tool", []),
    ],
)
def test_calls_are_taken_out_of_the_words_and_what_is_none_stays(text, content, calls):
    assert split(text, in_reasoning=False) == ("", content, calls)
