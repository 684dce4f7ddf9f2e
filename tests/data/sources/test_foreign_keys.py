"""Keys of other libraries that no adapter has read are errors that say what to write.

Nulls are ignored.
"""

import json

import pytest

from stepaudio_jax.audio import load_audio, probe_audio
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.errors import AudioError, DataError
from stepaudio_jax.text.dialogue import AudioPart, TextPart

USER = {"role": "user", "content": "When is it?"}
REPLY = {"role": "assistant", "content": "At seven."}
CLIP = {"type": "audio", "audio": "clip.wav"}
SPOKEN = {"role": "user", "content": [CLIP, {"type": "text", "text": "When is it?"}]}
TALK = {"messages": [USER, REPLY]}


def read(folder, value):
    return parse_record(
        json.loads(json.dumps(value)),
        origin=f"{folder}/d.jsonl:1",
        folder=str(folder),
        source="d",
        default_id="d:1",
    )


def refused(folder, value):
    """What is said of a record, on one line after its file and line."""
    with pytest.raises(DataError) as error:
        read(folder, value)
    text = str(error.value)
    assert text.startswith(f"{folder}/d.jsonl:1: ")
    assert text.isprintable()
    assert len(text) < len(str(folder)) + 600
    return text.removeprefix(f"{folder}/d.jsonl:1: ")


def user(*content):
    return {
        "messages": [
            {
                "role": "user",
                "content": content[0] if isinstance(content[0], str) else list(content),
            },
            REPLY,
        ]
    }


SOUND = 'put {"type": "audio", "audio": PATH} into the \'content\' of its turn'
TURNS = "write the turns as 'messages'"
# Keys of a record -> what is to be written instead, beside `messages`.
KEYS = {
    **dict.fromkeys(
        (
            "audios",
            "audio",
            "audio_path",
            "audio_paths",
            "audio_file",
            "audio_filepath",
            "audio_url",
            "input_audio",
        ),
        (["clip.wav"], SOUND),
    ),
    **dict.fromkeys(
        (
            "audioPath",
            "Audios",
            "wav",
            "wavs",
            "wav_path",
            "rejected_audios",
            "audio_bytes",
            "audio_1",
            "audio2",
        ),
        ("x", SOUND),
    ),
    **dict.fromkeys(
        ("images", "image", "image_path", "videos", "video"),
        (["a.png"], "there are text and sound only"),
    ),
    "system": ("Be brief.", 'as the first message, {"role": "system", "content": TEXT}'),
    "tools": ([{"name": "w"}], '{"role": "tool_json_schemas", "content": TEXT}'),
    "functions": ([{"name": "w"}], '{"role": "tool_json_schemas", "content": TEXT}'),
    "rejected_response": ("At six.", "write it as 'rejected_reply'"),
    "preferred_output": ([REPLY], "write it as 'chosen'"),
    "solution": ("7", "as 'answer'"),
    "kto_tag": (False, "as 'label', true or false"),
    "reward_model": ({"ground_truth": "7"}, "as 'answer'"),
    "objects": ({"bbox": [[1, 2, 3, 4]]}, "there are text and sound only"),
    "prompt": ("When?", "the dialogue is in 'messages'"),
    **dict.fromkeys(
        ("query", "response", "history", "conversations", "completion", "instruction"),
        (["x"], TURNS),
    ),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_library_is_refused_unless_it_is_empty(tmp_path, key):
    value, advice = KEYS[key]
    said = refused(tmp_path, {**TALK, key: value})
    assert said.startswith(f'has "{key}", which is not read: ')
    assert advice in said
    for empty in (None, [], "", " ", {}, [None], "[]", {"path": None}):
        assert read(tmp_path, {**TALK, key: empty}).messages == read(tmp_path, TALK).messages


def test_sound_beside_a_clip_is_refused_too_and_every_key_is_named(tmp_path):
    record = {
        "messages": [SPOKEN, REPLY],
        "audios": ["b.wav"],
        "audio": "c.wav",
        "tools": [{}, "x"],
        "speaker": "7",
    }
    said = refused(tmp_path, record)
    assert said.startswith(f'has "audios", "audio", which are not read: {SOUND}')
    assert '; has "tools", which is not read: ' in said
    assert "speaker" not in said


@pytest.mark.parametrize(
    "keys",
    [
        {
            "language": "en",
            "speaker": "p225",
            "duration": 3.2,
            "dataset": "talks",
            "split": "train",
            "score": 0.5,
        },
        {
            "audio_id": "a1",
            "audio_duration": 3.0,
            "audio_language": "en",
            "audio": True,
            "video_id": "x",
        },
        {
            "text": "At seven.",
            "input": "x",
            "output": "y",
            "sound": "dog barking",
            "file": "shard-3.jsonl",
            "path": "a/b",
        },
        {
            "recording": "take 2",
            "url": "https://example.org/page",
            "channel": "left",
            "speech": "When is it? In a.wav? No.",
        },
        {
            "prompt_id": "1",
            "responses": 3,
            "systems": "x",
            "metadata": {"audio": "a.wav"},
            "embedding": [0.1] * 9,
        },
    ],
)
def test_unknown_keys_are_ignored(tmp_path, keys):
    assert read(tmp_path, {**TALK, **keys}).messages == read(tmp_path, TALK).messages
    read(tmp_path, {"messages": [SPOKEN, REPLY], **keys, "original_file": "raw.wav"})


@pytest.mark.parametrize(
    "keys",
    [
        {"file": "clip.wav"},
        {"path": "a/b.flac"},
        {"sound": ["x.MP3"]},
        {"speech": {"bytes": "UklGRiQAAABXQVZF", "path": "a.wav"}},
        {"url": "https://example.org/a.mp3?x=1"},
        {"file_name": "train/a.wav"},
        {"recording": "UklGRiQAAABXQVZFZm10IBAAAAABAAEA"},
        {"media": [{"type": "audio", "path": "a.opus"}]},
    ],
)
def test_a_file_of_sound_beside_a_dialogue_without_any_is_refused(tmp_path, keys):
    (key,) = keys
    assert f'has the key "{key}" with ' in refused(tmp_path, {**TALK, **keys})
    read(tmp_path, {"messages": [SPOKEN, REPLY], **keys})


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        (
            {"query": "<audio>When?", "response": "7", "audios": ["a.wav"]},
            ['"query", "response"', TURNS, SOUND],
        ),
        ({"prompt": [USER], "completion": [REPLY]}, ["only beside 'chosen' and 'rejected'", TURNS]),
        (
            {"conversations": [{"from": "human", "value": "x"}], "system": "s"},
            [TURNS, "as the first message"],
        ),
        ({"instruction": "x", "input": "", "output": "y"}, ['"instruction", "output"', TURNS]),
        ({"audio_filepath": "a.wav", "duration": 1.0, "text": "x"}, [SOUND, '"text"', TURNS]),
        (
            {"input": {"messages": [USER]}, "preferred_output": [REPLY]},
            ['"input"', "write it as 'chosen'"],
        ),
        ({"speaker": "x"}, ["the key 'messages' is missing", TURNS]),
    ],
)
def test_a_record_without_messages_says_how_to_write_them(tmp_path, record, parts):
    said = refused(tmp_path, record)
    assert all(part in said for part in parts), said


MESSAGES = {
    "tool calls": (
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        '"tool_calls"; write the call as text',
    ),
    "tool calls beside null": (
        {**REPLY, "content": None, "tool_calls": [{}, 1]},
        '"tool_calls"; write the call as text',
    ),
    "a function call": (
        {**REPLY, "function_call": {"name": "w"}},
        '"function_call"; write the call as text',
    ),
    "a tool's result": (
        {"role": "tool", "tool_call_id": "1", "content": "x"},
        '"tool_call_id"; leave it out',
    ),
    "a name": ({**USER, "name": "Ann"}, '"name"; leave it out'),
    "sharegpt": ({"from": "human", "value": "x"}, "\"from\"; write 'role' for 'from'"),
    "sound of a turn": ({**USER, "audio": "clip.wav"}, '"audio"; put {"type": "audio"'),
    "developer": (
        {"role": "developer", "content": "x"},
        "unknown role \"developer\"; write 'system'",
    ),
    "gpt": ({"role": "gpt", "content": "x"}, "unknown role \"gpt\"; write 'assistant'"),
    "observation": (
        {"role": "observation", "content": "x"},
        "unknown role \"observation\"; write 'input'",
    ),
    "thinking": ({**REPLY, "thinking": "x"}, "\"thinking\"; write it as 'reasoning_content'"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_message_keys_of_other_libraries_are_refused_with_advice(tmp_path, case):
    message, advice = MESSAGES[case]
    said = refused(tmp_path, {"messages": [USER, message]})
    assert said.startswith("message 2 ")
    assert advice in said


LONG = "A" * 300_000
PARTS = {
    "OpenAI's sound": (
        {"type": "input_audio", "input_audio": {"data": LONG}},
        '"input_audio"; write {"type": "audio", "audio": PATH}, or the sound itself',
    ),
    "an address of sound": (
        {"type": "audio_url", "audio_url": {"url": LONG}},
        '"audio_url"; write {"type": "audio", "audio": PATH}, or the sound itself',
    ),
    "Qwen's": (
        {"type": "audio", "audio_url": "clip.wav"},
        "\"audio_url\"; name the file in 'audio'",
    ),
    "a path": ({"type": "audio", "path": "clip.wav"}, "\"path\"; name the file in 'audio'"),
    "no type": ({"audio": "clip.wav"}, 'add "type": "audio"'),
    "two in one": ({**CLIP, "text": "Who?"}, '"text"; give it in a part of its own'),
    "a picture": (
        {"type": "image_url", "image_url": {"url": "x"}},
        "there are text and sound only",
    ),
    "a struct": (
        {"type": "audio", "audio": {"path": "clip.wav", "bytes": LONG}},
        "must be the path of a file",
    ),
    "a picture's data URI": (
        {"type": "audio", "audio": f"data:image/png;base64,{LONG}"},
        "which is no sound in base64",
    ),
    "a data URI that is no base64": (
        {"type": "audio", "audio": "data:audio/wav,abc"},
        "which is no sound in base64",
    ),
    "a file's address": (
        {"type": "audio", "audio": "file:///a/clip.wav"},
        "write the path alone, without 'file:'",
    ),
    "an unknown scheme": (
        {"type": "audio", "audio": "hf://datasets/a.wav"},
        "addresses begin with gs://, s3://, https://",
    ),
    "an address without encryption": (
        {"type": "audio", "audio": "http://example.org/a.wav"},
        "addresses begin with gs://, s3://, https://",
    ),
    **{
        f"times {times}": ({**CLIP, **times}, advice)
        for times, advice in (
            ({"start_s": "1"}, "'start_s' must be a number of seconds"),
            ({"start_s": -1}, "'start_s' must be a number of seconds, 0 or more, got -1"),
            ({"end_s": True}, "'end_s' must be a number of seconds"),
            ({"end_s": 0}, "'end_s' 0 must be greater than 'start_s' 0"),
            ({"start_s": 2.5, "end_s": 2.5}, "'end_s' 2.5 must be greater than 'start_s' 2.5"),
            ({"start": 1}, 'unknown key "start"'),
        )
    },
}


@pytest.mark.parametrize("case", PARTS)
def test_part_keys_of_other_libraries_are_refused_with_advice(tmp_path, case):
    part, advice = PARTS[case]
    said = refused(tmp_path, user(part))
    assert said.startswith("message 1 (user): part 1")
    assert advice in said


def test_base64_sound_in_place_of_a_path_is_shortened_in_the_error(tmp_path):
    clip = read(tmp_path, user({"type": "audio", "audio": LONG})).messages[0].audio[0]
    assert len(clip.path) > 300_000
    with pytest.raises(AudioError, match="cannot be read") as error:
        load_audio(clip.path)
    assert len(str(error.value)) < 700
    with pytest.raises(AudioError) as missing:
        probe_audio(clip.path)
    assert len(str(missing.value)) < 700 + len(str(tmp_path))


@pytest.mark.parametrize(
    "path",
    [
        "gs://bucket/a.wav",
        "s3://bucket/a.wav",
        "https://example.org/a.wav",
        "data:audio/wav;base64,UklGRiQ=",
        "data:audio/webm;codecs=opus;base64,GkXfo59C",
        "data:;base64,UklGRiQ=",
        "DATA:application/octet-stream;base64,UklGRiQ=",
    ],
)
def test_an_address_is_read_as_it_is(tmp_path, path):
    assert read(tmp_path, user({"type": "audio", "audio": path})).messages[0].audio[0].path == path


def test_a_path_is_relative_to_the_file_also_inside_a_container(tmp_path):
    for path, read_as in (
        ("a.wav", f"{tmp_path}/a.wav"),
        ("talks.tar#a.wav", f"{tmp_path}/talks.tar#a.wav"),
        ("/b/a.wav", "/b/a.wav"),
        ("C:/a.wav", f"{tmp_path}/C:/a.wav"),
    ):
        clip = read(tmp_path, user({"type": "audio", "audio": path})).messages[0].audio[0]
        assert clip.path == read_as


def test_a_clip_may_be_a_part_of_its_file(tmp_path):
    for times, read_as in (
        ({}, (0.0, None)),
        ({"start_s": 1}, (1.0, None)),
        ({"end_s": 2.5}, (0.0, 2.5)),
        ({"start_s": 0, "end_s": 1e-3}, (0.0, 1e-3)),
        ({"start_s": None, "end_s": None}, (0.0, None)),
    ):
        clip = read(tmp_path, user({**CLIP, **times})).messages[0].audio[0]
        assert (clip.start_s, clip.end_s) == read_as


@pytest.mark.parametrize(
    "text",
    [
        "<audio>When is it?",
        "What does the tag <audio> do?",
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nWhen?",
    ],
)
def test_a_placeholder_is_plain_text_where_clips_are_parts(tmp_path, text):
    for record in (user(text), user(CLIP, {"type": "text", "text": text})):
        assert text in read(tmp_path, record).messages[0].text
    record = {"messages": [SPOKEN, {"role": "assistant", "content": "<audio> is a tag."}]}
    assert read(tmp_path, record).messages[1].text == "<audio> is a tag."


def test_a_bad_reply_is_not_trained_on(tmp_path):
    talk = {"messages": [USER, REPLY, USER, REPLY]}

    def in_loss(value):
        return [message.in_loss for message in read(tmp_path, value).messages[1::2]]

    assert in_loss(talk) == in_loss({**talk, "label": True}) == [True, True]
    assert in_loss({**talk, "label": None}) == in_loss({**talk, "label": ""}) == [True, True]
    assert in_loss({**talk, "label": False}) == [True, False]
    assert "'messages' do not end in one" in refused(tmp_path, {"messages": [USER], "label": False})
    for label in (0, 1, "happy", [1]):
        said = refused(tmp_path, {**talk, "label": label})
        assert "true or false" in said
        assert "as 'answer'" in said


def test_a_file_named_between_tags_is_refused(tmp_path):
    said = refused(tmp_path, user("Audio 1: <audio>clip.wav</audio>\nWho?"))
    assert said.startswith(
        'message 1 (user) names sound in its text, "<audio>clip.wav</audio>"; put'
    )
    read(tmp_path, user("<audio>Your browser has no sound.</audio>"))


def test_nulls_at_every_level_count_as_not_given(tmp_path):
    clip = {
        **CLIP,
        "text": None,
        "transcript": None,
        "attributes": {"gender": "female", "age": None},
        "input_audio": None,
    }
    record = {
        "messages": [
            {"role": "system", "content": "Be brief.", "name": None, "tool_calls": None},
            {
                "role": "user",
                "content": [clip, {"type": "text", "text": "Who?", "audio": None}],
                "weight": None,
            },
            {
                **REPLY,
                "tool_calls": None,
                "refusal": None,
                "audio": None,
                "reasoning_content": None,
                "loss": None,
            },
        ],
        **dict.fromkeys(
            ("prompt", "chosen", "rejected", "audios", "tools", "margin", "answer", "id", "source")
        ),
        "rubric": [{"criterion": "kind", "weight": None}],
        "sampling": {"temperature": 0, "top_k": None},
    }
    got = read(tmp_path, record)
    assert got.messages[1].parts == (
        AudioPart(str(tmp_path / "clip.wav"), None, {"gender": "female"}),
        TextPart("Who?"),
    )
    assert (got.id, got.source, got.sampling, got.rubric[0].weight) == (
        "d:1",
        "d",
        {"temperature": 0},
        1.0,
    )
    assert [message.role for message in got.messages] == ["system", "user", "assistant"]
    assert "at least one" in refused(
        tmp_path, {"messages": [{"role": "user", "content": []}, REPLY]}
    )
    assert "message 2 must be an object" in refused(tmp_path, {"messages": [USER, None]})


@pytest.mark.parametrize(
    "content",
    ["", " \n", [], [{"type": "text", "text": " "}], None, [{"type": "text", "text": None}]],
)
def test_an_empty_system_turn_is_dropped_and_no_other(tmp_path, content):
    turn = {"role": "system", "content": content, "name": None, "tool_calls": []}
    assert (
        read(tmp_path, {"messages": [turn, *TALK["messages"]]}).messages
        == read(tmp_path, TALK).messages
    )
    assert refused(
        tmp_path, {"messages": [turn, USER, {"role": "assistant", "content": ""}]}
    ).startswith("message 3 ")
    assert "no other" in refused(tmp_path, {"messages": [turn]})
    if content in ("", [], None):
        for role in ("user", "assistant", "input", "tool_json_schemas"):
            assert refused(
                tmp_path, {"messages": [USER, {**turn, "role": role}, REPLY]}
            ).startswith("message 2 ")


def test_a_system_turn_that_is_not_empty_stays(tmp_path):
    for content in ([CLIP], [{"type": "text", "text": ""}, CLIP], "x"):
        assert (
            read(
                tmp_path, {"messages": [{"role": "system", "content": content}, *TALK["messages"]]}
            )
            .messages[0]
            .role
            == "system"
        )
    assert '"contnt"' in refused(tmp_path, {"messages": [{"role": "system", "contnt": "x"}, USER]})


def test_files_of_every_ending_are_sound_and_australian_addresses_are_not(tmp_path):
    for name in ("talk.caf", "talk.3gp", "talk.MKA", "talk.m4b?download=1"):
        assert "and its dialogue has no sound" in refused(tmp_path, {**TALK, "file": name})
    read(tmp_path, {**TALK, "url": "https://www.abc.net.au"})
