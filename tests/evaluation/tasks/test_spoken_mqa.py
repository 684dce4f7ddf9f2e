"""Spoken-MQA's splits, its references, AudioBench's rule, and the mean of the splits."""

import pyarrow as pa
import pytest

from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.task import ReplyScore, ScoredItem, Strict
from stepaudio_jax.evaluation.tasks.spoken_mqa import (
    SPLITS,
    SpokenMqa,
    canonical_number,
    extract_number,
)
from tests.evaluation.benchmark_tables import (
    CLIP,
    TEXT_OR_NULL,
    clip,
    prompt_of,
    write_lines,
    write_table,
)

LIST_OR_NULL = pa.struct([("text", pa.list_(pa.string())), ("audio", pa.null())])


def row(number, answer):
    return {
        "context": clip(300 + number),
        "context_transcript": f"What is {number} plus one?",
        "instruction": {"text": "Solve it step by step.", "audio": None},
        "answer": {"text": answer, "audio": None},
    }


def test_lists_and_texts_of_answers_are_read_from_the_splits(tmp_path):
    for split in SPLITS:
        is_list = split.endswith("reasoning")
        rows = [row(number, ["3"] if is_list else "3") for number in range(2)]
        types = {
            "context": CLIP,
            "instruction": TEXT_OR_NULL,
            "answer": LIST_OR_NULL if is_list else TEXT_OR_NULL,
        }
        write_table(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows, types)
    items = SpokenMqa().items(tmp_path)
    assert len(items) == 8
    assert {item.groups["split"] for item in items} == set(SPLITS)
    first = next(item for item in items if item.groups["split"] == "short_digit")
    assert first.id == "short_digit_000"
    assert first.data == {
        "id": "short_digit_000",
        "split": "short_digit",
        "question": "What is 0 plus one?",
        "answer": ["3"],
    }
    assert prompt_of(first)[0] == "Solve it step by step."
    (part,) = first.record.messages[0].audio
    assert part.transcript == "What is 0 plus one?"
    assert len(load_clip(part)) > 0
    alone = SpokenMqa().items(tmp_path / "data" / "long_digit-00000-of-00001.parquet")
    assert [item.id for item in alone] == ["long_digit_000", "long_digit_001"]


def test_rows_of_no_split_and_without_answer_are_named(tmp_path):
    lines = [{"split": "short_digit", "context": None, "question": "Q", "answer": "3"}]
    write_lines(tmp_path / "a.jsonl", lines)
    (item,) = SpokenMqa().items(tmp_path)
    assert prompt_of(item)[0].startswith("Solve")
    write_lines(tmp_path / "a.jsonl", [*lines, {**lines[0], "split": "short_digits"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*did you mean 'short_digit'"):
        SpokenMqa().items(tmp_path)
    for answer, message in ((None, "has no 'answer'"), ([], "has no 'answer'"), (3, "list of")):
        write_lines(tmp_path / "a.jsonl", [*lines, {**lines[0], "answer": answer}])
        with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
            SpokenMqa().items(tmp_path)


@pytest.mark.parametrize(
    ("prediction", "number"),
    [
        ("The answer is 2 + 3 = 5.", "2"),
        ("2 + 3 = 5", "5"),
        ("the answer is 3.\n\nThe answer is 4.", "4"),
        ("The answer is 3.\n\nThe answer is 4.", "3"),
        ("1,234.50", "1234.5"),
        ("3/4", "0.75"),
        ("3/.5", "6"),
        ("1/0", "1/0"),
        ("007/2", "007/2"),
        (".5", "5"),
        ("1e5", "5"),
        ("5/", "5"),
        ("-3 and 4.", "4"),
        ("１２", "12"),
        ("12345678901234567890", "1.2345678901234567e+19"),
        ("nothing", "empty"),
        ("", "empty"),
        ("9" * 5000, "inf"),
        ("9" * 5000 + "/3", ("9" * 5000)[:100]),
    ],
)
def test_numbers_are_extracted_by_the_published_rule(prediction, number):
    assert extract_number(prediction) == number


def test_references_are_normalized_in_the_reasoning_splits_only():
    task = SpokenMqa()
    item = {"split": "short_digit", "question": "Q", "answer": "12.50"}
    assert task.official(item, "12.50") == "wrong"
    assert task.official(item | {"split": "single_step_reasoning"}, "12.50") == "correct"
    solved = {**item, "split": "multi_step_reasoning", "answer": ["12*90=1080\n#### 1,080"]}
    assert task.official(solved, "1080") == "correct"
    assert task.strict(solved, "1,080").outcome == "correct"
    two = item | {"answer": ["18", "18.5"]}
    assert task.official(two, "18.5") == "wrong"
    assert task.strict(two, "18.5").outcome == "correct"
    assert task.strict(two, "19").outcome == "wrong"
    assert task.strict(item, "no idea").outcome == "unparsed"
    assert task.official(item, None) == "wrong"
    with pytest.raises(DataError, match="'split' must be one of"):
        task.official({"answer": "3"}, "3")
    assert canonical_number("7.0") == "7"


def scored(split, outcomes):
    return [
        ScoredItem(
            f"{split}{number}",
            {"split": split},
            f"{split}{number}",
            (ReplyScore(Strict(outcome), "dropped" if outcome == "unparsed" else outcome),),
        )
        for number, outcome in enumerate(outcomes)
    ]


def test_the_macro_average_is_the_mean_of_the_splits():
    items = scored("short_digit", ["correct"] * 9 + ["wrong"])
    items += scored("long_digit", ["correct"] * 50 + ["unparsed"] * 50)
    figures = {(m.scoring, m.name, m.group): m for m in SpokenMqa().metrics(items)}
    assert figures["strict", "accuracy", ""].value == pytest.approx(59 / 110)
    macro = figures["strict", "macro accuracy", ""]
    assert (macro.value, macro.denominator, macro.unparsed) == (pytest.approx(0.7), 2, 50)
    assert macro.interval.low < 0.7 < macro.interval.high
    assert figures["official", "macro accuracy", ""].value == pytest.approx(0.95)


def test_the_shared_samples_are_read(shared_benchmarks):
    items = SpokenMqa().items(shared_benchmarks / "SpokenMQA")
    assert len(items) == 19
    assert all(item.record.messages[0].audio[0].transcript for item in items)
