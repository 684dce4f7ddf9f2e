"""Rows of TRL and verl, and of any library whose turns have tools."""

import pytest

from tests.data.sources.adapting import adapted, dialogue, record, refused, reply, user

PLAIN, ASKED, REPLY = user("When?"), user("<audio>When?"), reply("At seven.")
PART = {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "When?"}]}
HEARD, SAID = ("user", "<a.wav>When?"), ("assistant", "At seven.")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [PLAIN], "completion": [REPLY]},
        {"prompt": "When?", "completion": "At seven."},
        {"prompt": [PLAIN], "completion": "At seven.", "images": [], "messages": None},
        {"prompt": '[{"role": "user", "content": "When?"}]', "completion": "At seven."},
        {
            "messages": [
                PLAIN,
                {"role": "assistant", "content": [{"type": "text", "text": SAID[1]}]},
            ]
        },
        [PLAIN, REPLY],
    ],
)
def test_a_dialogue(row):
    assert dialogue(row) == [("user", "When?"), SAID]


def test_clips_beside_the_dialogue():
    for turn in (PART, ASKED):
        assert dialogue({"prompt": [turn], "completion": [REPLY], "audio": "a.wav"}) == [
            HEARD,
            SAID,
        ]
        assert dialogue({"messages": [turn, REPLY], "audios": ["a.wav"]}) == [HEARD, SAID]
    assert dialogue({"prompt": [PART], "audios": [{"path": "a.wav", "bytes": None}]}) == [HEARD]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "The sky is blue."}, "plain 'text' without turns"),
        ({"text": "The sky is blue.", "label": 1}, "plain 'text' without turns"),
        (
            {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]},
            "steps that are rated",
        ),
        ({"prompt": [ASKED], "completion": [REPLY]}, "the row has no clip for it"),
        ({"prompt": [PART], "completion": [REPLY]}, "the row has no clip for it"),
        ({"prompt": [PLAIN], "completion": [REPLY], "audios": ["a.wav"]}, "would not be heard"),
        ({"prompt": [PLAIN], "completion": "<audio>", "audios": ["a.wav"]}, "'completion': turn 1"),
        ({"prompt": [PLAIN], "completion": [REPLY], "images": ["x.png"]}, 'has "images"'),
        ({"messages": [PLAIN, REPLY], "prompt": "x"}, "the dialogue is in 'messages'"),
        (
            {"messages": [PLAIN, REPLY], "prompt": "x", "tools": ["f"]},
            "both 'messages' and 'prompt'",
        ),
        ({"messages": [PLAIN, REPLY], "completion": "x"}, 'has "completion"'),
        ({"prompt": [PLAIN], "completion": [REPLY], "label": 1}, "true or false"),
        ({"prompt": [PLAIN], "ground_truth": ["7", "8"]}, "must be a string or a number"),
        ({"prompt": [PLAIN], "solution": "7", "ground_truth": "8"}, "keep one as 'answer'"),
        ({"prompt": [PLAIN], "solution": "7", "answer": "8"}, "keep one as 'answer'"),
        ({"prompt": [PLAIN], "chosen": [REPLY]}, "has 'chosen' and no 'rejected'"),
        (
            {"chosen": "all of it", "rejected": "all of it, worse"},
            "must end in an assistant's turn",
        ),
        ({"prompt": [{"role": "narrator", "content": "x"}]}, 'has the role "narrator"'),
    ],
)
def test_a_row_that_would_lose_something_is_refused(row, said):
    assert said in refused(row)


def test_the_label_of_kto_is_kept():
    row = {"prompt": [PLAIN], "completion": [REPLY]}
    assert adapted({**row, "label": True})["label"] is True
    assert record({**row, "label": True}).messages[-1].in_loss
    assert not record({**row, "label": False}).messages[-1].in_loss
    assert not record({**row, "label": "False"}).messages[-1].in_loss  # CSV has strings only


def test_preferences():
    worse = reply("At six.")
    for row in (
        {"prompt": [ASKED], "chosen": [REPLY], "rejected": [worse], "audio": "a.wav"},
        {"prompt": [PART], "chosen": [REPLY], "rejected": "At six.", "audios": ["a.wav"]},
        {"chosen": [ASKED, REPLY], "rejected": [ASKED, worse], "audios": ["a.wav"]},
        {"messages": [ASKED], "chosen": REPLY, "rejected": worse, "audios": ["a.wav"]},
        {
            "prompt": [{"role": "user", "content": [{"audio": "a.wav"}, {"text": "When?"}]}],
            "chosen": [{"role": "assistant", "content": [{"text": "At seven."}]}],
            "rejected": [worse],
        },
    ):
        got = record(row)
        assert got.messages[0].audio[0].path == "/data/a.wav"
        assert (got.reference_reply, got.rejected_reply) == ("At seven.", "At six.")
    tools = {"prompt": [PLAIN], "chosen": [REPLY], "rejected": [worse], "tools": [{"name": "f"}]}
    assert [message.role for message in record(tools).messages] == ["tool_json_schemas", "user"]


def test_the_answer_of_a_prompt():
    for key in ("solution", "ground_truth", "answer"):
        got = record({"prompt": [ASKED], "audios": ["a.wav"], key: 7})
        assert (got.answer, len(got.messages)) == ("7", 1)


def call(identity, name, arguments):
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def test_calls_are_written_as_the_model_writes_them():
    schemas = [{"type": "function", "function": {"name": "light", "description": "é"}}]
    calls = [call("1", "light", '{"on": true, "at": null}'), call("2", "door", {"é": 1})]
    row = {
        "tools": schemas,
        "messages": [
            {"role": "system", "content": "Be brief."},
            PLAIN,
            {"role": "assistant", "content": "I try.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "2", "name": "door", "content": "shut"},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "on"}]},
            REPLY,
        ],
    }
    text = '[{"type": "function", "function": {"name": "light", "description": "é"}}]'
    assert dialogue(row) == [
        ("system", "Be brief."),
        ("tool_json_schemas", text),
        ("user", "When?"),
        (
            "assistant",
            'I try.<tool_call>function\nlight\n{"on": true, "at": null}</tool_call>'
            '<tool_call>function\ndoor\n{"é": 1}</tool_call>',
        ),
        ("input", "on"),
        ("input", "shut"),
        SAID,
    ]
    assert dialogue({**row, "tools": text}) == dialogue(row)
    assert dialogue({**row, "tools": "Tools: light"})[1] == ("tool_json_schemas", "Tools: light")


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (
            [{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}],
            "a call must be",
        ),
        ([{"role": "assistant", "tool_calls": [call("1", "f", "{on")]}], "must be a JSON object"),
        (
            [
                {"role": "assistant", "tool_calls": [call("1", "f", {})]},
                {"role": "tool", "tool_call_id": "7", "content": "x"},
            ],
            'the \'tool_call_id\' "7", and the turn before it calls "1"',
        ),
    ],
)
def test_calls_that_cannot_be_written_are_refused(turns, said):
    assert said in refused({"messages": [PLAIN, *turns]})


def test_calls_and_results_as_parts():
    row = {
        "messages": [
            PLAIN,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I ask."},
                    {"type": "text", "text": "One moment."},
                    {"type": "tool_use", "id": "t1", "name": "clock", "input": {"zone": "CET"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "7"},
                    {"type": "text", "text": "So?"},
                ],
            },
            REPLY,
        ]
    }
    assert dialogue(row)[1:] == [
        ("assistant", 'One moment.<tool_call>function\nclock\n{"zone": "CET"}</tool_call>'),
        ("input", "7"),
        ("user", "So?"),
        SAID,
    ]
    assert record(row).messages[1].reasoning == "I ask."


def test_reasoning_under_other_names():
    for key in ("thinking", "reasoning", "thought", "reasoning_content"):
        got = record({"messages": [PLAIN, {**REPLY, key: "They say so."}]})
        assert got.messages[1].reasoning == "They say so."
    twice = {**REPLY, "thinking": "a", "reasoning_content": "b"}
    assert "keep one" in refused({"messages": [PLAIN, twice]})


VERL = {
    "data_source": "arithmetic",
    "prompt": [ASKED],
    "audios": ["a.wav"],
    "reward_model": {"style": "rule", "ground_truth": "7"},
    "extra_info": {"split": "train"},
}


def test_verl():
    got = record(VERL)
    assert (got.source, got.answer, len(got.messages)) == ("arithmetic", "7", 1)
    assert dialogue(VERL) == [HEARD]
    assert adapted(VERL)["extra_info"] == {"split": "train"}
    assert record({**VERL, "reward_model": {"ground_truth": 7}}).answer == "7"
    assert record({**VERL, "reward_model": {"style": "model", "ground_truth": ""}}).answer is None
    assert record({**VERL, "reward_model": '{"ground_truth": "7"}'}).answer == "7"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"audios": ["a.wav", "b.wav"]}, '"b.wav" would not be heard'),
        ({"audios": []}, "the row has no clip for it"),
        ({"prompt": [PLAIN]}, '0 placeholders: "a.wav" would not be heard'),
        ({"reward_model": {"ground_truth": ["7", "8"]}}, "must be a string or a number"),
        ({"reward_model": "rule"}, "must be an object with 'ground_truth'"),
        ({"images": [{"image": "x.png"}]}, 'has "images"'),
        ({"prompt": [user("<image><audio>")]}, "placeholder '<image>'"),
    ],
)
def test_a_row_of_verl_that_would_lose_something_is_refused(keys, said):
    assert said in refused({**VERL, **keys})
