"""Agreement of people and judges against scikit-learn, krippendorff, and sums written out."""

import itertools
import json

import numpy as np
import pytest

from launch.judge import main as launch
from stepaudio_jax.data import read_records
from stepaudio_jax.errors import DataError
from stepaudio_jax.judge.agreement import krippendorff_alpha, weighted_kappa
from stepaudio_jax.judge.human_report import report_on_people
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.query import JudgeAnswer
from stepaudio_jax.judge.verdict import comparisons
from tests.judge.fakes import FunctionBackend


def random_table(seed, raters, units, levels, missing):
    """Returns verdicts [raters, units] that agree somewhat, NaN where one is missing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(-(levels // 2), levels // 2 + 1, units)
    noise = rng.integers(-1, 2, (raters, units))
    table = np.clip(truth + noise, -(levels // 2), levels // 2).astype(float)
    table[rng.random(table.shape) < missing] = np.nan
    return table


def units_of(table):
    return [[None if np.isnan(value) else value for value in column] for column in table.T]


def alpha_by_coincidences(table, metric):
    """Krippendorff's alpha in float64 from the matrix of coincidences."""
    values = np.unique(table[~np.isnan(table)])
    matrix = np.zeros((len(values), len(values)))
    for column in table.T:
        index = np.searchsorted(values, column[~np.isnan(column)])
        for first, second in itertools.permutations(range(len(index)), 2):
            matrix[index[first], index[second]] += 1 / (len(index) - 1)
    totals = matrix.sum(0)
    distance = np.zeros_like(matrix)
    for first, second in np.ndindex(matrix.shape):
        low, high = min(first, second), max(first, second)
        between = totals[low : high + 1].sum() - (totals[low] + totals[high]) / 2
        distance[first, second] = between**2 if metric == "ordinal" else first != second
    expected = np.outer(totals, totals) * distance
    return 1 - (totals.sum() - 1) * (matrix * distance).sum() / expected.sum()


@pytest.mark.parametrize("metric", ["ordinal", "nominal"])
@pytest.mark.parametrize("seed", range(6))
def test_alpha_equals_independent_sums(seed, metric):
    table = random_table(seed, raters=2 + seed, units=40, levels=7, missing=0.15 * (seed % 3))
    value = krippendorff_alpha(units_of(table), metric)
    assert value == pytest.approx(alpha_by_coincidences(table, metric), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_alpha_equals_the_package_krippendorff(seed):
    package = pytest.importorskip("krippendorff")
    table = random_table(seed, raters=4, units=60, levels=5, missing=0.2)
    expected = package.alpha(table, level_of_measurement="ordinal")
    assert krippendorff_alpha(units_of(table)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_kappa_equals_moments(seed):
    first, second = random_table(seed, raters=2, units=80, levels=7, missing=0.0)
    # Quadratic weights: 1 - E (x - y)^2 / (Var x + Var y + (E x - E y)^2).
    apart = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    expected = 1 - np.mean((first - second) ** 2) / apart
    pairs = list(zip(first, second, strict=True))
    assert weighted_kappa(pairs) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow  # the import
@pytest.mark.parametrize("seed", range(4))
def test_kappa_equals_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    first, second = random_table(seed, raters=2, units=80, levels=7, missing=0.0)
    halves = second + np.random.default_rng(seed).choice([-0.5, 0.0, 0.5], 80)
    # Its labels are whole numbers: doubled, halves are too, and the weights keep their ratios.
    # A step of its labels is one place in their list, so the list has all places.
    expected = metrics.cohen_kappa_score(
        (2 * first).astype(int),
        (2 * halves).astype(int),
        weights="quadratic",
        labels=list(range(-8, 9)),
    )
    pairs = list(zip(first, halves, strict=True))
    assert weighted_kappa(pairs) == pytest.approx(expected, abs=1e-12)


def test_what_cannot_be_compared_has_no_figure():
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([[1, None], [None, 2]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1, 1], [2, 2]]) == 1.0
    assert weighted_kappa([]) is None
    assert weighted_kappa([(1, 1), (1, 1)]) is None
    assert weighted_kappa([(1, 1), (2, 2)]) == 1.0
    assert weighted_kappa([(-1, 1), (1, -1)]) == pytest.approx(-1.0)


def annotated(table, **keys):
    """Returns records whose annotations are a table's verdicts."""
    rng = np.random.default_rng(0)
    rows = []
    for unit, column in enumerate(table.T):
        annotations = [
            {
                "annotator": f"ann{rater}",
                "verdict": None if np.isnan(value) else int(value),
                "shown_first": "ab"[rng.integers(2)],
                "reasons": ["tone"] if unit % 2 else [],
            }
            for rater, value in enumerate(column)
        ]
        rows.append(
            {
                "id": f"u{unit}",
                "source": f"s{unit % 3}",
                "messages": [{"role": "user", "content": f"{unit}?"}],
                "chosen": f"good {unit}",
                "rejected": f"bad {unit}",
                "annotations": annotations,
                **keys,
            }
        )
    return rows


@pytest.fixture
def write(tmp_path):
    def write_rows(rows):
        path = tmp_path / "human.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_rows


def test_the_report_of_a_random_table(write):
    table = random_table(3, raters=3, units=30, levels=7, missing=0.2)
    records = list(read_records(write(annotated(table))))
    judged = np.random.default_rng(1).integers(-3, 4, 30)
    words = {level: text for text, level in comparisons(7).items()}

    def answer(question):
        unit = next(unit for unit in range(30) if f"good {unit}\n" in question)
        level = judged[unit]
        if question.index(f"good {unit}\n") > question.index(f"bad {unit}\n"):
            level = -level
        return json.dumps({"comparison": words[int(level)]})

    backend = FunctionBackend("j", lambda question: JudgeAnswer(answer(question)))
    judge = Judge(backend, JudgePrompt())
    report = report_on_people(records, judge, name="j")
    given = ~np.isnan(table)
    assert report.all.verdicts == given.sum()
    assert report.skipped == (~given).sum()
    assert report.all.alpha == pytest.approx(alpha_by_coincidences(table, "ordinal"), abs=1e-12)
    mirrored = np.concatenate([table, -table], 1)
    assert report.all.alpha_both_orders == pytest.approx(
        alpha_by_coincidences(mirrored, "ordinal"), abs=1e-12
    )
    pairs = [(value, judged[unit]) for (_, unit), value in np.ndenumerate(table)]
    pairs = [pair for pair in pairs if not np.isnan(pair[0])]
    assert report.all.kappa == pytest.approx(weighted_kappa(pairs), abs=1e-12)
    odd = table[:, 1::2]
    assert report.by_reason["tone"].alpha == pytest.approx(
        alpha_by_coincidences(odd, "ordinal"), abs=1e-12
    )
    for source in range(3):
        assert report.by_source[f"s{source}"].alpha == pytest.approx(
            alpha_by_coincidences(table[:, source::3], "ordinal"), abs=1e-12
        )
    assert report.judge.position_bias == 0
    right = [0.5 if not level else float(value * level > 0) for value, level in pairs if value]
    assert report.judge.agreement == pytest.approx(np.mean(right))
    first = [
        (item.verdict > 0) == (item.shown_first == "a")
        for record in records
        for item in record.annotations
        if item.verdict
    ]
    assert report.first_preferred == pytest.approx(np.mean(first))
    assert sum(each.verdicts for each in report.annotators.values()) == report.all.verdicts


def test_a_judge_with_an_ordinal_rubric_is_not_compared_by_criterion(write):
    rows = annotated(np.array([[2.0, 1.0, -1.0]]), rubric=["It is kind."])
    for row in rows:
        for item in row["annotations"]:
            item["criteria"] = [{"a": True, "b": False}]
    best = {level: text for text, level in comparisons(7).items()}[3]
    backend = FunctionBackend("j", lambda _: JudgeAnswer(json.dumps({"comparison": best})))
    judge = Judge(backend, JudgePrompt(rubric="ordinal"))
    report = report_on_people(list(read_records(write(rows))), judge, name="j")
    assert report.judge.abstained == 0
    assert report.judge.criteria_agreement is None


def test_gold_pairs_show_who_does_not_look(write):
    table = np.array([[2.0, 1.0, -1.0], [-2.0, -1.0, -3.0]])
    rows = annotated(table)
    for row in rows:
        for item in row["annotations"]:
            item["is_gold"] = True
    report = report_on_people(list(read_records(write(rows))))
    assert report.annotators["ann0"].gold_right == pytest.approx(2 / 3)
    assert report.annotators["ann1"].gold_right == 0
    assert report.judge is None


def test_the_command_reports_people_without_a_judge(write, capsys):
    table = random_table(5, raters=3, units=12, levels=7, missing=0.0)
    launch(["report", "--human", str(write(annotated(table)))])
    printed = json.loads(capsys.readouterr().out)
    assert printed["all"]["alpha"] == pytest.approx(alpha_by_coincidences(table, "ordinal"))
    assert printed["all"]["kappa"] is None


def test_mistakes_are_said(write, capsys):
    rows = annotated(random_table(5, raters=2, units=3, levels=7, missing=0.0))
    for row in rows:
        row["annotations"][0]["verdict"] = 3
    path = write(rows)
    with pytest.raises(DataError, match=r"human\.jsonl:1: the verdict 3 is outside a scale of 5"):
        report_on_people(list(read_records(path)), levels=5)
    for row in rows:
        del row["annotations"]
    with pytest.raises(DataError, match="no record has 'annotations'"):
        report_on_people(list(read_records(write(rows))))
    for arguments in (["--input", "x"], ["--human", "x", "--url", "http://x/v1"], []):
        with pytest.raises(SystemExit):
            launch(["report", *arguments])
