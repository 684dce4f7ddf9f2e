"""Rows of LLaMA-Factory."""

import pytest

from stepaudio_jax.data.sources.llama_factory import dataset_entry
from tests.data.sources.adapting import adapted, dialogue, record, refused

ASKED, REPLY = {"from": "human", "value": "<audio>When?"}, {"from": "gpt", "value": "At seven."}
ROW = {"conversations": [ASKED, REPLY], "audios": ["a.wav"]}
HEARD, SAID = ("user", "<a.wav>When?"), ("assistant", "At seven.")


def test_sharegpt():
    assert dialogue(ROW) == [HEARD, SAID]
    assert dialogue({**ROW, "system": "Be brief."})[0] == ("system", "Be brief.")
    assert dialogue({**ROW, "system": "", "tools": "", "images": []}) == [HEARD, SAID]
    first = [{"from": "system", "value": "Be brief."}, ASKED, REPLY]
    assert dialogue({**ROW, "conversations": first})[0] == ("system", "Be brief.")
    assert "another system turn" in refused({**ROW, "conversations": first, "system": "Be long."})


def test_calls_and_observations():
    turns = [
        ASKED,
        {"from": "function_call", "value": '{"name": "clock", "arguments": {"zone": "CET"}}'},
        {"from": "observation", "value": '{"time": 7}'},
        REPLY,
    ]
    got = dialogue({**ROW, "conversations": turns, "tools": '[{"name": "clock"}]'})
    assert got == [
        ("tool_json_schemas", '[{"name": "clock"}]'),
        HEARD,
        ("assistant", '<tool_call>function\nclock\n{"zone": "CET"}</tool_call>'),
        ("input", '{"time": 7}'),
        SAID,
    ]
    two = '<think>\nx\n</think>\n[{"name": "a", "arguments": {}}, {"name": "b"}]'
    turns[1] = {"from": "function_call", "value": two}
    message = record({**ROW, "conversations": turns}).messages[1]
    assert message.reasoning == "x"
    assert message.text.count("<tool_call>") == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**ROW, "audios": ["a.wav", "b.wav"]}, '"b.wav" would not be heard'),
        ({**ROW, "audios": []}, "the row has no clip for it"),
        (
            {**ROW, "conversations": [{"from": "human", "value": "When?"}, REPLY]},
            '0 placeholders: "a.wav" would not be heard',
        ),
        (
            {**ROW, "conversations": [ASKED, {"from": "gpt", "value": "<audio>"}]},
            "turn 2 (gpt) has the placeholder",
        ),
        ({**ROW, "images": ["x.png"]}, 'has "images"'),
        ({**ROW, "videos": ["x.mp4"]}, 'has "videos"'),
        ({**ROW, "conversations": [{"from": "alien", "value": "x"}]}, 'has the role "alien"'),
        ({**ROW, "kto_tag": "maybe"}, "'kto_tag' says whether"),
        ({"instruction": "q", "output": ["a", "b"]}, "'output' must be a string"),
        ({"instruction": "q", "output": "a", "query": "z"}, "each a dialogue"),
        ({**ROW, "messages": [{"role": "user", "content": "x"}]}, "each a dialogue"),
    ],
)
def test_a_row_that_would_lose_something_is_refused(row, said):
    assert said in refused(row)


def test_alpaca():
    row = {"instruction": "<audio>Write it down.", "input": "In one line.", "output": "At seven."}
    assert dialogue({**row, "audios": ["a.wav"]}) == [
        ("user", "<a.wav>Write it down.\nIn one line."),
        SAID,
    ]
    full = {**row, "audios": ["a.wav"], "history": [["Hi", "Hello"]], "system": "Be brief."}
    assert dialogue(full)[:3] == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")]
    pair = {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}
    got = record(pair)
    assert (got.messages[0].text, got.reference_reply, got.rejected_reply) == ("q", "a", "b")


def test_a_kto_tag_is_kept():
    assert record({**ROW, "kto_tag": True}).messages[-1].in_loss
    assert not record({**ROW, "kto_tag": False}).messages[-1].in_loss
    assert adapted({**ROW, "kto_tag": False})["label"] is False


def test_ranking():
    worse = {"from": "gpt", "value": "At six."}
    got = record({**ROW, "conversations": [ASKED], "chosen": REPLY, "rejected": worse})
    assert (got.reference_reply, got.rejected_reply) == ("At seven.", "At six.")
    tags = {"role": "assistant", "content": "At six."}
    row = {
        "messages": [{"role": "user", "content": "<audio>When?"}],
        "chosen": {"role": "assistant", "content": "At seven."},
        "rejected": tags,
        "audios": ["a.wav"],
    }
    assert record(row).rejected_reply == "At six."
    assert "must be a list of turns" in refused({**ROW, "chosen": REPLY})


def test_parts_with_values():
    def turn(role, loss, *parts):
        content = [{"type": kind, "value": value} for kind, value in parts]
        return {"role": role, "content": content, "loss_weight": loss}

    asked = turn("user", 0.0, ("audio_url", "a.wav"), ("text", "When?"))
    call = '{"name": "clock", "arguments": {}}'
    row = {
        "messages": [
            asked,
            turn("assistant", 1.0, ("reasoning", "I ask."), ("tool_call", call)),
            turn("tool", 0.0, ("text", "7")),
            turn("assistant", 0.0, ("text", "At seven.")),
        ],
        "tools": '[{"name": "clock"}]',
    }
    got = record(row)
    assert [message.role for message in got.messages] == [
        *("tool_json_schemas", "user", "assistant", "input", "assistant")
    ]
    assert dialogue(row)[1] == HEARD
    assert (got.messages[2].reasoning, got.messages[2].in_loss) == ("I ask.", True)
    assert got.messages[2].text == "<tool_call>function\nclock\n{}</tool_call>"
    assert not got.messages[4].in_loss
    pair = {
        "chosen_messages": [asked, turn("assistant", 1.0, ("text", "At seven."))],
        "rejected_messages": [asked, turn("assistant", 1.0, ("text", "At six."))],
    }
    got = record(pair)
    assert (got.reference_reply, got.rejected_reply) == ("At seven.", "At six.")
    assert "'rejected_messages' must be a list" in refused({**pair, "rejected_messages": None})


def test_dataset_info_renames_columns_keys_and_roles():
    row = {
        "talk": [{"who": "Q", "says": "<audio>When?"}, {"who": "A", "says": "At seven."}],
        "intro": "Be brief.",
        "sounds": ["a.wav"],
        "speaker": "x",
    }
    info = {
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "system": "intro", "audios": "sounds"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "Q", "assistant_tag": "A"},
    }
    assert dialogue(row, dataset_info=info) == [("system", "Be brief."), HEARD, SAID]
    assert adapted(row, dataset_info=info)["speaker"] == "x"
    assert "has no 'talk'" in refused({"speech": []}, dataset_info=info)
    swapped = {"columns": {"prompt": "output", "response": "instruction"}}
    assert dialogue({"instruction": "a", "output": "q"}, dataset_info=swapped) == [
        ("user", "q"),
        ("assistant", "a"),
    ]


def test_the_entry_of_a_file_is_found():
    info = {
        "a": {"file_name": "a.json"},
        "b": {"file_name": "sub/b.json"},
        "c": {"hf_hub_url": "c"},
    }
    assert dataset_entry(info, "/data/a.json") == info["a"]
    assert dataset_entry(info, "/data/sub/b.json") == info["b"]
    assert dataset_entry(info, "/data/b.json") is None
