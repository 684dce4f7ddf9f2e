"""Dialogues that are too long, split at their times: what the parts have, and what is refused."""

import dataclasses
import itertools
import random

import pytest

from stepaudio_jax.data.record import Record, split_obstacle
from stepaudio_jax.data.splitting import Splitter, part_of_record
from stepaudio_jax.data.views import RowLimits, ViewRenderer
from stepaudio_jax.errors import DataError
from stepaudio_jax.text import AudioPart, Message, TextPart, TimedText
from tests.data.corpus import TOKENIZER

LIMITS = RowLimits(
    tokens=500, tokens_name="seq_len", chunks=3, mel_frames=2504, length_convention="hf"
)
RATE = 16_000


def asked(clip, reply, *, prompt="Write it down.", system="Be exact."):
    """A request about one clip, and the reply."""
    turns = [Message("user", (clip, TextPart(prompt))), Message("assistant", (TextPart(reply),))]
    if system:
        turns = [Message("system", (TextPart(system),)), *turns]
    return Record("talk", tuple(turns), "d", "d.jsonl:1")


def transcribed(segments, *, start_s=0.0, end_s=None, separator=" ", **labels):
    """A clip with segments, and the reply that is their text."""
    segments = tuple(TimedText(*each) for each in segments)
    text = separator.join(segment.text for segment in segments)
    clip = AudioPart("a.wav", text, labels, start_s, end_s, segments)
    return asked(clip, text)


def splitter(limits=LIMITS, *, seconds=1000.0):
    """Splits for clips of a file that lasts so long."""

    def measure(clip):
        end_s = seconds if clip.end_s is None else min(clip.end_s, seconds)
        return round(end_s * RATE) - round(clip.start_s * RATE)

    return Splitter(ViewRenderer(TOKENIZER), limits, measure)


def parts_of(record, **settings):
    parts = splitter(**settings).split(record)
    return [part_of_record(record, part, number) for number, part in enumerate(parts, 1)]


def clip_of(record):
    (clip,) = (clip for message in record.messages for clip in message.audio)
    return clip


def squeezed(text):
    return "".join(text.split())


def check_parts(record, parts, *, seconds, limits=LIMITS):
    """Checks that parts are all of a record, in order, each within the limits."""
    whole = clip_of(record)
    clips = [clip_of(part) for part in parts]
    assert tuple(itertools.chain(*(clip.segments for clip in clips))) == whole.segments
    reply = record.messages[-1].text
    assert squeezed("".join(part.messages[-1].text for part in parts)) == squeezed(reply)
    assert squeezed("".join(clip.transcript for clip in clips)) == squeezed(whole.transcript)
    assert [clip.start_s for clip in clips[1:]] == [clip.end_s for clip in clips[:-1]]
    assert (clips[0].start_s, clips[-1].end_s) == (whole.start_s, whole.end_s)
    for before, after in itertools.pairwise(clips):
        ends = max(segment.end_s for segment in before.segments)
        gap = sorted((ends, after.segments[0].start_s))
        assert gap[0] - 1e-4 <= before.end_s <= gap[1] + 1e-4
    for part, clip in zip(parts, clips, strict=True):
        assert part.messages[:-1] == tuple(
            dataclasses.replace(
                message,
                parts=tuple(clip if isinstance(x, AudioPart) else x for x in message.parts),
            )
            for message in record.messages[:-1]
        )
        assert part.messages[-1].text.strip()
        assert splitter(limits, seconds=seconds).split(part) == []


def test_a_recording_is_cut_in_the_silences_between_its_segments():
    words = [(4.0 * n, 4.0 * n + 3.0, f"Sentence number {n}.") for n in range(50)]
    record = transcribed(words, room="hall")
    parts = parts_of(record, seconds=200.0)
    check_parts(record, parts, seconds=200.0)
    assert [part.id for part in parts] == [f"talk-{number}" for number in range(1, 1 + len(parts))]
    first = clip_of(parts[0])
    assert first.attributes == {"room": "hall"}
    # The middle of a silence, and as much as fits: the tokens of one sentence more do not.
    assert first.end_s % 4 == 3.5
    longer = splitter(seconds=200.0)
    with_next = transcribed(words[: len(first.segments) + 1], end_s=first.end_s + 3.5)
    assert longer.split(with_next) != []
    assert longer.split(transcribed(words[: len(first.segments)], end_s=first.end_s)) == []


def test_what_fits_or_has_no_times_is_not_split():
    short = transcribed([(0.0, 1.0, "a"), (2.0, 3.0, "b")])
    assert parts_of(short, seconds=5.0) == []
    bare = asked(AudioPart("a.wav"), "a b")
    assert parts_of(bare) == []
    assert "has no 'segments' with times" in split_obstacle(bare)


def test_parts_are_the_same_whatever_was_split_before():
    record = transcribed([(2.0 * n, 2.0 * n + 1.9, f"word {n}") for n in range(300)])
    one = splitter(seconds=600.0)
    assert one.split(record) == one.split(record) == splitter(seconds=600.0).split(record)


@pytest.mark.parametrize("seed", range(6))
def test_every_segment_is_in_one_part_whatever_the_times(seed):
    draw, errors = random.Random(seed), []
    for _ in range(15):
        start_s = time = draw.choice([0.0, 7.3])
        time += draw.choice([0.0, 0.4, 5.0])
        segments = []
        for number in range(draw.randint(30, 120)):
            length = draw.choice([0.0, 0.013, 0.5, 2.0, 4.0])
            text = draw.choice([f"w{number}", f"w{number}", "two words.", "好的", "", " "])
            segments.append((time, time + length, text if number else "first"))
            time += max(length + draw.choice([0.0, 0.0, -0.05, 0.3, 2.0]), 0.0)
        seconds = max(end for _, end, _ in segments) + draw.choice([0.01, 2.0])
        if segments[-1][1] - segments[-1][0] > 1:
            seconds -= 0.9  # the last one ends behind the recording
        end_s = draw.choice([None, seconds])
        limits = dataclasses.replace(
            LIMITS,
            tokens=draw.choice([450, 500, 700]),
            chunks=draw.choice([1, 2]),
            mel_frames=draw.choice([2504, 2000]),
        )
        record = transcribed(segments, start_s=start_s, end_s=end_s, separator=draw.choice(" \n"))
        try:
            parts = parts_of(record, limits=limits, seconds=seconds)
        except DataError as error:  # segments without a text stay with the next one
            errors.append(str(error))
            continue
        check_parts(record, parts, seconds=seconds, limits=limits)
    assert len(errors) <= 3
    assert all("together are too long for a part" in error for error in errors)


def test_segments_that_overlap_stay_together():
    turns = [(0.0, 20.0, "a"), (10.0, 40.0, "b"), (39.95, 60.0, "c"), (60.0, 80.0, "d")]
    wide = dataclasses.replace(LIMITS, tokens=2000)
    parts = parts_of(transcribed(turns), limits=wide, seconds=80.0)
    assert [[segment.text for segment in clip_of(part).segments] for part in parts] == [
        ["a", "b", "c"],
        ["d"],
    ]
    tight = dataclasses.replace(LIMITS, chunks=2, tokens=2000)
    parts = parts_of(transcribed(turns), limits=tight, seconds=80.0)
    assert [[segment.text for segment in clip_of(part).segments] for part in parts] == [
        ["a", "b"],
        ["c", "d"],
    ]
    assert clip_of(parts[0]).end_s == pytest.approx(39.975, abs=0.025)


def test_a_cut_moves_within_a_long_silence_where_one_side_has_less_room():
    # 46 s fit with a text of one word, 34 s with the long one.
    long = "long " * 30
    turns = [(0.0, 20.0, long), (54.0, 76.0, "b")]
    limits = dataclasses.replace(LIMITS, tokens=650, chunks=2)
    parts = parts_of(transcribed(turns), limits=limits, seconds=76.0)
    check_parts(transcribed(turns), parts, seconds=76.0, limits=limits)
    assert len(parts) == 2
    assert clip_of(parts[0]).end_s < 36.0


def test_labels_of_segments_are_those_of_the_part_that_has_them():
    segments = tuple(
        TimedText(20.0 * n, 20.0 * n + 19.0, f"s{n}", {"speaker": "xyz"[n // 3]} if n else {})
        for n in range(9)
    )
    text = " ".join(segment.text for segment in segments)
    clip = AudioPart("a.wav", None, {"speaker": "x, y, z", "room": "hall"}, segments=segments)
    limits = dataclasses.replace(LIMITS, chunks=2, tokens=4096)
    parts = parts_of(asked(clip, text), limits=limits, seconds=180.0)
    assert [clip_of(part).attributes for part in parts] == [
        {"room": "hall", "speaker": "x"},
        {"room": "hall", "speaker": "x, y"},
        {"room": "hall", "speaker": "y"},
        {"room": "hall", "speaker": "z"},
        {"room": "hall", "speaker": "z"},
    ]
    assert all(clip_of(part).transcript is None for part in parts)
    tiny = dataclasses.replace(LIMITS, chunks=1)
    assert clip_of(parts_of(asked(clip, text), limits=tiny, seconds=180.0)[0]).attributes == {
        "room": "hall"
    }


def heard(start_s, end_s, reply, *, path="a.wav", text="And now?", reasoning=None, in_loss=True):
    """A user's turn that hears a part of a recording, and the reply."""
    return [
        Message("user", (AudioPart(path, start_s=start_s, end_s=end_s), TextPart(text))),
        Message("assistant", (TextPart(reply),), reasoning, in_loss),
    ]


def talk(*exchanges):
    turns = [Message("system", (TextPart("Listen."),)), *itertools.chain(*exchanges)]
    return Record("talk", tuple(turns), "d", "d.jsonl:1")


def test_a_dialogue_about_parts_of_a_recording_is_split_between_turns():
    exchanges = [heard(20.0 * n, 20.0 * n + 20, f"reply {n}", reasoning="so") for n in range(10)]
    follow_up = [Message("user", (TextPart("Why?"),)), Message("assistant", (TextPart("Thus."),))]
    exchanges[4] += follow_up
    record = talk(*exchanges)
    limits = dataclasses.replace(LIMITS, tokens=1000)
    parts = parts_of(record, limits=limits)
    assert tuple(itertools.chain(*(part.messages[1:] for part in parts))) == record.messages[1:]
    for part in parts:
        assert part.messages[0] == record.messages[0]
        assert part.messages[1].audio
        assert splitter(limits).split(part) == []
    # A row holds three clips, and turns without sound stay with those before them.
    assert [len(part.messages) for part in parts] == [7, 9, 7, 3]


def test_turns_that_are_not_in_the_loss_stay_with_those_that_are():
    exchanges = [heard(20.0 * n, 20.0 * n + 20, f"r{n}", in_loss=n in (2, 5)) for n in range(8)]
    limits = dataclasses.replace(LIMITS, tokens=1200, chunks=5)
    parts = parts_of(talk(*exchanges), limits=limits)
    assert [len(part.messages) for part in parts] == [7, 11]


def test_a_turn_of_segments_is_split_within_a_dialogue_of_turns():
    said = tuple(TimedText(4.0 * n, 4.0 * n + 3, f"Sentence {n}.") for n in range(40))
    text = " ".join(segment.text for segment in said)
    clip = AudioPart("a.wav", start_s=0.0, end_s=160.0, segments=said)
    first = [Message("user", (clip,)), Message("assistant", (TextPart(text),))]
    record = talk(first, heard(160.0, 170.0, "later"))
    parts = parts_of(record)
    assert len(parts) > 3
    assert parts[-1].messages[1:] == record.messages[3:]
    segments = itertools.chain(*(clip_of(part).segments for part in parts[:-1]))
    assert tuple(segments) == said


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record("t", tuple(heard(0, 20, "x")[:1]), "d", "o"), "it does not end in a reply"),
        (talk(heard(0, 20, "a"), heard(0, 20, "b")), "it has 2 clips, and nothing says"),
        (talk(heard(0, 20, "a"), heard(30, 40, "b", path="b.wav")), "it has 2 clips"),
        (talk(heard(20, 40, "a"), heard(0, 20, "b")), "it has 2 clips"),
        (talk(heard(0, None, "a")), "has no 'segments' with times; give it some, or a row for"),
        (talk([Message("user", (TextPart("hi"),)), heard(0, 1, "a")[1]]), "it has no sound"),
        (
            talk(heard(0, 20, "a"), [Message("user", (TextPart("x"),)), heard(0, 1, "a")[1]]),
            "it has other turns than one reply",
        ),
        (
            asked(AudioPart("a.wav", segments=(TimedText(0, 1, "a"),)), "A summary."),
            "its reply is not the texts of its 'segments'",
        ),
        (
            dataclasses.replace(transcribed([(0, 1, "a"), (2, 3, "b")]), answer="7"),
            "it has 'answer', which is about all of it",
        ),
        (
            dataclasses.replace(transcribed([(0, 1, "a"), (2, 3, "b")]), rejected_reply="c"),
            "it has 'rejected_reply'",
        ),
        (
            dataclasses.replace(
                transcribed([(0, 1, "a")]),
                messages=(
                    transcribed([(0, 1, "a")]).messages[1],
                    Message("assistant", (TextPart("a"),), "I hear it."),
                ),
            ),
            "its reply has a reasoning",
        ),
    ],
)
def test_what_cannot_be_split_says_why(record, reason):
    assert reason in split_obstacle(record)
    assert splitter().split(record) == []


@pytest.mark.parametrize(
    ("record", "kind", "said"),
    [
        (
            transcribed([(0.0, 10.0, "a"), (10.0, 100.0, "b"), (100.0, 110.0, "c")]),
            "too_long",
            "the dialogue takes 12675 tokens, more than seq_len=500; raise it; of its segments,"
            " number 2 is too long for a part, from 10.00 s to 100.00 s: a row holds 33.98 s of"
            " sound beside 71 tokens of text; divide it",
        ),
        (
            transcribed([(0.0, 10.0, "a"), (5.0, 60.0, "b"), (70.0, 110.0, "c")]),
            "too_long",
            "numbers 1 to 2 together are too long for a part, from 0.00 s to 60.00 s",
        ),
        (
            transcribed([(0.0, 10.0, "a"), (11.0, 15.0, "b")]),
            "too_long",
            "what is heard from 15.00 s to 1000.00 s in no segment is too long for a part, beside"
            " segment 2; write it as a segment, or give a row for each side",
        ),
        (
            transcribed([(0.0, 10.0, "a"), (90.0, 95.0, "b")], end_s=95.0),
            "too_long",
            "what is heard from 10.00 s to 90.00 s in no segment is too long for a part, beside",
        ),
        (
            transcribed([(60.0, 70.0, "a"), (71.0, 75.0, "b")], end_s=80.0),
            "too_long",
            "what is heard from 0.00 s to 60.00 s in no segment is too long for a part, beside",
        ),
        (
            transcribed([(0.0, 33.5, "a"), (48.7, 53.7, "b"), (68.9, 102.3, "c")], end_s=102.3),
            "too_long",
            "in no segment is too long for a part, on both sides of segment 2",
        ),
        (
            transcribed([(0.0, 10.0, "a"), (11.0, 1001.5, "b")]),
            "bad_record",
            "segment 2 of 2 is from 11.00 s to 1001.50 s, and its recording ends at 1000.00 s",
        ),
        (
            transcribed([(0.0, 10.0, "a"), (1000.0, 1000.5, "b")]),
            "bad_record",
            "segment 2 of 2 is from 1000.00 s to 1000.50 s, and its recording ends at 1000.00 s",
        ),
        (
            talk(heard(0.0, 20.0, "a"), heard(20.0, 90.0, "b"), heard(90.0, 100.0, "c")),
            "too_long",
            "of its turns, messages 4 to 5 are too long for a part (the dialogue takes",
        ),
    ],
)
def test_what_is_too_long_by_itself_is_an_error_that_says_so(record, kind, said):
    with pytest.raises(DataError) as error:
        splitter().split(record)
    assert said in str(error.value)
    assert error.value.kind == kind
