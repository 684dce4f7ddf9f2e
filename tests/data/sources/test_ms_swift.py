"""Rows of ms-swift."""

import pytest

from tests.data.sources.adapting import adapted, dialogue, record, refused, reply, user

ASKED, REPLY = user("<audio>When?"), reply("At seven.")
HEARD = ("user", "<a.wav>When?")
ROW = {"messages": [ASKED, REPLY], "audios": ["a.wav"]}


def asked(text, clips, **keys):
    return {"messages": [user(text), REPLY], "audios": clips, **keys}


@pytest.mark.parametrize(
    ("row", "turn"),
    [
        (asked("<audio>When?", "a.wav"), "<a.wav>When?"),
        (asked("<audio>When?", [{"path": "a.wav", "bytes": None}]), "<a.wav>When?"),
        (asked("<audio>When?", '["a.wav"]'), "<a.wav>When?"),
        (asked("<audio>When?", ["file:///a.wav"]), "</a.wav>When?"),
        (asked("<audio>When?", ["gs://b/a.wav"]), "<gs://b/a.wav>When?"),
        (asked("1 <audio> 2 <audio>\n", ["a.wav", "b.wav"]), "1 <a.wav> 2 <b.wav>\n"),
        (asked("<|audio_bos|><|AUDIO|><|audio_eos|>When?", ["a.wav"]), "<a.wav>When?"),
        (asked("Audio 1: <audio>a.wav</audio>\nWhen?", []), "Audio 1: <a.wav>\nWhen?"),
        (asked("<AUDIO>When?", ["a.wav"]), "<a.wav>When?"),
        (asked("<audio></audio>When?", ["a.wav"]), "<a.wav>When?"),
        (asked("(<audio>./</audio>)When?", ["a.wav"]), "<a.wav>When?"),
        (asked("<|audio_1|> or <|audio_2|>?", ["a.wav", "b.wav"]), "<a.wav> or <b.wav>?"),
        (asked("When?", ["a.wav"]), "<a.wav>When?"),
        (asked("When?", ["a.wav", "b.wav"]), "<a.wav><b.wav>When?"),
        (asked([{"type": "text", "text": "When?"}], ["a.wav"]), "<a.wav>When?"),
        (
            asked([{"type": "audio"}, {"type": "text", "text": "When?"}], ["a.wav"]),
            "<a.wav>When?",
        ),
        ({"messages": [ASKED, REPLY], "audio": "a.wav"}, "<a.wav>When?"),
    ],
)
def test_a_clip_is_heard_at_its_placeholder(row, turn):
    assert dialogue(row, format="ms_swift") == [("user", turn), ("assistant", "At seven.")]


def test_clips_without_placeholders_are_heard_first_after_the_system_turn():
    row = {"messages": [user("When?"), REPLY, user("Why?"), REPLY], "audios": ["a.wav", "b.wav"]}
    assert dialogue({**row, "system": "Be brief."})[:2] == [
        ("system", "Be brief."),
        ("user", "<a.wav><b.wav>When?"),
    ]
    turns = [{"role": "system", "content": "Be brief."}, user("When?"), REPLY]
    assert dialogue({**ROW, "messages": turns})[:2] == [("system", "Be brief."), HEARD]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (asked("<audio><audio>When?", ["a.wav"]), "turn 1 (user) has the placeholder"),
        (asked("<audio>When?", []), "the row has no clip for it"),
        (asked("<audio>When?", None), "the row has no clip for it"),
        (asked("<audio>When?", ["a.wav", "b.wav"]), '"b.wav" would not be heard'),
        (
            {**ROW, "messages": [user("When?"), reply("<audio>At seven.")]},
            "turn 2 (assistant) has the placeholder",
        ),
        ({**ROW, "messages": [reply("<audio>tells the time")]}, "turn 1 (assistant) has the"),
        (asked("<image><audio>When?", ["a.wav"], images=["x.png"]), "placeholder '<image>'"),
        (asked("<audio>When?", ["a.wav"], images=["x.png"]), 'has "images", which is not read'),
        (asked("<audio>When?", ["a.wav"], videos=["x.mp4"]), 'has "videos", which is not read'),
        (asked("<audio>When?", ["a.wav"], objects={"ref": ["a"]}), 'has "objects"'),
        (asked("<audio>When?", ["a.wav"], rejected_audios=["b.wav"]), 'has "rejected_audios"'),
        (asked("<audio>When?", ["a.wav"], chat_template_kwargs={"x": 1}), "one prompt format"),
        (asked("<audio>When?", ["a.wav", 3]), "'audios': number 2 must name a clip"),
        (asked("<audio>When?", ["hf://x/a.wav"]), "addresses begin with gs://"),
        (asked("<audio>When?", ["a.wav"], audio="b.wav"), "has clips in 'audios', 'audio'"),
        ({**ROW, "messages": [3]}, "'messages' must be a list of turns"),
        (asked("<|audio_2|><|audio_1|>?", ["a.wav", "b.wav"]), "as number 1; write <audio> for"),
        (asked("<|image_1|><|audio_1|>?", ["a.wav"]), "placeholder '<|image_1|>'"),
        (asked({"text": "When?"}, ["a.wav"]), '"a.wav" would not be heard'),
        ({"messages": [{"role": "usr", "content": "x"}], "audios": ["a.wav"]}, 'the role "usr"'),
        (asked([{"type": "audio", "audio": "a.wav"}], ["a.wav"]), '"a.wav" would not be heard'),
    ],
)
def test_a_row_that_would_lose_something_is_refused(row, said):
    assert said in refused(row)


def test_the_worse_reply_stands_beside_the_last():
    for keys in (
        {"rejected_response": "At six."},
        {"rejected_response": [reply("At six.")], "rejected_audios": ["a.wav"]},
        {"rejected_messages": [ASKED, reply("At six.")]},
        {"rejected_messages": [ASKED, reply("At six.")], "rejected_audios": ["a.wav"]},
    ):
        got = record({**ROW, **keys})
        assert [message.role for message in got.messages] == ["user"]
        assert got.messages[0].audio[0].path == "/data/a.wav"
        assert (got.reference_reply, got.rejected_reply) == ("At seven.", "At six.")
    long = {**ROW, "messages": [ASKED, REPLY, user("Why?"), reply("So.")]}
    got = record({**long, "rejected_response": "No."})
    assert (len(got.messages), got.reference_reply) == (3, "So.")
    assert "no better reply" in refused({**ROW, "messages": [ASKED], "rejected_response": "x"})
    assert "do not answer the same dialogue" in refused(
        {**ROW, "rejected_messages": [ASKED, reply("x")], "rejected_audios": ["b.wav"]}
    )
    assert 'has "rejected_audios"' in refused(
        {**ROW, "rejected_response": "x", "rejected_audios": ["b.wav"]}
    )
    calls = [ASKED, {"role": "tool_call", "content": '{"name": "f"}'}, {"role": "tool"}]
    calls[2]["content"] = "r"
    assert "compared with several turns" in refused(
        {**ROW, "messages": [*calls, REPLY], "rejected_response": "x"}
    )
    assert "do not answer the same dialogue" in refused(
        {**ROW, "rejected_messages": [user("<audio>Who?"), reply("x")]}
    )


def test_a_solution_is_the_answer():
    got = record({"messages": [ASKED], "audios": ["a.wav"], "solution": 7})
    assert (got.answer, len(got.messages)) == ("7", 1)
    assert record({**ROW, "ground_truth": "7"}).answer == "7"
    assert "has 'solution' and 'answer'" in refused({**ROW, "solution": "7", "answer": "8"})
    assert "must be a string or a number" in refused({**ROW, "solution": ["7", "8"]})
    assert record({**ROW, "solution": ["7"]}).answer == "7"
    asked = {"problem": "<audio>When?", "audios": ["a.wav"], "solution": "7"}
    assert dialogue(asked) == [HEARD]
    assert record(asked).answer == "7"


def test_a_label_says_whether_the_last_reply_is_trained_on():
    assert record({**ROW, "label": True}).messages[-1].in_loss
    assert not record({**ROW, "label": False}).messages[-1].in_loss
    assert adapted({**ROW, "label": False})["label"] is False
    for label in (1, 0.8, [1, 3], "happy"):
        assert "true or false" in refused({**ROW, "label": label})


def test_losses_of_turns():
    def in_loss(**keys):
        return record({**ROW, "messages": [ASKED, {**REPLY, **keys}]}).messages[1].in_loss

    assert [in_loss(loss=loss) for loss in (True, False, 1, 0, None)] == [1, 0, 1, 0, 1]
    assert [in_loss(loss_scale=scale) for scale in (1.0, 0)] == [True, False]
    for keys, said in (
        ({"loss_scale": 0.5}, "(1) or not (0)"),
        ({"loss_scale": 0, "loss": True}, "contradict"),
    ):
        assert said in refused({**ROW, "messages": [ASKED, {**REPLY, **keys}]})


def test_an_assistant_that_goes_on_is_one_turn():
    thought = {**reply("<think>\nSeven.\n</think>\n"), "loss_scale": 1.0}
    got = record({**ROW, "messages": [ASKED, thought, REPLY]}).messages[1]
    assert (got.reasoning, got.text, got.in_loss) == ("Seven.", "At seven.", True)
    other = {**REPLY, "loss": False}
    assert "do not agree in their 'loss'" in refused({**ROW, "messages": [ASKED, thought, other]})


def test_channel_is_the_source():
    assert record({**ROW, "channel": "chat"}).source == "chat"
    assert record({**ROW, "channel": "chat", "source": "talk"}).source == "talk"
    assert record(ROW).source == "d"


def test_query_and_response():
    row = {"query": "<audio>When?", "audios": ["a.wav"]}
    assert dialogue(row) == [HEARD]
    full = {**row, "response": "At seven.", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    said = [("user", "Hi"), ("assistant", "Hello"), HEARD, ("assistant", "At seven.")]
    assert dialogue(full) == [("system", "Be brief."), *said]
    assert dialogue({**full, "history": "[['Hi', 'Hello']]"})[1:] == said
    assert record({**full, "rejected_response": "x"}).rejected_reply == "x"
    assert "'history' must be a list of pairs" in refused({**full, "history": [["Hi"]]})


def test_alpaca():
    row = {"instruction": "When?", "input": "", "output": "At seven.", "audios": ["a.wav"]}
    assert dialogue(row, format="ms_swift") == [HEARD, ("assistant", "At seven.")]


def test_a_clip_of_the_system_turn_comes_before_those_of_the_dialogue():
    row = {**ROW, "system": "The voice: <audio>", "audios": ["v.wav", "a.wav"]}
    assert dialogue(row)[:2] == [("system", "The voice: <v.wav>"), HEARD]


def test_conversation():
    row = {"audios": ["a.wav"], "conversation": [{"human": "<audio>When?", "assistant": "x"}]}
    assert dialogue(row) == [HEARD, ("assistant", "x")]
    tool = {**row, "conversation": [*row["conversation"], {"tool": "r", "bot": "y"}]}
    assert dialogue(tool)[2:] == [("input", "r"), ("assistant", "y")]
    assert dialogue({"conversations": [ASKED, REPLY], "audios": ["a.wav"]})[0] == HEARD
    assert 'unknown role "robot"' in refused({**row, "conversation": [{"robot": "x"}]})


def test_tools_and_calls_that_are_turns_of_their_own():
    call = '{"name": "aqi", "arguments": {"city": "%s"}}'
    row = {
        "tools": '[{"type": "function", "function": {"name": "aqi"}}]',
        "messages": [
            user("How is the air?"),
            reply("<think>\nI ask.\n</think>\n"),
            {"role": "tool_call", "content": call % "Bonn"},
            {"role": "tool_call", "content": call % "Köln"},
            {"role": "tool_response", "content": '{"aqi": 10}'},
            {"role": "tool", "content": '{"aqi": 20}'},
            reply("Good."),
        ],
    }
    got = record(row)
    assert [message.role for message in got.messages] == [
        *("tool_json_schemas", "user", "assistant", "input", "input", "assistant")
    ]
    assert got.messages[2].reasoning == "I ask."
    assert got.messages[2].text == (
        '<tool_call>function\naqi\n{"city": "Bonn"}</tool_call>'
        '<tool_call>function\naqi\n{"city": "Köln"}</tool_call>'
    )
    row["messages"][3] = {"role": "tool_call", "content": "Action: aqi"}
    assert "must be a call" in refused(row)


def test_the_assistant_answers_in_whatever_order_the_keys_stand():
    """A program that sorts keys writes `assistant` before `human`."""
    pair = {"assistant": "At seven.", "human": "<audio>When?"}
    row = {"conversation": [pair, {"human": "Why?", "assistant": "So."}], "audios": ["a.wav"]}
    expected = [HEARD, ("assistant", "At seven."), ("user", "Why?"), ("assistant", "So.")]
    assert dialogue(row) == expected


def test_turns_that_a_table_stores_as_an_object_of_lists():
    """So Arrow has a `Sequence` of objects, with nulls where a turn has no such key."""
    turns = {"role": ["user", "assistant"], "content": ["<audio>When?", "At seven."]}
    row = {"messages": {**turns, "loss": [None, True], "name": None}, "audios": ["a.wav"]}
    assert dialogue(row) == [HEARD, ("assistant", "At seven.")]
    talk = {"from": ["human", "gpt"], "value": ["<audio>When?", "At seven."]}
    assert dialogue({"conversations": talk, "audios": ["a.wav"]})[0] == HEARD
    uneven = {"role": ["user"], "content": ["<audio>When?", "At seven."]}
    assert "must be a list of turns" in refused({"messages": uneven, "audios": ["a.wav"]})
