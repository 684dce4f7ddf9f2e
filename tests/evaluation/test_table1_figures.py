"""Invented verdicts, through each task's own code, give the figures that the paper prints."""

import dataclasses
import json

import pytest

from stepaudio_jax.evaluation.tasks import make_task
from tests.evaluation.verdicts import headline, make_item, score, scored

CHOICE = {"question": "Which?", "choices": ["A dog", "A cat"], "answer": "A dog"}


def choice(task, number, right):
    item = make_item({**CHOICE, "id": str(number)}, str(number))
    return scored(item, score(task, item, "(A) A dog" if right else "(B) A cat"))


def spoken_mqa(task, number, right):
    data = {"question": "What is 2 plus 5?", "answer": ["7"], "split": "short_digit"}
    item = make_item(data, str(number), {"split": "short_digit"})
    return scored(item, score(task, item, "The answer is 7." if right else "The answer is 8."))


def audio_mc(task, number, right):
    data = {"user_turn_1_transcript": "Hello", "rubric": ["polite", "short"]}
    item = make_item(data, str(number))
    met = f'```json\n{{"explanation": "x", "criteria_met": {json.dumps(bool(right))}}}\n```'
    return scored(item, score(task, item, "Hi", ['{"criteria_met": true}', met]))


def big_bench(task, number, right):
    item = make_item({"category": "navigate", "official_answer": "Yes"}, str(number))
    verdict = "an unreadable verdict" if right is None else "CORRECT" if right else "INCORRECT"
    return scored(item, score(task, item, "Yes", [verdict]))


def step_du(task, number, points):
    item = make_item({"question": "?", "answer": "快速"}, str(number))
    return scored(item, score(task, item, "快", [f'{{"score": {points}, "reason": "x"}}']))


def step_spqa(task, number, right):
    item = make_item({"task_type": "speed", "label": "快速", "answer": "语速很快。"}, str(number))
    return scored(item, score(task, item, "不慢", ["YES" if right else "NO"]))


def step_caption(task, number, points):
    data = {"is_multi_speakers": False, "speakers": [{"gender": "女"}]}
    item = make_item(data, str(number))
    verdict = {
        "multi_speaker_judgment_correct": True,
        "overall_score": points,
        "speakers": [{"speaker_index": 1, "field_scores": {"gender": {"score": points}}}],
    }
    return scored(item, score(task, item, "单人，女性。", [json.dumps(verdict)]))


# {column: (task, what makes an item of it)}
COLUMNS = {
    "Audio MC": ("audio_mc", audio_mc),
    "Big Bench": ("big_bench_audio", big_bench),
    "MMSU": ("mmsu", choice),
    "MMAU": ("mmau_mini", choice),
    "Spoken MQA": ("spoken_mqa", spoken_mqa),
    "Step-Caption": ("step_caption", step_caption),
    "Step-DU": ("step_du", step_du),
    "Step-SPQA": ("step_spqa", step_spqa),
}


@pytest.fixture(scope="module")
def table(shared_benchmarks):
    return json.loads((shared_benchmarks / "table1.json").read_text(encoding="utf-8"))


def fitting(fits):
    """Returns k and n of a figure: exact, or the largest smaller denominator that fits."""
    return (fits["k"], fits["n"]) if fits["exact"] else fits["smaller_denominators_that_fit"][0]


def repeated(task, make, values):
    """Returns an item for each value; those of the same value are scored once."""
    made, items = {}, []
    for number, value in enumerate(values):
        if value not in made:
            made[value] = make(task, number, value)
        items.append(dataclasses.replace(made[value], id=str(number), cluster=str(number)))
    return items


def invented(task, column, make, entry):
    """Returns items whose verdicts add up to a printed figure."""
    if column == "Step-Caption":
        mean, count = entry["published"] / 100, 905
        spread = min(mean, 1 - mean)
        # Pairs around the mean, and the mean itself.
        points = [mean + sign * spread * (i / 500) for i in range(count // 2) for sign in (1, -1)]
        return repeated(task, make, [*points, mean])
    k, n = fitting(entry["fits"])
    if column == "Step-DU":  # half points: one in two of 87
        points = [1.0] * (k // 2) + [0.5] * (k % 2)
        points += [0.0] * (n // 2 - len(points))
        # Two halves in the place of a point and a miss add up to the same.
        points[0], points[-1] = 0.5, 0.5
        return repeated(task, make, points)
    verdicts = [True] * k + [False] * (n - k)
    if column == "Big Bench":  # items on which the judge failed have left the denominator
        verdicts += [None] * (1000 - n)
    return repeated(task, make, verdicts)


def figure(row, column):
    """Returns the headline figure of a model's invented items of a column."""
    name, make = COLUMNS[column]
    task = make_task(name)
    assert task.table_column == column
    return headline(task, invented(task, column, make, row["scores"][column]))


def test_each_task_gives_the_figures_of_its_column_and_the_average(table):
    shown = {row["model"]: [] for row in table["models"]}
    for column in COLUMNS:
        for row in table["models"]:
            model, entry = row["model"], row["scores"][column]
            metric = figure(row, column)
            assert f"{100 * metric.value:.2f}" == f"{entry['published']:.2f}", (model, column)
            shown[model].append(round(100 * metric.value, 2))
            if entry["fits"]:
                k, n = fitting(entry["fits"])
                halves = 2 if column == "Step-DU" else 1
                assert (halves * metric.numerator, halves * metric.denominator) == (k, n)
                failed = 1000 - n if column == "Big Bench" else 0
                assert metric.failed == failed
    for row in table["models"]:
        values = shown[row["model"]]
        assert f"{sum(values) / len(values):.2f}" == f"{row['avg']:.2f}"
