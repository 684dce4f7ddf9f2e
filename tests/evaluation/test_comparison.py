"""Two folders of results compared: paired by id, what is left out counted, differences said."""

import json

import pytest

from stepaudio_jax.errors import DataError, OutputError
from stepaudio_jax.evaluation.comparison import compare, compare_results, tabulate_comparison
from stepaudio_jax.evaluation.grading import as_text
from stepaudio_jax.evaluation.paired_statistics import compare_paired
from stepaudio_jax.evaluation.results import Reply, make_samples
from stepaudio_jax.evaluation.results_files import RESULTS
from stepaudio_jax.evaluation.task import ReplyScore, ScoredItem, Strict
from stepaudio_jax.reports.comparison_page import write_comparison
from tests.evaluation.benchmarks import (
    CORRECT,
    UNPARSED,
    WRONG,
    Judging,
    Tones,
    benchmark_results,
    item,
    judged,
    model,
    task_results,
    write_folder,
)

A = [CORRECT] * 6 + [WRONG] * 2 + [UNPARSED] * 2
B = [CORRECT] * 4 + [WRONG, UNPARSED] + [CORRECT] + [WRONG] * 3


def test_items_are_paired_and_each_scoring_is_compared(tmp_path):
    compared = compare(write_folder(tmp_path / "a", A), write_folder(tmp_path / "b", B, name="new"))
    (task,) = compared.tasks
    strict, official = task.figures
    assert strict.is_headline
    assert (strict.scoring, strict.metric) == ("strict", "accuracy")
    assert strict.comparison == compare_paired([1] * 6 + [0] * 4, [1] * 4 + [0, 0, 1, 0, 0, 0])
    assert [(f.id, f.a, f.b) for f in strict.flips] == [
        ("item-4", 1, 0),
        ("item-5", 1, 0),
        ("item-6", 0, 1),
    ]
    assert official.comparison.n == 7
    assert official.left_out == 3
    assert (task.warnings, task.only_a, task.only_b) == ((), (), ())
    assert task.adjusted_p == strict.comparison.p_value
    text = as_text(tabulate_comparison(compared))
    assert "A is our-model, B is new" in text
    assert "tones, official: 3 items leave the denominator in A or B, and are left out." in text
    assert "60.00  50.00      -10.00" in text


def test_items_of_one_result_only_are_counted_and_named(tmp_path):
    a = write_folder(tmp_path / "a", A)
    b = write_folder(tmp_path / "b", B[:3], items_total=10, limit=3)
    (task,) = compare(a, b).tasks
    assert task.headline.comparison.n == 3
    assert task.only_a == tuple(f"item-{i}" for i in range(3, 10))
    text = as_text(tabulate_comparison(compare(b, a)))
    assert (
        "tones: 7 items are only in B, and left out: item-3, item-4, item-5, item-6, item-7" in text
    )
    assert "and 2 more" in text


def test_what_else_differs_is_said(tmp_path):
    a = write_folder(tmp_path / "a", A)
    b = write_folder(
        tmp_path / "b",
        [(reply, reply) for reply in B],
        mode="silence",
        version="2",
        data_hash="e" * 64,
        prompt_hashes={"user": "b" * 64},
        sampling={"temperature": 0.0, "max_new_tokens": 32000},
        judge=model("judge"),
    )
    compared = compare(a, b)
    assert compared.warnings == ("A was given the sound, and B the silence",)
    assert compared.tasks[0].warnings == (
        "version 1 in A, 2 in B",
        "the data differ (other hash): items are paired by id all the same",
        "the prompt user differs",
        "another judge, or another setting of it: none in A, judge in B",
        "decoding differs: temperature 0.7 and 0.0",
        "1 samples of an item in A, 2 in B",
    )


def test_failed_items_count_as_wrong_and_samples_are_averaged(tmp_path):
    a = write_folder(tmp_path / "a", [(CORRECT, WRONG), "no reply", CORRECT])
    b = write_folder(tmp_path / "b", [CORRECT, CORRECT, CORRECT])
    (figure, _) = compare(a, b).tasks[0].figures
    assert (figure.comparison.mean_a, figure.comparison.mean_b) == (0.5, 1)
    assert [(f.id, f.a) for f in figure.flips] == [("item-0", 0.5), ("item-1", 0)]


def task_of(task, scores):
    items, samples = [], []
    for number, score in enumerate(scores):
        question = item(number, task=task.name)
        scored_item = ScoredItem(question.id, {}, f"clip-{number // 2}", (score,), "", {"words": 4})
        items.append(scored_item)
        samples += make_samples(task, question, scored_item, [Reply("x")])
    return task_results(task, items), samples


def test_a_headline_of_its_own_is_compared_by_its_parts():
    results, samples = zip(
        *(task_of(Judging(), [judged(v) for v in values]) for values in ([1, 0.5, 1], [0.5, 1, 1])),
        strict=True,
    )
    (task,) = compare_results(
        benchmark_results(results[0]), samples[0], benchmark_results(results[1]), samples[1]
    ).tasks
    apr, accuracy = task.figures
    assert (apr.metric, apr.comparison.mean_a) == ("APR", pytest.approx(2 / 3))
    assert (accuracy.scoring, accuracy.comparison.mean_a) == ("judge", pytest.approx(2.5 / 3))


class Errors(Tones):
    """Errors over words."""

    name, headline = "errors", ("strict", "WER")

    def headline_part(self, reply, data):
        return (4.0 * (1 - reply.strict.value), 4.0) if reply else (4.0, 4.0)


def test_error_rates_are_compared_by_words():
    scores = [[0.5, 1, 0.75, 1], [1, 1, 0.75, 0.5]]
    made = [
        task_of(Errors(), [ReplyScore(strict=Strict("wrong", score=v)) for v in values])
        for values in scores
    ]
    (a, samples_a), (b, samples_b) = made
    (task,) = compare_results(
        benchmark_results(a), samples_a, benchmark_results(b), samples_b
    ).tasks
    comparison = task.headline.comparison
    assert (comparison.mean_a, comparison.mean_b) == pytest.approx((3 / 16, 3 / 16))
    assert comparison.n == 4
    expected = compare_paired([2, 0, 1, 0], [0, 0, 1, 2], weights=[4] * 4)
    assert comparison.interval == expected.interval


def test_tasks_of_one_result_only_are_named_and_several_p_are_adjusted(tmp_path):
    first, samples_a = task_of(Tones(), A)
    second, samples_b = task_of(Judging(), [judged(1.0)] * 9 + [judged(0.0)])
    third, samples_c = task_of(Judging(), [judged(0.0)] * 10)
    other, samples_d = task_of(Tones(), B)
    a = benchmark_results(first, second)
    compared = compare_results(
        a, samples_a + samples_b, benchmark_results(third, other), samples_c + samples_d
    )
    assert [task.task for task in compared.tasks] == ["tones", "judging"]
    low = compared.tasks[1].headline.comparison.p_value
    assert compared.tasks[1].adjusted_p == pytest.approx(2 * low)
    assert "allowing for their number (Holm)" in as_text(tabulate_comparison(compared))
    single = compare_results(a, samples_a + samples_b, benchmark_results(third), samples_c)
    assert single.only_a == ("tones",)
    assert "only in A: tones." in as_text(tabulate_comparison(single))


def test_the_page_and_the_json_say_the_same(tmp_path):
    a, b = write_folder(tmp_path / "a", A), write_folder(tmp_path / "b", B, name="<new>")
    page, values = tmp_path / "page.html", tmp_path / "comparison.json"
    compared = write_comparison(a, b, page=page, json_file=values)
    content = json.loads(values.read_text(encoding="utf-8"))
    assert content["tasks"][0]["figures"][0]["flips"][0] == {"id": "item-4", "a": 1, "b": 0}
    assert content["b"] == "<new>"
    text = page.read_text(encoding="utf-8")
    assert "<new>" not in text
    assert "&lt;new&gt;" in text
    assert "tones: 3 items, 1 better and 2 worse in B" in text
    assert compared == compare(a, b)
    write_comparison(a, b, page=page, json_file=values)
    with pytest.raises(OutputError, match="is the input"):
        write_comparison(a, b, page=a / RESULTS)
    with pytest.raises(OutputError, match="both the page and the JSON"):
        write_comparison(a, b, page=tmp_path / "x", json_file=tmp_path / "x")


def test_results_without_a_task_in_common_are_compared_to_nothing(tmp_path):
    a = write_folder(tmp_path / "a", A)
    b = write_folder(tmp_path / "b", B)
    path = b / RESULTS
    path.write_text(path.read_text(encoding="utf-8").replace('"tones"', '"hums"'), encoding="utf-8")
    compared = compare(a, b)
    assert (compared.tasks, compared.only_a, compared.only_b) == ((), ("tones",), ("hums",))
    with pytest.raises(DataError, match="does not exist"):
        compare(a, tmp_path / "gone")
