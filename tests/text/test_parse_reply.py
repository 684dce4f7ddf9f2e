"""Generated tokens and text, well-formed and malformed; the round trip is in test_prompt_format."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.text import parse_reply, parse_reply_text


@pytest.mark.parametrize(
    ("text", "reasoning", "reply", "problems"),
    [
        ("low voice\n</think>\nA man.", "low voice", "A man.", ()),
        ("\n</think>\nA man.", "", "A man.", ()),
        ("a\n\n</think>\n\n b", "a\n", "\n b", ()),
        ("<think>\nx\n</think>\ny", "<think>\nx", "y", ()),
        ("never ends", "never ends", "", ("no_think_end",)),
        ("", "", "", ("no_think_end",)),
        ("a</think>b", "a", "b", ("think_end_not_on_its_line",)),
        ("a\n</think>b", "a", "b", ("think_end_not_on_its_line",)),
        ("a </think>\nb", "a ", "b", ("think_end_not_on_its_line",)),
        ("</think>\nb", "", "b", ("think_end_not_on_its_line",)),
        ("a\n</think>\nb\n</think>\nc", "a", "b\n</think>\nc", ("several_think_ends",)),
        ("a\n</think>\n", "a", "", ("empty_reply",)),
        ("a\n</think>\n \n", "a", " \n", ("empty_reply",)),
        ("a\n</think>", "a", "", ("think_end_not_on_its_line", "empty_reply")),
    ],
)
def test_a_reply_is_parsed_into_reasoning_and_reply(byte_level, text, reasoning, reply, problems):
    parsed = parse_reply_text(text, ended=True)
    assert (parsed.reasoning, parsed.reply, parsed.problems) == (reasoning, reply, problems)
    assert parsed.well_formed == (not problems)
    assert parse_reply_text(text, ended=False).problems == ("not_ended", *problems)
    # Tokens say the same.
    assert parse_reply([*byte_level.encode(text), byte_level.special.eot], byte_level) == parsed
    assert parse_reply(byte_level.encode(text), byte_level, ended=True) == parsed
    assert parse_reply(byte_level.encode(text), byte_level).problems == ("not_ended", *problems)


def test_no_tokens_are_an_empty_malformed_reply(byte_level):
    assert parse_reply([], byte_level).problems == ("not_ended", "no_think_end")


def test_special_tokens_are_no_text(qwen2):
    """Step-Audio-2 can answer in speech: its codes are told apart from the words."""
    special = qwen2.special
    spoken = [
        special.tts_start,
        *qwen2.encode("x\n</think>\nHi"),
        151696,
        158257,
        special.tts_end,
        special.eot,
    ]
    parsed = parse_reply(spoken, qwen2)
    assert (parsed.reasoning, parsed.reply) == ("x", "Hi")
    assert parsed.problems == ("special_token",)
    assert parsed.special_tokens == ("<tts_start>", "<audio_0>", "<audio_6561>", "<tts_end>")


def test_a_second_turn_is_a_problem(byte_level):
    special = byte_level.special
    tokens = [
        *byte_level.encode("x\n</think>\ny"),
        special.eot,
        special.bot,
        *byte_level.encode("human\nz"),
        special.eot,
    ]
    parsed = parse_reply(tokens, byte_level)
    assert parsed.problems == ("special_token",)
    assert parsed.special_tokens == ("<|EOT|>", "<|BOT|>")


def test_an_id_of_the_padded_vocabulary(qwen2):
    parsed = parse_reply([*qwen2.encode("x\n</think>\ny"), 158_700, qwen2.special.eot], qwen2)
    assert parsed.problems == ("special_token",)
    assert parsed.special_tokens == ("<|unknown_158700|>",)


def test_written_names_are_text(byte_level):
    parsed = parse_reply(
        [*byte_level.encode("<|EOT|>\n</think>\n<tts_start>y"), byte_level.special.eot], byte_level
    )
    assert parsed.well_formed
    assert (parsed.reasoning, parsed.reply) == ("<|EOT|>", "<tts_start>y")


def test_an_incomplete_character_is_reported(byte_level):
    tokens = [*byte_level.encode("x\n</think>\ny"), 0xE4, 0xBD]
    assert parse_reply([*tokens, byte_level.special.eot], byte_level).problems == ("invalid_utf8",)
    assert parse_reply([*tokens, 0xA0, byte_level.special.eot], byte_level).reply == "y你"
    # A special token does not join the halves of a character around it.
    joined = [*tokens, byte_level.special.tts_end, 0xA0, byte_level.special.eot]
    assert parse_reply(joined, byte_level).problems == ("invalid_utf8", "special_token")


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(0, 320), max_size=60))
def test_any_tokens_can_be_parsed(byte_level, tokens):
    parsed = parse_reply(tokens, byte_level)
    if parsed.well_formed:
        written = f"{parsed.reasoning}\n</think>\n{parsed.reply}"
        assert tokens == [*written.encode(), byte_level.special.eot]


def test_the_tags_of_a_call_are_text_that_the_model_writes(qwen2, byte_level):
    """Of Qwen2.5's vocabulary they are tokens, of which released models' replies are made."""
    reply = "Let me see.<tool_call>function\nclock\n{}</tool_call><tool_call> </tool_call>"
    tokens = qwen2.encode_written(reply)
    assert [token for token in tokens if token >= 151_643] == [151_657, 151_658] * 2
    assert not any(map(qwen2.is_special, tokens))
    assert qwen2.decode(tokens) == reply
    parsed = parse_reply([*qwen2.encode("x\n</think>\n"), *tokens, qwen2.special.eot], qwen2)
    assert parsed.well_formed
    assert parsed.reply == reply
    assert max(qwen2.encode(reply)) < 151_643  # as anybody else writes them
    assert qwen2.encode_written("<tool_call") == qwen2.encode("<tool_call")
    assert byte_level.encode_written(reply) == byte_level.encode(reply)
