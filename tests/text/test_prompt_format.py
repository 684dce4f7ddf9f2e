"""Rendering against strings of the format and AutoTokenizer; training against generation."""

import dataclasses
import unicodedata

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.errors import TextError
from stepaudio_jax.text import (
    AudioPart,
    Message,
    TextPart,
    audio_tokens,
    parse_reply,
    render_prompt,
    render_training,
    training_views,
    validate_dialogue,
)

CLIP = AudioPart("a.wav")
NO_SURROGATES = st.characters(exclude_categories=["Cs"])


def system(text):
    return Message("system", (TextPart(text),))


def user(*parts):
    return Message(
        "user", tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    )


def assistant(reply, reasoning=None, in_loss=True):
    return Message("assistant", (TextPart(reply),), reasoning=reasoning, in_loss=in_loss)


def tool(role, text):
    return Message(role, (TextPart(text),))


def ids(segments, tokenizer, chunk_tokens=(2,)):
    """All tokens, each clip of the given chunks."""
    return [
        t
        for s in segments
        for t in (s.tokens if s.audio is None else audio_tokens(chunk_tokens, tokenizer))
    ]


def string(segments, tokenizer):
    return tokenizer.decode(ids(segments, tokenizer))


def learnt(segments, tokenizer):
    return tokenizer.decode(
        [token for segment in segments if segment.in_loss for token in segment.tokens]
    )


SOUND = "<audio_start><audio_patch><audio_patch><audio_end>"
DIALOGUE = [
    system("Be brief."),
    user("Who speaks? ", CLIP),
    assistant("A man.", "A low voice."),
    user(CLIP, " And ", CLIP, "here?"),
    assistant("A woman.", "Higher."),
]
FIRST = f"<|BOT|>system\nBe brief.<|EOT|><|BOT|>human\nWho speaks? {SOUND}<|EOT|>"
SECOND = f"<|BOT|>human\n{SOUND} And {SOUND}here?<|EOT|>"
ANSWER = "<|BOT|>assistant\n<think>\n"


def test_prompt_of_one_turn(byte_level):
    assert string(render_prompt(DIALOGUE[:2], byte_level), byte_level) == FIRST + ANSWER


@pytest.mark.parametrize(
    ("options", "history"),
    [
        ({}, "<|BOT|>assistant\nA man.<|EOT|>"),
        ({"history_eot": False}, "<|BOT|>assistant\nA man."),
        ({"history_reasoning": True}, f"{ANSWER}A low voice.\n</think>\nA man.<|EOT|>"),
        (
            {"history_reasoning": True, "history_eot": False},
            f"{ANSWER}A low voice.\n</think>\nA man.",
        ),
    ],
)
def test_history_in_a_prompt(byte_level, options, history):
    segments = render_prompt(DIALOGUE[:4], byte_level, **options)
    assert string(segments, byte_level) == FIRST + history + SECOND + ANSWER
    assert not any(segment.in_loss for segment in segments)


def test_tools_and_their_outputs_are_rendered_as_turns(byte_level):
    messages = [
        tool("tool_json_schemas", '[{"name": "weather"}]'),
        user("Weather?"),
        assistant("weather()", "I must ask."),
        tool("input", "Rain."),
    ]
    assert string(render_prompt(messages, byte_level), byte_level) == (
        '<|BOT|>tool_json_schemas\n[{"name": "weather"}]<|EOT|><|BOT|>human\nWeather?<|EOT|>'
        "<|BOT|>assistant\nweather()<|EOT|><|BOT|>input\nRain.<|EOT|><|BOT|>assistant\n<think>\n"
    )


def test_segments_know_their_turn_and_their_clip(byte_level):
    second = AudioPart("b.wav", transcript="hello")
    segments = render_prompt([user(CLIP, second, "?")], byte_level)
    assert [(segment.audio, segment.turn) for segment in segments] == [
        (None, 0),
        (CLIP, 0),
        (second, 0),
        (None, 0),
        (None, 1),
    ]
    assert all(bool(segment.tokens) == (segment.audio is None) for segment in segments)


def test_audio_tokens_of_chunks(qwen2):
    assert audio_tokens([2, 1, 0], qwen2) == [
        151688,
        151690,
        151690,
        151689,
        151688,
        151690,
        151689,
        151688,
        151689,
    ]


def test_training_on_one_turn(byte_level):
    segments = render_training(DIALOGUE[:3], byte_level)
    assert string(segments, byte_level) == f"{FIRST}{ANSWER}A low voice.\n</think>\nA man.<|EOT|>"
    assert learnt(segments, byte_level) == "A low voice.\n</think>\nA man.<|EOT|>"
    assert (
        learnt(render_training(DIALOGUE[:3], byte_level, loss_on_reasoning=False), byte_level)
        == "A man.<|EOT|>"
    )


@pytest.mark.parametrize("reasoning", [None, ""])
def test_training_without_reasoning(byte_level, reasoning):
    segments = render_training([user("Hi"), assistant("Hello.", reasoning)], byte_level)
    assert (
        string(segments, byte_level)
        == "<|BOT|>human\nHi<|EOT|><|BOT|>assistant\n<think>\n\n</think>\nHello.<|EOT|>"
    )
    assert learnt(segments, byte_level) == "\n</think>\nHello.<|EOT|>"


def test_views_hide_past_reasoning(byte_level):
    views = training_views(DIALOGUE)
    strings = [string(render_training(view, byte_level), byte_level) for view in views]
    assert strings == [
        f"{FIRST}{ANSWER}A low voice.\n</think>\nA man.<|EOT|>",
        f"{FIRST}<|BOT|>assistant\nA man.<|EOT|>{SECOND}{ANSWER}Higher.\n</think>\nA woman.<|EOT|>",
    ]
    assert [learnt(render_training(view, byte_level), byte_level) for view in views] == [
        "A low voice.\n</think>\nA man.<|EOT|>",
        "Higher.\n</think>\nA woman.<|EOT|>",
    ]


def test_one_view_with_reasoning_in_the_history(byte_level):
    (view,) = training_views(DIALOGUE, history_reasoning=True)
    segments = render_training(view, byte_level, history_reasoning=True)
    first, second = "A low voice.\n</think>\nA man.<|EOT|>", "Higher.\n</think>\nA woman.<|EOT|>"
    assert string(segments, byte_level) == FIRST + ANSWER + first + SECOND + ANSWER + second
    assert learnt(segments, byte_level) == first + second


def test_turns_outside_the_loss(byte_level):
    messages = [
        user("1"),
        assistant("a", "x", in_loss=False),
        user("2"),
        assistant("b", "y"),
        user("3"),
        assistant("c", in_loss=False),
    ]
    (view,) = training_views(messages)
    segments = render_training(view, byte_level)
    assert learnt(segments, byte_level) == "y\n</think>\nb<|EOT|>"
    assert "x" not in string(segments, byte_level)
    assert "3" not in string(segments, byte_level)
    (view,) = training_views(messages, history_reasoning=True)
    segments = render_training(view, byte_level, history_reasoning=True)
    assert learnt(segments, byte_level) == "y\n</think>\nb<|EOT|>"
    assert "x\n</think>" in string(segments, byte_level)


def test_a_dialogue_that_is_not_a_view_is_refused(byte_level):
    for messages in (DIALOGUE, [*DIALOGUE[:3], user("More?")]):
        with pytest.raises(TextError, match="training_views"):
            render_training(messages, byte_level)


def test_tokens_equal_auto_tokenizer_s(qwen2, tmp_path):
    """Text has the tokens that AutoTokenizer gives the whole string between special tokens."""
    qwen2.save(tmp_path)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        system("Be\n\nbrief。"),
        user("\n Who speaks?\n", CLIP),
        assistant(" A man.\n", "低い voice."),
        user(CLIP, "\n\nand?"),
    ]
    prompt = render_prompt(messages, qwen2)
    assert ids(prompt, qwen2) == auto.encode(string(prompt, qwen2))
    (view,) = training_views(messages)
    training = render_training(view, qwen2)
    assert ids(training, qwen2) == auto.encode(string(training, qwen2))


texts = st.text(NO_SURROGATES, max_size=20) | st.sampled_from(
    [
        "\n",
        "\n\nx",
        " x",
        "  ",
        "x\n",
        "</think",
        "<think>",
        "<|EOT|>",
        "<audio_patch>",
        "<|BOT|>human\n",
        "\u0301e",
        "think>\n",
    ]
)
replies = texts.filter(lambda text: text.strip() and "</think>" not in text)
reasonings = st.none() | texts.filter(lambda text: "</think>" not in text)
user_turns = (
    st.lists(texts | st.just(CLIP), min_size=1, max_size=4)
    .map(lambda parts: user(*parts))
    .filter(lambda message: message.text or message.audio)
)
assistant_turns = st.builds(assistant, replies, reasonings, st.booleans())
dialogues = st.lists(st.tuples(user_turns, assistant_turns), min_size=1, max_size=4).map(
    lambda pairs: [message for pair in pairs for message in pair]
)


@settings(max_examples=150, deadline=None)
@given(messages=dialogues, history_reasoning=st.booleans())
def test_training_tokens_are_prompt_and_completion(qwen2, byte_level, messages, history_reasoning):
    """For any text, each turn in the loss follows exactly its prompt, and parses to itself."""
    messages[-1] = dataclasses.replace(messages[-1], in_loss=True)
    for tokenizer in (qwen2, byte_level):
        learnt_turns = []
        for view in training_views(messages, history_reasoning=history_reasoning):
            segments = render_training(view, tokenizer, history_reasoning=history_reasoning)
            for turn in sorted({segment.turn for segment in segments if segment.in_loss}):
                learnt_turns.append(turn)
                prompt = ids(
                    render_prompt(messages[:turn], tokenizer, history_reasoning=history_reasoning),
                    tokenizer,
                )
                completion = [
                    token
                    for segment in segments
                    if segment.in_loss and segment.turn == turn
                    for token in segment.tokens
                ]
                upto = [segment for segment in segments if segment.turn <= turn]
                assert ids(upto, tokenizer) == prompt + completion
                parsed = parse_reply(completion, tokenizer)
                assert parsed.well_formed
                assert parsed.reasoning == unicodedata.normalize(
                    "NFC", messages[turn].reasoning or ""
                )
                assert parsed.reply == unicodedata.normalize("NFC", messages[turn].text)
        assert learnt_turns == [
            turn
            for turn, message in enumerate(messages)
            if message.role == "assistant" and message.in_loss
        ]


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(texts | st.just(CLIP), min_size=1, max_size=5))
def test_no_text_adds_a_special_token(byte_level, parts):
    message = user(*parts, "end")
    tokens = ids(render_prompt([message], byte_level), byte_level)
    special = [byte_level.decode([token]) for token in tokens if byte_level.is_special(token)]
    clip = ["<audio_start>", "<audio_patch>", "<audio_patch>", "<audio_end>"]
    assert special == ["<|BOT|>", *clip * len(message.audio), "<|EOT|>", "<|BOT|>"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no user turn"),
        ([system("x")], "no user turn"),
        (
            [Message("robot", (TextPart("x"),))],
            r"message 1 has the unknown role 'robot' \(allowed: system, user",
        ),
        ([user("x"), assistant("")], r"message 2 \(assistant\) has no content"),
        ([user("x"), assistant(" \n")], r"message 2 \(assistant\) has no content"),
        ([user("x"), Message("assistant", ())], r"message 2 \(assistant\) has no content"),
        (
            [user("x"), Message("assistant", (TextPart("a"), CLIP))],
            r"message 2 \(assistant\) has audio",
        ),
        (
            [Message("tool_json_schemas", (CLIP,)), user("x")],
            r"message 1 \(tool_json_schemas\) has audio",
        ),
        ([user()], r"message 1 \(user\) has no content"),
        ([system(""), user("x")], r"message 1 \(system\) has no content"),
        ([Message("user", (TextPart("x"),), reasoning="y")], r"message 1 \(user\) has reasoning"),
    ],
)
def test_invalid_dialogues_are_refused(messages, reason):
    with pytest.raises(TextError, match=reason):
        validate_dialogue(messages)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("x")], "no assistant turn is in the loss"),
        ([user("x"), assistant("y", in_loss=False)], "no assistant turn is in the loss"),
        (
            [assistant("hello"), user("x"), assistant("y")],
            r"message 1 \(assistant\) is in the loss and no user turn",
        ),
        (
            [user("x"), assistant("y", "a</think>b")],
            r"message 2 \(assistant\) has </think> in its reasoning",
        ),
        (
            [user("x"), assistant("a</think>b")],
            r"message 2 \(assistant\) has </think> in its reply",
        ),
    ],
)
@pytest.mark.parametrize("history_reasoning", [False, True])
def test_dialogues_without_a_trainable_turn_are_refused(messages, reason, history_reasoning):
    with pytest.raises(TextError, match=reason):
        training_views(messages, history_reasoning=history_reasoning)


@pytest.mark.parametrize("last", [assistant("y"), system("z")])
def test_dialogues_that_do_not_end_in_a_question_are_refused(byte_level, last):
    with pytest.raises(TextError, match=f"message 2 \\({last.role}\\) is the last one"):
        render_prompt([user("x"), last], byte_level)


def test_a_first_greeting_is_history(byte_level):
    greeting = assistant("Hello!", in_loss=False)
    assert string(render_prompt([greeting, user("Hi")], byte_level), byte_level).startswith(
        "<|BOT|>assistant\nHello!<|EOT|>"
    )
