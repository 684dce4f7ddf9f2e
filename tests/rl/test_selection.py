"""Sampled replies become training data: the best, the right ones, or pairs."""

import json

import pytest

from launch.select import main as select
from stepaudio_jax.data import read_records
from tests.generation.small_model import write_clip

REWARD = "{'verifier': 'number', 'verifier_weight': 0.8, 'format_weight': 0.2}"


def sample(reply, reasoning="a fast voice", **keys):
    return {
        "reasoning": reasoning,
        "reply": reply,
        "finish_reason": "stop",
        "well_formed": True,
        "problems": [],
        "completion_tokens": 9,
        **keys,
    }


@pytest.fixture
def folder(tmp_path):
    write_clip(tmp_path / "a.wav", 0.3, seed=0)
    spoken = {"type": "audio", "audio": "a.wav", "attributes": {"rate": "fast"}}
    prompts = [
        {"id": "a", "messages": [{"role": "user", "content": [spoken]}], "answer": "7"},
        {"id": "b", "messages": [{"role": "user", "content": "1+1?"}], "answer": "2"},
        {"id": "c", "messages": [{"role": "user", "content": "2+2?"}], "answer": "4"},
    ]
    cut = {"finish_reason": "length", "well_formed": False, "problems": ["not_ended"]}
    replies = [
        {
            "id": "a",
            "samples": [
                sample("8"),
                sample("it is 7", "It is Fast, so"),
                sample("7", "slowly spoken"),
                sample("7", **cut),
            ],
        },
        {"id": "b", "samples": [sample("3"), sample("3")]},
        {"id": "c", "error": "too long"},
    ]
    for name, lines in (("prompts", prompts), ("replies", replies)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def run(folder, *options, reward=REWARD):
    output = folder / "out" / "selected.jsonl"
    output.parent.mkdir(exist_ok=True)
    files = ["--input", folder / "prompts.jsonl", "--replies", folder / "replies.jsonl"]
    select([*map(str, files), "--output", str(output), "--reward", reward, *options])
    return list(read_records(output))


def replies_of(records):
    return [
        (record.id, record.messages[-1].text, record.messages[-1].reasoning) for record in records
    ]


def test_the_best_reply_of_each_dialogue(folder, capsys):
    records = run(folder)
    assert replies_of(records) == [
        ("a", "it is 7", "It is Fast, so"),
        ("b", "3", "a fast voice"),
    ]
    (clip,) = records[0].messages[0].audio
    assert clip.path == str(folder / "a.wav")
    counted = capsys.readouterr().out
    for part in ("dialogues: 3", "unanswered: 1", "replies: 6", "malformed: 1", "kept: 2"):
        assert part in counted


def test_right_replies_with_grounded_reasoning(folder):
    assert replies_of(run(folder, "--keep", "right")) == [
        ("a-0", "it is 7", "It is Fast, so"),
        ("a-1", "7", "slowly spoken"),
    ]
    (folder / "out" / "selected.jsonl").unlink()
    grounded = run(folder, "--keep", "right", "--grounded", "attributes")
    assert replies_of(grounded) == [("a", "it is 7", "It is Fast, so")]


def test_pairs_of_the_best_and_the_worst(folder):
    (record,) = run(folder, "--keep", "pairs", "--min-reward", "0.5")
    assert (record.reference_reply, record.rejected_reply) == ("it is 7", "8")
    assert record.reference_reasoning == "It is Fast, so"
    assert record.answer == "7"


def test_a_pair_has_two_different_texts(folder):
    malformed = {"well_formed": False, "problems": ["think_end_not_on_its_line"]}
    lines = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    lines[0]["samples"] = [sample("7"), sample(" 7", **malformed), sample("8", "another")]
    lines[1]["samples"] = [sample("2"), sample(" 2", **malformed)]  # only the form differs
    (folder / "replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reward = "{'verifier': 'number', 'verifier_weight': 0.1, 'format_weight': 0.9}"
    (record,) = run(folder, "--keep", "pairs", reward=reward)
    assert (record.id, record.reference_reply, record.rejected_reply) == ("a", "7", "8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward", "7"], "--reward='7' must be a Python dict"),
        (["--reward", "{'format_wait': 1.0}"], "unknown key --reward.format_wait"),
        (["--keep", "right", "--reward", "{'format_weight': 1.0}"], "needs a --reward with"),
        (["--grounded", "x"], "'x' is neither 'attributes' nor module:function"),
        (["--min-reward", "2"], "no reply was kept (dialogues: 3"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(folder, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        run(folder, *options)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "out" / "selected.jsonl").exists()


def test_replies_to_other_dialogues_are_refused(folder, capsys):
    lines = (folder / "replies.jsonl").read_text().splitlines()
    (folder / "replies.jsonl").write_text("\n".join([lines[1], lines[0], lines[2]]) + "\n")
    with pytest.raises(SystemExit):
        run(folder)
    assert f"{folder / 'prompts.jsonl'}:1: has the id 'a'" in capsys.readouterr().err
