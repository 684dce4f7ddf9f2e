"""Rows of one clip and its text: tables, manifests of NeMo and Kaldi, samples of tars."""

import pytest

from stepaudio_jax.data.containers.base import EmbeddedClip
from tests.data.sources.adapting import (
    adapted,
    dialogue,
    parsed,
    record,
    refused,
    reply,
    user,
)

CLIP = EmbeddedClip("t.parquet#0/audio")
ROW = {"audio": "a.wav", "text": "At seven."}
SAID = [("user", "<a.wav>"), ("assistant", "At seven.")]


def clip_of(row, **options):
    return record(row, **options).messages[0].audio[0]


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"audio": {"path": "a.wav", "bytes": None}, "transcription": "At seven."},
        {"file_name": "a.wav", "sentence": "At seven."},
        {"path": "a.wav", "transcript": "At seven.", "text": None},
        {"audio_filepath": "a.wav", "duration": 1.5, "text": "At seven."},
        {"audio_filepath": ["a.wav"], "duration": 1.5, "text": "At seven."},
        {"wav": "a.wav", "raw_text": "At seven."},
        {**ROW, "transcription": "At seven."},
    ],
)
def test_the_text_is_the_reply_and_the_transcript(row):
    assert dialogue(row) == SAID
    assert clip_of(row).transcript == "At seven."


def test_the_prompt_stands_behind_the_clip():
    assert dialogue(ROW, prompt="Write it down.")[0] == ("user", "<a.wav>Write it down.")
    asked = {"audio": "a.wav", "question": "When?", "answer": "At seven."}
    columns = {"prompt": "question", "reply": "answer"}
    assert dialogue(asked, columns=columns, prompt="x") == [("user", "<a.wav>When?"), SAID[1]]
    assert clip_of(asked, columns=columns).transcript is None
    verified = record(asked, columns={"prompt": "question"})
    assert (verified.answer, len(verified.messages)) == ("At seven.", 1)
    assert dialogue({"audio": "a.wav", "prompt": "When?"}) == [("user", "<a.wav>When?")]
    assert dialogue({**ROW, "system": "Be brief."})[0] == ("system", "Be brief.")


def test_other_scalars_are_attributes():
    row = {
        "audio": CLIP,
        "path": "x/a.mp3",
        "text": "At seven.",
        "id": "u1",
        "speaker_id": 1,
        "gender": "female",
        "is_native": False,
        "snr": 3.5,
        "age": "",
        "accent": None,
        "noise": float("nan"),
        "duration": 1.5,
        "sampling_rate": 16000,
        "length": "long",
        "words": [{"word": "At"}],
        "rubric": ["is polite"],
    }
    assert clip_of(row).attributes == {
        "speaker_id": "1",
        "gender": "female",
        "is_native": "false",
        "snr": "3.5",
        "length": "long",
    }
    got = adapted(row)
    assert (got["id"], got["words"], got["rubric"]) == ("u1", row["words"], row["rubric"])


def test_the_named_text_is_read_whatever_other_texts_there_are():
    row = {"audio": "a.wav", "sentence": "At 7.", "transcript": "At seven.", "label": "time"}
    assert dialogue(row, columns={"text": "transcript"}) == SAID
    assert clip_of(row, columns={"text": "transcript"}).attributes["sentence"] == "At 7."
    assert dialogue(row, columns={"text": "", "reply": "label"})[1] == ("assistant", "time")
    assert clip_of(row, columns={"text": "", "reply": "label"}).transcript is None


def test_a_label_is_the_reply_where_there_is_no_text():
    got = record({"audio": "question/c.wav", "label": "question"}, prompt="Which kind?")
    assert got.messages[1].text == "question"
    assert got.messages[0].audio[0].attributes == {"label": "question"}
    assert "without a name" in refused({"audio": "c.wav", "label": 2})


def test_parts_of_a_file():
    nemo = {"audio_filepath": "a.wav", "offset": 0.1, "duration": 0.2, "text": "x"}
    for row, times in (
        (nemo, (0.1, 0.3)),
        ({**nemo, "offset": 0}, (0.0, 0.2)),
        ({**nemo, "duration": None}, (0.1, None)),
        ({**nemo, "offset": None}, (0.0, None)),
        ({"id": "u", **ROW, "start_s": 1.5, "end_s": 2}, (1.5, 2.0)),
        ({"id": "u", **ROW, "start_s": "1.5", "end_s": "2"}, (1.5, 2.0)),
    ):
        clip = clip_of(row)
        assert (clip.start_s, clip.end_s) == times
    named = {**ROW, "begin": "1", "end": "2.5"}
    clip = clip_of(named, columns={"start_s": "begin", "end_s": "end"})
    assert (clip.start_s, clip.end_s) == (1.0, 2.5)
    whole = clip_of(named, columns={"start_s": "", "end_s": ""})
    assert (whole.start_s, whole.end_s) == (0.0, None)
    assert whole.attributes == {"begin": "1", "end": "2.5"}
    assert clip_of({**ROW, "start": 0.0, "duration": 2.0}).end_s is None
    assert clip_of({**ROW, "": "0"}).attributes == {}  # the index of a table of pandas
    cut_already = clip_of({"audio": CLIP, "begin_time": 7.0, "end_time": 9.0, "text": "x"})
    assert (cut_already.start_s, cut_already.end_s) == (0.0, None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"audio": "a.wav"}, "has a clip and no text for it (columns: 'audio')"),
        ({"audio": "a.wav", "text": ""}, "'text' is empty"),
        ({"audio": "a.wav", "text": 7}, "'text' must be a string"),
        ({**ROW, "sentence": "Other."}, "has texts in 'text', 'sentence'; name the one"),
        ({"audio": CLIP, "raw_text": "A", "normalized_text": "a"}, "columns={'text': 'COLUMN'}"),
        ({"audio": "a.wav", "question": "q", "answer": "7"}, "{'prompt': 'question', 'reply'"),
        ({"audio": "a.wav", "audio_path": "b.wav", "text": "x"}, "'audio', 'audio_path'; name"),
        ({"audio_filepath": ["a.wav", "b.wav"], "text": "x"}, "names 2 files for one row"),
        ({"audio": {"array": [0.1]}, "text": "x"}, "'audio' must name a clip"),
        ({"audio": {"bytes": "abc"}, "text": "x"}, "no sound file as base64"),
        ({**ROW, "start": 1.0, "end": 2.0}, "{'start_s': 'start', 'end_s': 'end'}"),
        ({**ROW, "start": 1.0, "duration": 2.0}, "or call 'start' 'offset', as NeMo does"),
        ({**ROW, "startTime": "1.0"}, "columns={'start_s': 'startTime'}, or"),
        ({**ROW, "segment_end": 2}, "columns={'end_s': 'segment_end'}, or"),
        ({**ROW, "begin_ms": 900, "end_ms": 1800}, "'begin_ms' and 'end_ms', which may be"),
        ({**ROW, "start_sample": 900}, "write it in seconds, as 'start_s' and 'end_s'"),
        ({**ROW, "channel": 1}, "names channel 1 of the file"),
        ({**ROW, "png": "x.png"}, 'has "png"'),
        ({"audio": "a.wav", "context": "Count.", "answer": "7"}, "{'prompt': 'context', 'reply'"),
        ({**ROW, "offset": 1.0, "duration": 0.0}, "from 1 s to 1 s is empty"),
        ({**ROW, "offset": -1.0, "duration": 5.0}, "begins before the file"),
        ({**ROW, "offset": "soon"}, "'offset' must be a number of seconds"),
        ({**ROW, "start_s": 2.0, "end_s": 1.0}, "from 2 s to 1 s is empty"),
        ({**ROW, "images": ["x.png"]}, 'has "images"'),
        ({**ROW, "image": "x.png"}, 'has "image"'),
        ({**ROW, "rejected_response": "x"}, 'has "rejected_response"'),
        ({"text": "At seven.", "file": "notes.txt"}, "name the clip in 'audio'"),
        ({"speaker": "x"}, "is in no form that is known (keys: 'speaker')"),
    ],
)
def test_a_row_that_would_lose_something_is_refused(row, said):
    assert said in refused(row)


def test_several_clips_of_a_row_have_to_be_named():
    row = {"clean": CLIP, "noisy": EmbeddedClip("t.parquet#0/noisy"), "text": "x"}
    with pytest.raises(ValueError, match="has clips in 'clean', 'noisy'; name the one"):
        adapted(row)
    assert clip_of(row, columns={"audio": "noisy"}).path == "/data/t.parquet#0/noisy"
    assert clip_of({**row, "noisy": CLIP}).path == f"/data/{CLIP}"


def test_an_offset_beside_a_clip_of_the_container_has_to_be_explained():
    row = {"__key__": "a", "wav": CLIP, "json": {"text": "x", "offset": 2.0, "duration": 1.0}}
    with pytest.raises(ValueError, match="has 'offset' and 'duration' beside a clip"):
        adapted(row)
    assert clip_of(row, columns={"start_s": "", "end_s": ""}).end_s is None


def test_samples_of_a_tar():
    wav = EmbeddedClip("t.tar#a.wav")
    said = record({"__key__": "a", "wav": wav, "txt": "x", "cls": "3"})
    assert (said.id, said.messages[1].text) == ("a", "x")
    assert said.messages[0].audio[0].attributes == {"label": "3"}
    named = {"text": "x", "audio_filepath": "elsewhere/a.wav", "id": "u"}
    got = record({"__key__": "a", "wav": wav, "json": named})
    assert (got.id, got.messages[0].audio[0].path) == ("u", "/data/t.tar#a.wav")
    for ending in ("json", "messages.json"):
        turns = [user("<audio>When?"), reply("x")]
        heard = dialogue({"__key__": "a", "wav": wav, ending: turns})
        assert heard == [("user", "<t.tar#a.wav>When?"), ("assistant", "x")]
    part = {"type": "audio", "audio": "./a.wav"}
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "When?"}]}, reply("x")]
    talk = {"messages": turns, "note": [{"audio": "b.wav"}]}
    for key in ("a", "d/a"):
        heard = dialogue({"__key__": key, "wav": wav, "json": talk, "txt": "x"})
        assert heard == [("user", "<t.tar#a.wav>When?"), ("assistant", "x")]
    talk = [user("<audio><audio>"), reply("x")]
    two = {"__key__": "a", "2.wav": EmbeddedClip("t.tar#a.2.wav"), "10.wav": wav}
    assert dialogue({**two, "json": {"messages": talk}})[0] == (
        "user",
        "<t.tar#a.2.wav><t.tar#a.wav>",
    )
    mixed = {"__key__": "a", "question.wav": wav, "reply.wav": CLIP, "json": {"messages": talk}}
    with pytest.raises(ValueError, match="nothing says in which order"):
        adapted(mixed)
    assert '\'text\': "x" and "y"' in refused({"__key__": "a", "txt": "x", "json": {"text": "y"}})
    with pytest.raises(ValueError, match="has a clip and no text"):
        adapted({"__key__": "a", "wav": wav})


def test_a_string_of_json_is_a_dialogue_of_the_projects_form():
    turns = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'
    assert dialogue({"id": "7", "messages": turns}) == [("user", "Hi"), ("assistant", "Hello")]
    assert parsed(adapted({"id": "7", "messages": turns})).id == "7"
