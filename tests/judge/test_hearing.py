"""Judges that hear: what a real server gets, whole dialogues, and the keys of the cache."""

import base64
import io
import json

import numpy as np
import pytest
import soundfile

from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.judge.backends import EndpointBackend
from stepaudio_jax.judge.clips import ClipReader
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.pairs import Continuation, DialoguePair, ReplyPair
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.text import AudioPart, Message, TextPart
from tests.judge.judge_server import JudgeServer


def replies(body):
    """Prefers A, whatever it hears: in both orders, which is a tie."""
    return json.dumps({"comparison": "a is better"})


@pytest.fixture
def server():
    server = JudgeServer(replies)
    yield server
    server.close()


@pytest.fixture
def clips(tmp_path):
    """Returns clips of 16 bits, of floats, and a part of a stereo file at 44.1 kHz."""
    rng = np.random.default_rng(3)
    short = rng.normal(size=4000).clip(-3, 3) / 4
    soundfile.write(tmp_path / "sixteen.wav", short, 16_000, subtype="PCM_16")
    soundfile.write(tmp_path / "floats.wav", short / 3, 16_000, subtype="FLOAT")
    stereo = rng.normal(size=(44_100, 2)).clip(-3, 3) / 4
    soundfile.write(tmp_path / "stereo.flac", stereo, 44_100, subtype="PCM_24")
    return (
        AudioPart(str(tmp_path / "sixteen.wav"), transcript="sixteen bits"),
        AudioPart(str(tmp_path / "floats.wav")),
        AudioPart(str(tmp_path / "stereo.flac"), transcript="stereo", start_s=0.25, end_s=0.75),
    )


def make_judge(server, inputs="audio", cache=None, **reader):
    backend = EndpointBackend(url=server.url, model="m", api_key_env=None, retries=0)
    prompt = JudgePrompt(inputs=inputs)
    return Judge(backend, prompt, clips=ClipReader(**reader), cache=cache, concurrency=1)


def user(*parts):
    return Message(
        "user", tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    )


def assistant(text):
    return Message("assistant", (TextPart(text),))


def spoken(clips):
    """Returns a dialogue of three turns with the clips in two of them."""
    return (
        user("Listen: ", clips[0], " and ", clips[1]),
        assistant("I hear you."),
        user(clips[2]),
    )


def heard(body):
    """Returns the texts and waveforms of a request, in order; the message must be the only one."""
    (message,) = body["messages"]
    if isinstance(message["content"], str):
        return [message["content"]]
    parts = []
    for part in message["content"]:
        if part["type"] == "text":
            parts.append(part["text"])
            continue
        assert part["type"] == "input_audio"
        assert part["input_audio"]["format"] == "wav"
        content = base64.b64decode(part["input_audio"]["data"], validate=True)
        assert content.startswith(b"RIFF")
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        assert (rate, samples.shape[1]) == (16_000, 1)
        parts.append(samples[:, 0])
    return parts


def sounds(parts):
    return [part for part in parts if not isinstance(part, str)]


@pytest.mark.parametrize("channel", ["first", "mix"])
def test_a_server_receives_the_same_samples_in_their_turns_in_both_orders(server, clips, channel):
    judge = make_judge(server, channel=channel)
    (judgement,) = judge.judge([ReplyPair(spoken(clips), "Reply one.", "Reply two.")])
    expected = [load_clip(clip, channel=channel) for clip in clips]
    first, second = (heard(body) for _, _, body in server.requests)
    for parts in (first, second):
        received = sounds(parts)
        assert len(received) == 3
        for samples, clip in zip(received, expected, strict=True):
            np.testing.assert_array_equal(samples, clip)
        assert all(text.endswith(" user, sound: ") for text in parts[:-1] if isinstance(text, str))
        assert "user: Listen: \n" in parts[0]
        assert " and " in parts[2]
        assert "assistant: I hear you.\n" in parts[4]
        assert not any("sixteen bits" in part for part in parts if isinstance(part, str))
    assert first[-1].index("Reply one.") < first[-1].index("Reply two.")
    assert second[-1].index("Reply one.") > second[-1].index("Reply two.")
    assert judgement.given.inputs == "audio"
    assert len(set(judgement.given.clips)) == 3


def test_sound_with_its_words_and_words_alone(server, clips):
    pair = ReplyPair(spoken(clips), "x", "y")
    make_judge(server, "both").judge([pair])
    parts = heard(server.requests[0][2])
    assert len(sounds(parts)) == 3
    assert " user, words of the sound: sixteen bits\n" in parts[2]
    assert "words of the sound" not in parts[4]  # there are none
    assert " user, words of the sound: stereo\n" in parts[6]
    (judgement,) = make_judge(server, "transcripts").judge([pair])
    (text,) = heard(server.requests[-1][2])
    assert "user, sound: sixteen bits\n" in text
    assert "user, sound without a transcript: \n" in text
    assert judgement.given.clips == ()


def test_a_dialogue_without_sound_is_the_question_of_transcripts(server):
    pair = ReplyPair((user("Hi?"),), "x", "y")
    (judgement,) = make_judge(server).judge([pair])
    make_judge(server, "transcripts").judge([pair])
    assert server.requests[0][2] == server.requests[2][2]
    assert judgement.given == type(judgement.given)("audio", ())


@pytest.mark.parametrize("content", [None, b"no sound", b""])
def test_a_clip_that_cannot_be_read_names_the_record(server, tmp_path, content):
    clip = AudioPart(str(tmp_path / "gone.wav"), transcript="words")
    if content is not None:
        (tmp_path / "gone.wav").write_bytes(content)
    pair = ReplyPair((user(clip),), "x", "y", origin="prompts.jsonl:7")
    with pytest.raises(DataError, match=r"^prompts\.jsonl:7: the judge cannot hear .*gone\.wav"):
        make_judge(server).judge([pair])
    with pytest.raises(DataError, match=r"^prompts\.jsonl:7: the judge cannot hear .*gone\.wav"):
        make_judge(server).prefetch(pair)
    assert not server.requests
    make_judge(server, "transcripts").judge([pair])  # reads no clip


def test_a_url_is_read_only_where_it_may_be(server):
    pair = ReplyPair((user(AudioPart("https://x.test/a.wav")),), "x", "y", origin="p:1")
    with pytest.raises(DataError, match=r"p:1: .*allow_urls"):
        make_judge(server).judge([pair])


def test_a_clip_that_changes_meanwhile_is_an_error(tmp_path, clips):
    reader = ClipReader(max_bytes=0)
    clip = reader(clips[0], "p:1")
    soundfile.write(tmp_path / "sixteen.wav", np.zeros(4000), 16_000, subtype="PCM_16")
    with pytest.raises(DataError, match=r"p:1: .*sixteen\.wav has changed"):
        clip.read()


def test_the_cache_knows_answers_by_the_sound_and_what_was_given(server, tmp_path, clips):
    cache = tmp_path / "judge.jsonl"

    def num_asked(dialogue, inputs="audio"):
        judge = make_judge(server, inputs, cache)
        judge.judge([ReplyPair(dialogue, "x", "y")])
        judge.close()
        return judge.num_generated

    assert num_asked((user(clips[1]),)) == 2
    assert num_asked((user(clips[1]),)) == 0
    copy = tmp_path / "copy.wav"
    copy.write_bytes((tmp_path / "floats.wav").read_bytes())
    assert num_asked((user(AudioPart(str(copy))),)) == 0, "the same sound under another name"
    samples, _ = soundfile.read(copy, dtype="float32")
    soundfile.write(copy, samples * np.float32(1.0001), 16_000, subtype="FLOAT")
    assert num_asked((user(AudioPart(str(copy))),)) == 2, "other sound under the same name"
    assert num_asked((user(clips[1]),), "both") == 2, "the text is the same, without a transcript"
    assert num_asked((user(clips[1]),), "transcripts") == 2
    assert num_asked((user(clips[0], clips[1]),)) == 2
    assert num_asked((user(clips[1], clips[0]),)) == 2
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    reader = ClipReader()
    digests = [reader(clip, "").digest for clip in clips]
    assert [line["given"] for line in lines[::2]] == [line["given"] for line in lines[1::2]]
    given = [(line["given"]["inputs"], line["given"]["clips"]) for line in lines[::2]]
    assert given[0] == ("audio", [digests[1]])
    assert given[2:] == [
        ("both", [digests[1]]),
        ("transcripts", []),
        ("audio", digests[:2]),
        ("audio", [digests[1], digests[0]]),
    ]


def test_two_dialogues_are_compared_in_both_orders_with_the_sound_of_their_turns(server, clips):
    ours = Continuation((assistant("One."), user("And ", clips[1]), assistant("Two.")))
    theirs = Continuation(
        (
            *(assistant("Uno."), user("Why?"), assistant("Dos.")),
            *(user(clips[2]), assistant("Tres.")),
        )
    )
    pair = DialoguePair((user(clips[0]),), ours, theirs, origin="d:1")
    (judgement,) = make_judge(server).judge([pair])
    first, second = (heard(body) for _, _, body in server.requests)
    waves = [load_clip(clip) for clip in clips]
    for parts, order in ((first, (0, 1, 2)), (second, (0, 2, 1))):
        for samples, index in zip(sounds(parts), order, strict=True):
            np.testing.assert_array_equal(samples, waves[index])
        text = "<clip>".join(part for part in parts if isinstance(part, str))
        code = text.split("The code of this question is ")[1].split(".")[0]
        sides = {
            0: f"{code} assistant: One.\n{code} user: And \n{code} user, sound: <clip>\n"
            f"{code} assistant: Two.",
            1: f"{code} assistant: Uno.\n{code} user: Why?\n{code} assistant: Dos.\n"
            f"{code} user, sound: <clip>\n{code} assistant: Tres.",
        }
        a, b = (sides[0], sides[1]) if order == (0, 1, 2) else (sides[1], sides[0])
        assert (
            f"=== beginning of the dialogue {code} ===\n{code} user, sound: <clip>\n"
            f"=== side A {code} ===\n{a}\n=== side B {code} ===\n{b}\n=== end {code} ===\n"
        ) in text
    assert len(judgement.given.clips) == 3
    assert judgement.verdicts is not None


def test_a_continuation_of_one_turn_is_a_reply(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    begin = (user("Hi?"),)
    judge = make_judge(server, cache=cache)
    judge.judge(
        [
            ReplyPair(begin, "Hello!", ""),
            DialoguePair(
                begin, Continuation((assistant("Hello!"),)), Continuation((assistant(""),))
            ),
        ]
    )
    assert judge.num_generated == 2
    assert "two replies to the last turn" in heard(server.requests[0][2])[0]


def test_a_template_of_the_users_is_for_two_dialogues_too(server, tmp_path, clips):
    template = tmp_path / "prompt.txt"
    template.write_text("{dialogue}\n{fence} A: {reply_a}\n{fence} B: {reply_b}\n{fence}{criteria}")
    sides = [
        Continuation((assistant(word), user(clips[0]), assistant("Bye.")))
        for word in ("Yes.", "No.")
    ]
    question = JudgePrompt(template, inputs="audio").question((user("Hi?"),), *sides)
    fence = question.text.split(" ")[0]
    side = f"{fence} user, sound: \n{fence} assistant: Bye."
    assert question.text == (
        f"{fence} user: Hi?\n{fence} A: {fence} assistant: Yes.\n{side}\n"
        f"{fence} B: {fence} assistant: No.\n{side}\n{fence}"
    )
    assert [question.text[:index].count("sound: ") for index, _ in question.clips] == [1, 2]
    assert (
        "".join(part.text if isinstance(part, TextPart) else "" for part in question.parts)
        == question.text
    )
    template.write_text(
        "{dialogue!r}\n{fence} A: {reply_a}\n{fence} B: {reply_b}\n{fence}{criteria}"
    )
    with pytest.raises(ConfigError, match="without a conversion"):
        JudgePrompt(template, inputs="audio").question((user(clips[0]),), "a", "b")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((user("Hi"),), "turn 1 must be the assistant's, and is the user's"),
        ((assistant("a"), user("b")), "must end in the assistant's turn"),
        ((assistant("a"), assistant("b"), assistant("c")), "turn 2 must be the user's"),
        ((), "must end in the assistant's turn"),
    ],
)
def test_turns_in_a_wrong_order_are_refused(turns, message):
    right = Continuation((assistant("a"),))
    with pytest.raises(DataError, match=f"d:1: the reference: {message}"):
        DialoguePair((user("Hi?"),), right, Continuation(turns), origin="d:1")
    with pytest.raises(DataError, match=r"d:1: the beginning .* must end in the turn"):
        DialoguePair((user("Hi?"), assistant("a")), right, right, origin="d:1")
