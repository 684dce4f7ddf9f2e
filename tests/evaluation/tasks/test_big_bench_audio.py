"""Big Bench Audio: its folder, the closed answers, the judge's one word."""

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.tasks.big_bench_audio import BigBenchAudio, answer_of
from stepaudio_jax.text import AudioPart, TextPart
from tests.evaluation.verdicts import figure, make_item, score, scored, write_lines

ROWS = [
    {
        "category": "formal_fallacies",
        "official_answer": "valid",
        "file_name": "data/q_7.mp3",
        "id": 7,
    },
    {"category": "navigate", "official_answer": "No", "file_name": "data/q_300.mp3", "id": 300},
    {
        "category": "object_counting",
        "official_answer": 12,
        "file_name": "data/x.mp3",
        "id": 1059,
        "transcript": "How many pears do I have?",
    },
]


@pytest.fixture
def task():
    return BigBenchAudio()


def test_rows_become_questions(task, tmp_path):
    write_lines(tmp_path / "metadata.jsonl", ROWS)
    items = task.items(tmp_path)
    assert [item.id for item in items] == ["7", "300", "1059"]
    assert [item.groups["category"] for item in items] == [row["category"] for row in ROWS]
    clip, line = items[2].record.messages[0].parts
    assert clip == AudioPart(f"{tmp_path}/data/x.mp3", transcript="How many pears do I have?")
    assert isinstance(line, TextPart)
    assert not line.text.endswith("\n")


def test_an_empty_prompt_asks_with_the_sound_alone(task, tmp_path):
    write_lines(tmp_path / "metadata.jsonl", ROWS)
    (tmp_path / "model_prompt.txt").write_text("\n")
    task.use_prompts(tmp_path)
    assert len(task.items(tmp_path)[0].record.messages[0].parts) == 1
    assert "model_prompt.txt (given by the user)" in task.prompt_sources


@pytest.mark.parametrize(
    ("answer", "reply", "outcome", "read"),
    [
        ("valid", "It is valid.", "correct", "valid"),
        ("valid", "It is invalid.", "wrong", "invalid"),
        ("No", "Nope.", "correct", "no"),
        ("Yes", "Nothing was said.", "unparsed", None),
        ("12", "A dozen.", "correct", "12"),
        (12, "13 in total", "wrong", "13"),
        ("12", None, "unparsed", None),
        ("Yes", "<think>Yes", "unparsed", None),
    ],
)
def test_closed_answers_are_read(task, answer, reply, outcome, read):
    strict = task.strict({"official_answer": answer}, reply)
    assert (strict.outcome, strict.answer) == (outcome, read)


@pytest.mark.parametrize("answer", [None, "", "maybe", "-1", "1.5", True, [], "9" * 20])
def test_an_answer_of_another_kind_is_refused(task, tmp_path, answer):
    with pytest.raises(DataError, match="'official_answer' must be"):
        answer_of({"official_answer": answer})
    write_lines(tmp_path / "metadata.jsonl", [{**ROWS[0], "official_answer": answer}])
    with pytest.raises(DataError, match=r"metadata\.jsonl:1: 'official_answer' must be"):
        task.items(tmp_path)


def test_the_judge_is_given_what_there_is(task):
    item = make_item(ROWS[2])
    (query,) = task.queries(item, "", "<think>11?</think>12 {question}")
    for text in ("How many pears do I have?", "answer: 12\n", "answer: 12 {question}\n"):
        assert text in query.text
    assert "11?" not in query.text
    assert task.judged(item, "", "12", ["CORRECT"]).details == {}
    unknown = make_item(ROWS[0])
    assert task.judged(unknown, "", "x", ["CORRECT"]).details == {"question_known": False}


def test_a_judge_that_fails_leaves_the_denominator(task):
    item = make_item(ROWS[0], groups={"category": "formal_fallacies"})
    answers = (["CORRECT"], ["**INCORRECT**."], ["It is CORRECT"], [None], ["CORRECT"])
    items = [scored(item, score(task, item, "valid", each)) for each in answers]
    items.append(scored(item, error="clip is missing"))
    items.append(scored(item, score(task, item, "", [])))
    metrics = task.metrics(items)
    judged = figure(metrics, "judge", "accuracy")
    assert (judged.numerator, judged.denominator, judged.failed) == (2, 4, 3)
    whole = figure(metrics, "judge", "accuracy_failures_0")
    assert (whole.numerator, whole.denominator) == (2, 7)
    strict = figure(metrics, "strict", "accuracy", "category=formal_fallacies")
    assert (strict.numerator, strict.denominator, strict.unparsed) == (5, 7, 1)
    assert task.headline_part(items[1].replies[0], item.data) == (0.0, 1.0)
    assert task.headline_part(items[2].replies[0], item.data) is None
    without = score(task, item, "valid")
    assert task.headline_part(without, item.data) == (1.0, 1.0)


def test_three_runs_count_in_the_mean(task):
    items = [make_item(ROWS[0], str(number)) for number in range(10)]
    runs = [[f"{'IN' * (number < wrong)}CORRECT" for number in range(10)] for wrong in (1, 3, 5)]
    replied = [
        scored(item, *(score(task, item, "valid", [run[number]]) for run in runs))
        for number, item in enumerate(items)
    ]
    assert figure(task.metrics(replied), "judge", "accuracy").value == pytest.approx(0.7)


def test_the_sample_is_read(task, shared_benchmarks):
    items = task.items(shared_benchmarks / "BigBenchAudio")
    assert len(items) == 20
    assert items[-1].id == "999"
    for item in items:
        answer = item.data["official_answer"]
        assert task.strict(item.data, f"The answer is {answer}.").outcome == "correct"


def test_other_folders_are_refused(task, tmp_path):
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"metadata\.jsonl with the clips of Big Bench Audio"):
        task.items(tmp_path)
