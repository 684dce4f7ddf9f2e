"""Segments of a clip: in the project's form, in tables and manifests of others, and refused."""

import pytest

from stepaudio_jax.data.containers.base import EmbeddedClip
from stepaudio_jax.data.sources.serialization import check_reads_back, part_times, serialize_record
from stepaudio_jax.text import TimedText
from tests.data.sources.adapting import adapted, parsed, record, refused, reply
from tests.data.sources.test_lhotse import CUT, SAID

WHISPER = {
    "text": " At seven. Or six.",
    "language": "en",
    "segments": [
        {"id": 0, "seek": 0, "start": 0.0, "end": 2.4, "text": " At seven.", "tokens": [1, 2]},
        {"id": 1, "seek": 0, "start": 2.4, "end": 4.0, "text": " Or six.", "temperature": 0.0},
    ],
}
SEGMENTS = (TimedText(0.0, 2.4, " At seven."), TimedText(2.4, 4.0, " Or six."))


def clip_of(row, **options):
    return record(row, **options).messages[0].audio[0]


def own(segments, *, content="At seven. Or six.", **keys):
    """A dialogue in the project's form."""
    part = {"type": "audio", "audio": "a.wav", "segments": segments, **keys}
    return {"messages": [{"role": "user", "content": [part]}, reply(content)]}


OWN = [
    {"start_s": 0.0, "end_s": 2.4, "text": "At seven.", "attributes": {"speaker": "x"}},
    {"start_s": 3, "end_s": 4.0, "text": "Or six.", "attributes": None},
]


def test_segments_of_the_projects_form():
    clip = clip_of(own(OWN))
    assert clip.segments == (
        TimedText(0.0, 2.4, "At seven.", {"speaker": "x"}),
        TimedText(3.0, 4.0, "Or six."),
    )
    assert clip.transcript is None
    assert clip_of(own([])).segments == clip_of(own(None)).segments == ()
    # Of a question, they say what is heard.
    clip = clip_of(own(OWN, content="Two times.", transcript="At seven! Or six..."))
    assert len(clip.segments) == 2


@pytest.mark.parametrize(
    "row",
    [
        WHISPER,
        {**WHISPER, "text": "At seven. Or six."},
        {"text": "x", "segments": None, "chunks": [{"timestamp": [0.0, 1.0], "text": "x"}]},
        {
            "text": "At seven. Or six.",
            "chunks": [
                {"timestamp": [0.0, 2.4], "text": " At seven."},
                {"timestamp": [2.4, None], "text": " Or six."},
            ],
        },
    ],
)
def test_whisper_and_pipelines(row):
    clip = clip_of({"audio": "a.wav", **row})
    assert [segment.text.strip() for segment in clip.segments] in (["At seven.", "Or six."], ["x"])
    assert clip.segments[0].start_s == 0.0
    assert clip.segments[-1].end_s in (1.0, 2.4, 4.0)
    assert record({"audio": "a.wav", **row}).messages[1].text == row["text"]
    assert clip.attributes == ({"language": "en"} if "language" in row else {})


def test_a_sample_of_a_tar_with_the_json_of_whisper():
    sample = {"__key__": "a", "mp3": EmbeddedClip("t.tar#a.mp3"), "json": WHISPER}
    assert clip_of(sample).segments == SEGMENTS


def test_objects_of_lists_strings_and_other_names():
    lists = {"start": ["0.0", "2.4"], "end": [2.4, 4], "text": [" At seven.", " Or six."], "id": 7}
    assert clip_of({"audio": "a.wav", "utterances": lists}).segments == SEGMENTS
    text = '[{"begin": 0.0, "duration": 2.4, "sentence": " At seven."}, ' + (
        '{"begin": 2.4, "duration": 1.6, "sentence": " Or six."}]'
    )
    row = {"audio": "a.wav", "text": "At seven. Or six.", "said": text}
    assert clip_of(row).segments == ()
    assert clip_of(row, columns={"segments": "said"}).segments == SEGMENTS


def test_words_without_times_stay_with_the_one_before():
    words = [
        {"word": "at", "start": 0.0, "end": 0.2, "speaker": "x"},
        {"word": "7"},
        {"word": "or", "start": 2.4, "speaker": " "},
        {"word": "six", "start": 3.0, "end": 3.5, "speaker": "y"},
    ]
    clip = clip_of({"audio": "a.wav", "text": "At 7. Or six!", "words": words})
    assert clip.segments == (
        TimedText(0.0, 0.2, "at 7", {"speaker": "x"}),
        TimedText(2.4, 3.0, "or"),
        TimedText(3.0, 3.5, "six", {"speaker": "y"}),
    )
    assert clip.attributes == {"speaker": "x, y"}


def test_the_text_of_segments_is_the_transcript_where_a_row_has_no_other():
    row = {"audio": "a.wav", "segments": WHISPER["segments"]}
    assert record(row).messages[1].text == "At seven. Or six."
    bare = [{**segment, "text": segment["text"].strip()} for segment in WHISPER["segments"]]
    assert record({**row, "segments": bare}).messages[1].text == "At seven. Or six."
    chinese = [{"start": 0, "end": 1, "text": "你好 "}, {"start": 1, "end": 2, "text": "世界"}]
    assert record({**row, "segments": chinese}).messages[1].text == "你好 世界"
    got = record({**row, "summary": "Two times."}, columns={"reply": "summary"})
    assert got.messages[1].text == "Two times."
    assert got.messages[0].audio[0].transcript == "At seven. Or six."


def test_a_cut_of_several_supervisions():
    second = {**SAID, "start": 1.2, "duration": 0.85, "text": "Or six.", "speaker": "y"}
    row = {**CUT, "supervisions": [second, {**SAID, "start": -0.05, "duration": 1.0}]}
    clip = clip_of(row)
    assert (clip.start_s, clip.end_s) == (1.5, 3.5)
    assert clip.segments == (
        TimedText(1.5, 2.5, "At seven.", {"speaker": "x"}),
        TimedText(2.7, 3.5, "Or six.", {"speaker": "y"}),
    )
    assert clip_of(CUT).segments == ()


def test_lists_that_are_no_segments_stay_as_they_are():
    for other in (
        {"segments": [{"start": 0, "end": 1, "speaker": "x"}]},
        {"segments": [{"text": "x"}]},
        {"segments": ["a", "b"]},
        {"chunks": 7, "words": "x"},
        {"words": [{"word": "At"}]},
    ):
        row = {"audio": "a.wav", "text": "x", **other}
        assert clip_of(row).segments == ()
        assert clip_of(row, columns={"segments": ""}).segments == ()
    row = {"audio": "a.wav", "text": "Another.", "segments": WHISPER["segments"]}
    assert clip_of(row, columns={"segments": ""}).segments == ()


ONE = {"start_s": 1.0, "end_s": 2.0, "text": "x"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (own("x"), "'segments' must be a list, got \"x\""),
        (own(["x"]), "segment 1 must be an object with 'start_s', 'end_s' and 'text'"),
        (own([{**ONE, "speaker": "x"}]), 'segment 1 has the unknown key "speaker"'),
        (own([{"start": 1, "end": 2, "text": "x"}]), 'segment 1 has the unknown key "start"'),
        (own([{"start_s": 1.0, "text": "x"}]), "'end_s' must be a number of seconds, 0 or more"),
        (own([{**ONE, "start_s": -1}]), "'start_s' must be a number of seconds, 0 or more"),
        (own([{**ONE, "start_s": True}]), "'start_s' must be a number of seconds"),
        (own([{**ONE, "end_s": 0.5}]), "segment 1 ends at 0.5 s, before it begins at 1 s"),
        (own([{**ONE, "text": 7}]), "'text' must be a string, got 7"),
        (own([{**ONE, "attributes": {"a": 1}}]), "'attributes' must be an object of strings"),
        (
            own([ONE, {**ONE, "start_s": 0.5}]),
            "segment 2 begins at 0.5 s, before segment 1 (1 s)",
        ),
        (own([ONE], start_s=1.5), "segment 1 begins at 1 s, before the part of the file (1.5 s)"),
        (own([ONE], end_s=0.9), "segment 1 ends at 2 s, behind the part of the file"),
        (
            own([ONE], content="y"),
            "message 1 (user): the texts of the segments, one after the other, are not its reply:"
            ' they have "x" where that has "y"; correct one of them, or leave \'segments\' out',
        ),
        (own([ONE], content="x", transcript="z"), "are not its transcript"),
        (
            {"audio": "a.wav", **WHISPER, "text": "At seven. Or five."},
            "'segments': the texts of the segments, one after the other, are not its 'text': they"
            ' have "Atseven.Orsix." where that has "Atseven.Orfive."; correct one of them, or say'
            " that they are none: columns={'segments': ''}",
        ),
        (
            {"audio": "a.wav", "start_s": 5.0, "end_s": 9.0, **WHISPER},
            "'segments' has times beside a part of a file",
        ),
        (
            {"audio": "a.wav", "text": "x y", "segments": [{**ONE, "start": 1}, {"text": 3}]},
            "segment 2 has no text",
        ),
        (
            {"audio": "a.wav", "text": "x y", "words": [ONE, {**ONE, "start_s": "soon"}]},
            "'words': segment 2 has a time that is no number of seconds",
        ),
        (
            {"audio": "a.wav", "text": "x y", "words": [ONE, {**ONE, "start_s": 0, "text": "y"}]},
            "before segment 1 (1 s); write them in order, in seconds of the file; or say that they",
        ),
    ],
)
def test_segments_that_say_something_else_are_refused(row, said):
    assert said in refused(row)


def test_a_named_column_must_have_segments():
    row = {"audio": "a.wav", "text": "x", "said": [{"from": 1}]}
    assert "must be a list of objects with" in refused(row, columns={"segments": "said"})


def test_segments_are_written_as_they_are_read():
    whole = record({"audio": "a.wav", **WHISPER})
    part = parsed(own([{**ONE, "start_s": 4 / 3}], content="x", start_s=1.0))
    for each in (whole, part, parsed(own(OWN))):
        check_reads_back(each)
    # Of a part that becomes a file, the times begin with the part.
    row = serialize_record(part, lambda clip: {"audio": clip.path, **part_times(clip)})
    assert row["messages"][0]["content"][0]["segments"] == [{**ONE, "start_s": 4 / 3}]
    row = serialize_record(part, lambda clip: {"audio": "new.wav"})
    assert row["messages"][0]["content"][0]["segments"] == [
        {"start_s": 0.333333333, "end_s": 1.0, "text": "x"}
    ]
    assert adapted(row) == row
