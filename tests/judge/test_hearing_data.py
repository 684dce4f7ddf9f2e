"""What a judge that hears is trained on and reported on: sound, and records of two dialogues."""

import json
import pathlib

import numpy as np
import pytest

from launch.data import main as launch_data
from launch.judge import main as launch
from stepaudio_jax.data import read_records
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import DataError
from stepaudio_jax.judge.dialogue_records import DialogueRecord, read_judged_records
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.training import judge_dialogues, write_judge_data
from stepaudio_jax.judge.verdict import Verdict, parse_verdict
from stepaudio_jax.serving.preferences.store import PreferenceStore
from stepaudio_jax.text import AudioPart
from tests.judge.judge_server import JudgeServer
from tests.judge.test_hearing import heard, sounds
from tests.serving.preferences.studies import RUBRIC, compare, prefer, sound, wav
from tests.serving.preferences.test_records import both

TEMPLATE = str(pathlib.Path(__file__).resolve().parents[2] / "configs" / "tiny_judge.txt")


def write(folder, *rows):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def spoken(tmp_path):
    """Returns a file with a preference whose dialogue has two clips, one a part of its file."""
    for name, hz in (("a", 300.0), ("b", 500.0)):
        (tmp_path / f"{name}.wav").write_bytes(wav(1.0, hz=hz))
    content = [
        {"type": "audio", "audio": "a.wav", "transcript": "first", "attributes": {"tone": "low"}},
        {"type": "text", "text": "and"},
        {"type": "audio", "audio": "b.wav", "start_s": 0.25, "end_s": 0.75},
    ]
    row = {"id": "p", "messages": [{"role": "user", "content": content}]}
    return write(tmp_path, {**row, "chosen": "A low tone.", "rejected": "No."})


@pytest.mark.parametrize("inputs", ["audio", "both"])
def test_training_dialogues_have_the_clips_at_their_places(tmp_path, spoken, inputs):
    output = tmp_path / "elsewhere" / "judge.jsonl"
    output.parent.mkdir()
    arguments = ["--prompt", TEMPLATE, "--inputs", inputs]
    launch(["data", "--input", str(spoken), "--output", str(output), *arguments])
    (source,) = read_records(spoken)
    prompt = JudgePrompt(TEMPLATE, inputs=inputs)
    replies = ("A low tone.", "No.")
    for record, order in zip(read_records(output), (replies, replies[::-1]), strict=True):
        question, answer = record.messages
        asked = prompt.question(source.messages, *order)
        assert question.text == asked.text
        assert [type(part) for part in question.parts] == [type(part) for part in asked.parts]
        for ours, theirs in zip(question.audio, source.messages[0].audio, strict=True):
            np.testing.assert_array_equal(load_clip(ours), load_clip(theirs))
            assert (ours.transcript, ours.attributes) == (theirs.transcript, theirs.attributes)
        assert isinstance(parse_verdict(answer.text, levels=7), Verdict)
    assert ("words of the sound: first" in question.text) == (inputs == "both")
    with pytest.raises(SystemExit):  # a file of another kind of question is not replaced
        launch(["data", "--input", str(spoken), "--output", str(output), "--prompt", TEMPLATE])


def test_a_clip_that_is_gone_is_named_before_anything_is_written(tmp_path, spoken):
    (tmp_path / "b.wav").unlink()
    output = tmp_path / "judge.jsonl"
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: the judge cannot hear .*b\.wav"):
        write_judge_data(spoken, output, JudgePrompt(inputs="audio"))
    assert not output.exists()
    assert write_judge_data(spoken, output, JudgePrompt()) == 2


def test_the_report_hears(spoken, capsys):
    def prefers_low(body):
        parts = heard(body)
        tones = [np.abs(np.fft.rfft(part)).argmax() * 16_000 / len(part) for part in sounds(parts)]
        first_is_right = parts[-1].index("A low tone.") < parts[-1].index("No.")
        right = first_is_right == (tones[0] < 400)
        return json.dumps({"comparison": "a is better" if right else "b is better"})

    server = JudgeServer(prefers_low)
    options = ["--url", server.url, "--model", "m", "--key-variable", ""]
    launch(["report", "--input", str(spoken), "--inputs", "audio", *options])
    report = json.loads(capsys.readouterr().out)
    server.close()
    assert (report["agreement"], report["position_bias"]) == (1, 0)
    assert (report["inputs"], report["clips"]) == ("audio", 2)


@pytest.fixture
def study(tmp_path):
    """Returns the dialogues of a study: in two of three, people prefer the one with more turns."""
    store = PreferenceStore(tmp_path / "study")
    for number in range(3):
        content = [sound(0.5, transcript="a tone"), {"type": "text", "text": f"Number {number}?"}]
        assignment = compare(
            store,
            a=[f"One {number}.", "Two."],
            b=f"Only {number}.",
            content=content,
            rubric=RUBRIC if number == 2 else [],
        )
        marks = both((True, False), (False, False), assignment) if number == 2 else []
        prefer(store, assignment, "ab"[number == 1], 2, criteria=marks)
    store.close()
    assert launch_data(["preferences", str(store.folder)]) == 0
    return store.folder / "dialogues.jsonl"


def test_a_study_of_dialogues_trains_a_judge(tmp_path, study):
    records = list(read_judged_records(study))
    assert all(isinstance(record, DialogueRecord) for record in records)
    assert [len(record.better.turns) for record in records] == [3, 1, 3]
    output = tmp_path / "judge.jsonl"
    launch(["data", "--input", str(study), "--output", str(output), "--inputs", "audio"])
    written = list(read_records(output))
    assert len(written) == 6
    for index, record in enumerate(written):
        question, answer = record.messages
        (clip,) = question.audio
        assert isinstance(clip, AudioPart)
        assert len(load_clip(clip)) == 8000
        assert f"Number {index // 2}?" in question.text
        assert "two ways in which a dialogue goes on" in question.text
        verdict = parse_verdict(answer.text, levels=7, criteria=2 * (index > 3))
        assert isinstance(verdict, Verdict)
        assert verdict.level == (2 if index % 2 == 0 else -2)
        side_a = question.text.split("=== side A")[1].split("=== side B")[0]
        is_better = verdict.level > 0
        assert ("Only" in side_a) == (is_better if index // 2 == 1 else not is_better)


def test_people_and_a_judge_are_compared_on_dialogues(study, capsys):
    def prefers_longer(body):
        text = "".join(part for part in heard(body) if isinstance(part, str))
        a, b = text.split("=== side A")[1].split("=== end")[0].split("=== side B")
        verdict = {"comparison": "a is better" if len(a) > len(b) else "b is better"}
        if "Say besides" in text:
            verdict["criteria"] = [
                {"a": len(a) > len(b), "b": len(b) > len(a)},
                {"a": False, "b": False},
            ]
        return json.dumps(verdict)

    server = JudgeServer(prefers_longer)
    options = ["--url", server.url, "--model", "m", "--key-variable", "", "--inputs", "both"]
    launch(["report", "--human", str(study), *options])
    report = json.loads(capsys.readouterr().out)
    launch(["report", "--input", str(study), *options])
    known = json.loads(capsys.readouterr().out)
    server.close()
    assert report["judge"]["agreement"] == known["agreement"] == pytest.approx(2 / 3)
    assert report["judge"]["criteria_agreement"] == known["criteria_agreement"] == 1
    assert (report["judge"]["inputs"], report["judge"]["clips"]) == ("both", 1)
    assert len(server.requests) == 12


def turns(*texts):
    return [
        {"role": "user" if number % 2 else "assistant", "content": text}
        for number, text in enumerate(texts)
    ]


ROW = {"id": "d", "messages": [{"role": "user", "content": "Hi?"}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": turns("a", "b"), "rejected": turns("c")}, "'chosen': must end in the assis"),
        ({"chosen": turns("a", "b", "c"), "rejected": []}, "'rejected' must be a list of turns"),
        ({"chosen": turns("a", "b", "c"), "rejected": "d"}, "'rejected' must be a list of turns"),
        ({"chosen": "d", "rejected": turns("a", "b", "c")}, "'chosen' must be a list of turns"),
        ({"chosen": turns("a", "b", "c")}, "'rejected' must be a list of turns"),
        (
            {"chosen": turns("a", "b", "c"), "rejected": turns("a ", "d", "c")},
            "the assistant says the same in 'chosen' and 'rejected'",
        ),
        (
            {"chosen": turns("a", "b", "c"), "rejected": turns("d"), "rejected_reply": "x"},
            "has both 'chosen' and 'rejected_reply'",
        ),
        (
            {"chosen": turns("a", "b", "c"), "rejected": turns("d"), "margin": 9},
            "'margin' is 9; a scale of 7 levels has 0 to 3",
        ),
        (
            {
                "messages": turns("x"),
                "chosen": turns("a", "b", "c"),
                "rejected": turns("d"),
            },
            "'messages' must end in the turn",
        ),
        (
            {"chosen": turns("a", "b", "c"), "rejected": turns("d"), "rubric": ["kind"]},
            "its rubric has 1 criteria",
        ),
    ],
)
def test_records_of_dialogues_are_checked(tmp_path, row, message):
    path = write(tmp_path, {**ROW, **row})
    with pytest.raises(DataError, match=rf"pairs\.jsonl:1: .*{message}"):
        write_judge_data(path, tmp_path / "judge.jsonl", JudgePrompt())


def test_equal_dialogues_teach_a_tie_and_other_programs_refuse_dialogues(tmp_path):
    row = {**ROW, "chosen": turns("a", "b", "c"), "rejected": turns("a", "d", "c")}
    path = write(tmp_path, {**row, "margin": 0})
    (record,) = read_judged_records(path)
    answers = [
        dialogue["messages"][1]["content"] for dialogue in judge_dialogues(record, JudgePrompt())
    ]
    assert all(parse_verdict(answer, levels=7) == Verdict(0) for answer in answers)
    with pytest.raises(DataError, match=r"'chosen' must be one turn of the assistant's"):
        list(read_records(path))
    with pytest.raises(DataError, match="must be one turn"):
        list(read_records(write(tmp_path, row)))
