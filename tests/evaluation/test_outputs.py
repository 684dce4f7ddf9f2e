"""Outputs from elsewhere: every line scored, other benchmarks left out, bad lines named."""

import contextlib
import gzip
import json

import pytest

from stepaudio_jax.errors import DataError, JudgeError, OutputError
from stepaudio_jax.evaluation.outputs import is_of_benchmark, score_outputs
from stepaudio_jax.evaluation.tasks import make_task
from stepaudio_jax.judge.backends import EndpointBackend
from stepaudio_jax.judge.judge import AnswerSource
from tests.evaluation.benchmark_tables import write_lines

ITEM = {"question": "Which?", "choices": ["Dog", "Cat"], "answer": "Cat"}
NUMBER = {"split": "short_digit", "question": "Which?", "answer": ["7"]}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_line_gets_its_verdicts_and_keeps_its_keys(tmp_path):
    lines = [
        {"item": ITEM, "output": "B", "note": "狗", "official": "old"},
        {"item": ITEM, "output": None, "form": "x"},
        {"item": ITEM, "output": "<think>Cat</think>\nDog"},
    ]
    write_lines(tmp_path / "in.jsonl", lines)
    scores = score_outputs(make_task("mmau"), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    verdicts = [
        {"official": "wrong", "strict": "correct", "answer": "B"},
        {"official": "dropped", "strict": "unparsed", "answer": None},
        {"official": "wrong", "strict": "wrong", "answer": "A"},
    ]
    assert read(tmp_path / "out.jsonl") == [
        line | verdict for line, verdict in zip(lines, verdicts, strict=True)
    ]
    assert (scores.scored, scores.left) == (3, {})
    assert scores.strict == {"correct": 1, "unparsed": 1, "wrong": 1}
    assert scores.official == {"wrong": 2, "dropped": 1}
    assert str(scores).startswith("3 outputs scored; strict: 1 correct")


def test_a_judge_scores_what_no_rule_can(tmp_path, serve):
    row = {
        "user_turn_1_transcript": "Say two colours, in capitals.",
        "rubric": json.dumps(["Two colours", "Capitals"]),
    }
    lines = [
        {"item": row, "output": "<think>easy</think>\nRED, BLUE"},
        {"item": row, "output": "Red, blue"},
        {"item": row, "output": None},
        {"item": row, "output": "lost"},
    ]
    write_lines(tmp_path / "in.jsonl", lines)
    said = {"met": True}

    def say(body):
        text = body["messages"][0]["content"]
        assert "easy" not in text
        met = "RED" in text or "Two colours" in text.rpartition("Assistant:")[2]
        return "?" if "lost" in text and said["met"] else json.dumps({"criteria_met": met})

    server = serve(say)
    backend = EndpointBackend(url=server.url, model="judge", api_key_env=None, retries=0)
    arguments = (make_task("audio_mc"), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=r"in\.jsonl:1: .*give --judge-url and --judge-model"):
        score_outputs(*arguments)
    strict_source = AnswerSource(backend, cache=tmp_path / "cache", max_abstention_rate=0.1)
    with (
        contextlib.closing(strict_source) as source,
        pytest.raises(JudgeError, match="no verdict on 1 of 4 replies"),
    ):
        score_outputs(*arguments, source)
    assert not (tmp_path / "out.jsonl").exists()
    asked = len(server.requests)
    said["met"] = False
    with contextlib.closing(AnswerSource(backend, cache=tmp_path / "cache")) as source:
        scores = score_outputs(*arguments, source)
    assert len(server.requests) == asked + 2, "only what had no verdict is asked again"
    verdicts = [line["judge"] for line in read(tmp_path / "out.jsonl")]
    assert [verdict["score"] for verdict in verdicts] == [1.0, 0.5, 0.0, 0.5]
    assert scores.judge == (2.0, 4, 0)
    assert "judge: 2 points on 4 outputs" in str(scores)


def test_lines_of_other_benchmarks_are_left_out_and_counted(tmp_path):
    lines = [
        {"benchmark": "MMAU", "item": ITEM, "output": "B"},
        {"benchmark": "Spoken-MQA", "item": NUMBER, "output": "seven"},
        {"item": NUMBER, "output": "8"},
    ]
    with gzip.open(tmp_path / "in.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(map(json.dumps, lines)))
    output = tmp_path / "out.jsonl"
    scores = score_outputs(make_task("spoken_mqa"), tmp_path / "in.jsonl.gz", output)
    assert scores.left == {"MMAU": 1}
    assert [(line["strict"], line["answer"]) for line in read(output)] == [
        ("correct", "7"),
        ("wrong", "8"),
    ]
    write_lines(tmp_path / "in.jsonl", lines[:2])
    with pytest.raises(DataError, match="no outputs of MMAR"):
        score_outputs(make_task("mmar"), tmp_path / "in.jsonl", tmp_path / "new.jsonl")
    assert not (tmp_path / "new.jsonl").exists()


def test_a_benchmark_is_known_by_its_name_however_it_is_spelled():
    for name, benchmark in (
        ("mmau_mini", "MMAU"),
        ("mmau_mini", "mmau-mini"),
        ("mmau", "MMAU"),
        ("mmsu", "MMSU"),
        ("spoken_mqa", "spoken mqa"),
        ("mmar", "MMAR"),
    ):
        assert is_of_benchmark(make_task(name), benchmark)
    assert not is_of_benchmark(make_task("mmau"), "MMSU")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "must be an object"),
        ("{", "is not JSON"),
        ('{"output": "B"}', "has no 'item'"),
        ('{"item": {}}', "has no 'output'"),
        ('{"item": {}, "outptu": "B"}', "did you mean 'outptu'"),
        ('{"item": 3, "output": "B"}', "'item' must be an object"),
        ('{"item": {}, "output": 3}', "'output' must be a text or null"),
        ('{"item": {}, "output": "B", "benchmark": 3}', "'benchmark' must be a text"),
        ('{"item": {"choices": ["a"]}, "output": "B"}', "no answer to compare with"),
        ('{"item": {"answer": "a"}, "output": "B"}', "'choices' must be a list"),
        ('{"item": {"answer": "x", "choices": ["b", "c"]}, "output": "B"}', "none of the choices"),
    ],
)
def test_a_line_that_cannot_be_scored_is_named(tmp_path, line, message):
    good = json.dumps({"item": ITEM, "output": "B"})
    (tmp_path / "in.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"in\.jsonl:2: .*{message}"):
        score_outputs(make_task("mmau"), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_is_not_scored_over_itself(tmp_path):
    write_lines(tmp_path / "in.jsonl", [{"item": ITEM, "output": "B"}])
    with pytest.raises(OutputError, match="is the input"):
        score_outputs(make_task("mmau"), tmp_path / "in.jsonl", tmp_path / "in.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no line at all"):
        score_outputs(make_task("mmau"), tmp_path / "empty.jsonl", tmp_path / "out.jsonl")


def test_the_shared_outputs_are_scored_as_the_official_programs_did(shared_benchmarks, tmp_path):
    source = shared_benchmarks / "official_scores.jsonl"
    scored = 0
    for name in ("mmau", "mmsu", "mmar", "spoken_mqa"):
        scores = score_outputs(make_task(name), source, tmp_path / name)
        scored += scores.scored
        by_output = {
            (line["benchmark"], line["item"]["id"], line["output"], line["note"]): line["official"]
            for line in read(source)
        }
        for line in read(tmp_path / name):
            key = (line["benchmark"], line["item"]["id"], line["output"], line["note"])
            assert line["official"] == by_output[key]
    assert scored == 1006
