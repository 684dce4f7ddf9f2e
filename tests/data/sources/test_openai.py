"""Rows of the OpenAI API, and of Qwen's processors."""

import pytest

from tests.data.sources.adapting import dialogue, record, refused, reply, user

SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
WAV = "data:audio/wav;base64,UklGRg=="
QUESTION = {"type": "text", "text": "When?"}
REPLY = reply("At seven.")


def asked(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}, REPLY]}


@pytest.mark.parametrize(
    ("part", "clip"),
    [
        (SOUND, WAV),
        (
            {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}},
            "data:audio/mpeg;base64,SUQz",
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "data:;base64,AA==", "format": "wav"}},
            "data:audio/wav;base64,AA==",
        ),
        ({"type": "input_audio", "input_audio": {"data": "https://e.org/a.wav"}}, None),
        ({"type": "audio_url", "audio_url": {"url": "https://e.org/a.wav"}}, None),
        ({"type": "audio_url", "audio_url": "https://e.org/a.wav"}, None),
        ({"type": "audio_url", "audio_url": {"url": WAV}}, WAV),
        ({"type": "audio", "audio_url": "a.wav"}, "/data/a.wav"),
        ({"type": "audio", "path": "a.wav"}, "/data/a.wav"),
        ({"type": "audio", "url": "https://e.org/a.wav"}, None),
        ({"type": "audio", "audio": {"path": "a.wav"}}, "/data/a.wav"),
        ({"audio": "a.wav"}, "/data/a.wav"),
        ({"audio": f"UklGR{'A' * 40}"}, f"data:audio/wav;base64,UklGR{'A' * 40}"),
    ],
)
def test_a_clip_in_any_spelling(part, clip):
    message = record(asked(part, QUESTION)).messages[0]
    assert message.audio[0].path == (clip or "https://e.org/a.wav")
    assert message.text == "When?"


def test_a_part_of_a_file_stays_one():
    part = {"type": "audio", "path": "a.wav", "start_s": 1, "end_s": 2.5, "transcript": "x"}
    clip = record(asked(part)).messages[0].audio[0]
    assert (clip.start_s, clip.end_s, clip.transcript) == (1.0, 2.5, "x")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (asked(SOUND, {"type": "image_url", "image_url": {"url": "x"}}), "part 2 is an image"),
        (asked({"type": "image_url", "image_url": {"url": "x"}}), "text and sound only"),
        (asked({"audio": "a.wav"}, {"image": "x.png"}), "part 2 is an image"),
        (asked({"audio": "a.wav"}, {"video": "x.mp4"}), "part 2 is an image"),
        (asked({"type": "input_audio", "input_audio": {}}), "part 1 names no clip"),
        (asked({"type": "input_audio", "input_audio": {"data": 3}}), "must have base64 as 'data'"),
        (asked({"type": "audio", "audio": {"array": [0.1]}}), "must name a clip"),
        (asked({"audio": ""}, QUESTION), "part 1 names no clip"),
        (asked(SOUND, {"type": "text", "text": "<audio>"}), "the row has no clip for it"),
        (asked(SOUND, {"type": "hologram", "hologram": "x"}), 'unknown type "hologram"'),
        (asked({**SOUND, "loudness": 3}), 'unknown key "loudness"'),
        ({"messages": [user("q"), {"role": "assistant", "content": [SOUND]}]}, "must be a text"),
        ({"messages": [user("q"), {"role": "assistant", "audio": {"id": "x"}}]}, '"audio"'),
        ({"messages": [{**user("q"), "name": "Ann"}, REPLY]}, "a turn has a role and no name"),
        (
            {"messages": [user("q"), {**REPLY, "refusal": "No."}]},
            "both 'content' and 'refusal'",
        ),
    ],
)
def test_a_row_that_would_lose_something_is_refused(row, said):
    assert said in refused(row)


def test_roles_refusals_weights_and_settings():
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            user("q"),
            {"role": "assistant", "content": None, "refusal": "I cannot."},
            user("q"),
            {**REPLY, "weight": 0},
            user("q"),
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "weight": 1},
        ],
        "tools": [],
        "parallel_tool_calls": False,
    }
    assert [role for role, _ in dialogue(row)] == ["system", *("user", "assistant") * 3]
    assert [text for _, text in dialogue(row)][2::2] == ["I cannot.", "At seven.", "No."]
    assert [message.in_loss for message in record(row).messages[2::2]] == [True, False, True]


def test_functions_of_the_older_api():
    row = {
        "messages": [
            user("q"),
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
            {"role": "function", "name": "f", "content": "r"},
            REPLY,
        ],
        "functions": [{"name": "f"}],
    }
    assert dialogue(row) == [
        ("tool_json_schemas", '[{"name": "f"}]'),
        ("user", "q"),
        ("assistant", "<tool_call>function\nf\n{}</tool_call>"),
        ("input", "r"),
        ("assistant", "At seven."),
    ]
    assert "both 'tools' and 'functions'" in refused({**row, "tools": [{"name": "g"}]})


def test_preferences():
    row = {
        "input": {
            "messages": [{"role": "user", "content": [SOUND]}],
            "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": [REPLY],
        "non_preferred_output": [reply("At six.")],
    }
    got = record(row)
    assert got.messages[0].audio[0].path == WAV
    assert (got.reference_reply, got.rejected_reply) == ("At seven.", "At six.")
    for change, said in (
        ({"non_preferred_output": None}, "has no 'non_preferred_output'"),
        ({"preferred_output": [REPLY, REPLY]}, "must be one turn of the assistant's"),
        ({"input": "When?"}, "'input' must be an object with 'messages'"),
        ({"input": {"messages": [user("q"), REPLY]}}, "has an assistant's turn just before"),
    ):
        assert said in refused({**row, **change})


def test_clips_named_between_tags_in_a_text():
    text = "Audio 1: <audio>a.wav</audio>\nAudio 2: <audio> b.flac </audio>\nWhich?"
    heard = ("user", "Audio 1: <a.wav>\nAudio 2: <b.flac>\nWhich?")
    row = {"conversations": [{"from": "user", "value": text}, {"from": "assistant", "value": "x"}]}
    assert dialogue(row) == [heard, ("assistant", "x")]
    for form in ("auto", "qwen"):
        assert dialogue({"messages": [user(text), REPLY]}, format=form)[0] == heard
    said = refused({"messages": [user(text), REPLY]}, format="project")
    assert 'names sound in its text, "<audio>a.wav</audio>"' in said
    html = "<audio>Your browser has no sound.</audio>"
    assert dialogue({"messages": [user(html), REPLY]})[0] == ("user", html)


def test_the_answer_of_reinforcement_fine_tuning_is_not_lost():
    row = {"messages": [user("1 + 1?")], "reference_answer": "2"}
    assert "'answer'" in refused(row)
