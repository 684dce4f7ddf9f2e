"""Preference files are read as they are: the chosen reply is the reference."""

import json

import pytest

from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.errors import DataError

USER = {"role": "user", "content": "How was it?"}
SPOKEN = {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}


def reply(text):
    return {"role": "assistant", "content": text}


def read(tmp_path, value):
    return parse_record(
        json.loads(json.dumps(value)),
        origin=f"{tmp_path}/p.jsonl:1",
        folder=str(tmp_path),
        source="p",
        default_id="p:1",
    )


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": [USER], "chosen": [reply("Good, thanks.")], "rejected": [reply("ok")]},
        {"chosen": [USER, reply("Good, thanks.")], "rejected": [USER, reply("ok")]},
        {"prompt": "How was it?", "chosen": "Good, thanks.", "rejected": "ok"},
        {"messages": [USER], "reference_reply": "Good, thanks.", "rejected_reply": "ok"},
        {"messages": [USER], "chosen": "Good, thanks.", "rejected": "ok"},
        {"messages": [USER], "chosen": [reply("Good, thanks.")], "rejected": [reply("ok")]},
        {
            "messages": [USER],
            "prompt": None,
            "chosen": [reply("Good, thanks.")],
            "rejected": [reply("ok")],
        },
        {
            "messages": None,
            "prompt": [USER],
            "chosen": [reply("Good, thanks.")],
            "rejected": [reply("ok")],
        },
        {"messages": [USER], "prompt": "", "chosen": "Good, thanks.", "rejected": "ok"},
        {
            "messages": [],
            "prompt": [USER],
            "chosen": [reply("Good, thanks.")],
            "rejected": [reply("ok")],
        },
        {
            "messages": [USER],
            "chosen": None,
            "rejected": None,
            "reference_reply": "Good, thanks.",
            "rejected_reply": "ok",
        },
        {
            "prompt": [{"role": "system", "content": ""}, USER],
            "chosen": [
                {
                    **reply(
                        [{"type": "text", "text": "Good, "}, {"type": "text", "text": "thanks."}]
                    ),
                    "tool_calls": None,
                }
            ],
            "rejected": [{**reply([{"type": "text", "text": "ok", "audio": None}]), "name": ""}],
        },
    ],
)
def test_every_form_is_the_same_record(tmp_path, value):
    record = read(tmp_path, {**value, "id": "7", "rubric": ["is friendly"]})
    assert [(message.role, message.text) for message in record.messages] == [
        ("user", "How was it?")
    ]
    assert (record.reference_reply, record.rejected_reply, record.id) == (
        "Good, thanks.",
        "ok",
        "7",
    )
    assert record.rubric[0].text == "is friendly"


def test_sound_and_earlier_turns_stay_in_the_dialogue(tmp_path):
    prompt = [USER, reply("Fine."), SPOKEN]
    record = read(tmp_path, {"prompt": prompt, "chosen": [reply("a")], "rejected": [reply("b")]})
    assert len(record.messages) == 3
    assert record.messages[2].audio[0].path == str(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"prompt": [USER], "chosen": [reply("a")]}, "has 'chosen' and no 'rejected'"),
        (
            {"chosen": [USER, reply("a")], "rejected": [SPOKEN, reply("b")]},
            "do not answer the same dialogue",
        ),
        (
            {"prompt": [USER], "chosen": [USER, reply("a")], "rejected": [reply("b")]},
            "'chosen' must be one turn",
        ),
        (
            {"prompt": [USER], "chosen": [USER], "rejected": [reply("b")]},
            "'chosen' must end in an assistant's turn",
        ),
        (
            {"prompt": [USER], "chosen": [], "rejected": [reply("b")]},
            "'chosen' must be a list of messages",
        ),
        (
            {"prompt": 3, "chosen": "a", "rejected": "b"},
            "'prompt' must be a list of messages, or a string",
        ),
        ({"chosen": "a", "rejected": "b"}, "'chosen' must end in an assistant's turn"),
        (
            {"prompt": "x", "chosen": "a", "rejected": "b", "reference_reply": "c"},
            "has both 'chosen' and 'reference_reply'",
        ),
        ({"messages": [USER], "rejected": "b"}, "has 'rejected' and no 'chosen'"),
        ({"messages": [USER], "chosen": "a", "rejected": None}, "has 'chosen' and no 'rejected'"),
        (
            {"messages": [USER], "prompt": "x", "chosen": "a", "rejected": "b"},
            "has 'chosen' and both 'prompt' and 'messages'",
        ),
        (
            {"messages": "x", "chosen": "a", "rejected": "b"},
            "'messages' must be a list of messages, got \"x\"",
        ),
        (
            {"messages": [USER, reply("a")], "chosen": "a", "rejected": "b"},
            "'messages' has an assistant's turn just before",
        ),
        (
            {"chosen": [reply("a")], "rejected": [reply("b")]},
            "have no dialogue before the reply; give it as 'prompt'",
        ),
        (
            {"prompt": "x", "chosen": [{**reply("a"), "tool_calls": [{}, 1]}], "rejected": "b"},
            "'chosen' has the unknown key",
        ),
        (
            {"prompt": "x", "chosen": "a", "rejected": "b", "audios": ["a.wav"]},
            'has "audios", which is not read',
        ),
        (
            {"prompt": "x", "chosen": [reply([SPOKEN])], "rejected": "b"},
            "'chosen' must end in an assistant's turn whose content",
        ),
    ],
)
def test_malformed_preferences_are_errors_that_name_the_line(tmp_path, value, message):
    with pytest.raises(DataError, match=rf"p\.jsonl:1: .*{message}"):
        read(tmp_path, value)


def test_the_reasoning_before_a_reply_is_dropped(tmp_path):
    """A policy's reply is compared without its reasoning too."""
    turns = {
        "chosen": "<think>\nShort.\n</think>\nGood.",
        "rejected": [{"role": "assistant", "content": "<think>x</think>\nok"}],
    }
    record = read(tmp_path, {"prompt": "How are you?", **turns})
    assert (record.reference_reply, record.rejected_reply) == ("Good.", "ok")
    with pytest.raises(DataError, match="'chosen' is a reasoning without a reply"):
        read(tmp_path, {"prompt": "How are you?", **turns, "chosen": "<think>x</think>"})


EQUAL = [
    ("A man.", "A man."),
    ("A man.", " A man.\n"),
    ("A man.", "<think>He is low.</think>\nA man."),
    ("caf\u00e9", "cafe\u0301"),
]
EMPTY = [("", "b"), ("a", ""), (" \n", "b"), ("", "")]


def forms(better, worse):
    """Two replies in every form, each with what it calls them."""
    called = ("chosen", "rejected")
    yield {"prompt": [USER], "chosen": [reply(better)], "rejected": [reply(worse)]}, called
    yield {"prompt": "How was it?", "chosen": better, "rejected": worse}, called
    yield {"messages": [USER], "chosen": better, "rejected": worse}, called
    yield {"chosen": [USER, reply(better)], "rejected": [USER, reply(worse)]}, called
    yield (
        {"messages": [USER], "reference_reply": better, "rejected_reply": worse},
        ("reference_reply", "rejected_reply"),
    )


@pytest.mark.parametrize(("better", "worse"), EQUAL)
def test_equal_replies_are_an_error(tmp_path, better, worse):
    for value, (chosen, rejected) in forms(better, worse):
        for margin in ({}, {"margin": None}, {"margin": 1}):
            with pytest.raises(
                DataError,
                match=rf"p\.jsonl:1: '{chosen}' and '{rejected}' are the same reply"
                ".*'margin' to 0",
            ):
                read(tmp_path, {**value, **margin})
        assert read(tmp_path, {**value, "margin": 0}).margin == 0


@pytest.mark.parametrize(("better", "worse"), EMPTY)
def test_an_empty_reply_is_an_error(tmp_path, better, worse):
    for value, names in forms(better, worse):
        name = names[0] if not better.strip() else names[1]
        with pytest.raises(DataError, match=rf"p\.jsonl:1: '{name}' is an empty reply"):
            read(tmp_path, value)
        assert read(tmp_path, {**value, "margin": 0}).margin == 0
    with pytest.raises(DataError, match="'reference_reply' is an empty reply"):
        read(
            tmp_path,
            {"messages": [USER], "reference_reply": better if not better.strip() else worse},
        )


def test_replies_that_differ_in_a_letter_or_in_case_are_accepted(tmp_path):
    for worse in ("A man", "a man.", "A  man."):
        assert (
            read(tmp_path, {"prompt": "x", "chosen": "A man.", "rejected": worse}).rejected_reply
            == worse
        )
