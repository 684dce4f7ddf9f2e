"""Preference files are read as they are: the chosen reply is the reference."""

import json

import pytest

from stepaudio_jax.data import DataError, read_jsonl

USER = {"role": "user", "content": "How was it?"}
SPOKEN = {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}


def reply(text):
    return {"role": "assistant", "content": text}


def read(tmp_path, value):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
    return next(iter(read_jsonl(path)))


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": [USER], "chosen": [reply("Good, thanks.")], "rejected": [reply("ok")]},
        {"chosen": [USER, reply("Good, thanks.")], "rejected": [USER, reply("ok")]},
        {"prompt": "How was it?", "chosen": "Good, thanks.", "rejected": "ok"},
        {"messages": [USER], "reference_reply": "Good, thanks.", "rejected_reply": "ok"},
    ],
)
def test_every_form_is_the_same_record(tmp_path, value):
    record = read(tmp_path, {**value, "id": "7", "rubric": ["is friendly"]})
    assert [(message.role, message.text) for message in record.messages] == [("user", "How was it?")]
    assert (record.reference_reply, record.rejected_reply, record.id) == ("Good, thanks.", "ok", "7")
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
        ({"chosen": [USER, reply("a")], "rejected": [SPOKEN, reply("b")]}, "do not answer the same dialogue"),
        ({"prompt": [USER], "chosen": [USER, reply("a")], "rejected": [reply("b")]}, "'chosen' must be one turn"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [reply("b")]}, "'chosen' must end in an assistant's turn"),
        ({"prompt": [USER], "chosen": [], "rejected": [reply("b")]}, "'chosen' must be a list of messages"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' must be a list of messages, or a string"),
        ({"chosen": "a", "rejected": "b"}, "'chosen' must end in an assistant's turn"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "reference_reply": "c"}, "has both 'chosen' and 'reference_reply'"),
    ],
)
def test_what_does_not_fit_is_told_with_its_line(tmp_path, value, message):
    with pytest.raises(DataError, match=rf"p\.jsonl:1: .*{message}"):
        read(tmp_path, value)


def test_the_reasoning_before_a_reply_is_no_part_of_it(tmp_path):
    """A policy's reply is compared without its reasoning too."""
    turns = {
        "chosen": "<think>\nShort.\n</think>\nGood.",
        "rejected": [{"role": "assistant", "content": "<think>x</think>\nok"}],
    }
    record = read(tmp_path, {"prompt": "How are you?", **turns})
    assert (record.reference_reply, record.rejected_reply) == ("Good.", "ok")
    with pytest.raises(DataError, match="'chosen' is a reasoning without a reply"):
        read(tmp_path, {"prompt": "How are you?", **turns, "chosen": "<think>x</think>"})
