"""The published rules and the strict reading, on outputs that were scored by official programs."""

import collections
import json

import pytest

from stepaudio_jax.evaluation.multiple_choice import strict_choice
from stepaudio_jax.evaluation.tasks import make_task
from stepaudio_jax.evaluation.tasks.spoken_mqa import extract_number
from stepaudio_jax.evaluation.word_sets import matches_by_words

TASKS = {"MMAU": "mmau_mini", "MMSU": "mmsu", "MMAR": "mmar", "Spoken-MQA": "spoken_mqa"}
LETTERS = "ABCDEFGH"
MIN_AGREEMENT = 0.97
MIN_STRICT = 0.997  # of the items, for every phrasing
# Options that are letters of other options: "D" is the text of one and the letter of another.
AMBIGUOUS = (["G", "A#", "D", "E"], ["C", "D", "G", "A"])

# What an answerer that is always right replies -> how many of the 1,000 items the published rule
# calls right, with the options as on GitHub and as on the Hub; None for what is not published.
PHRASINGS = {
    "{text}": (1000, 76),
    "{letter}": (2, 2),
    "{letter}. {text}": (967, 1000),
    "The correct answer is {letter}. {text}": (879, 907),
    "{question} {text}": (827, 66),
    "The answer is {letter}.": None,
    "**{letter}**": None,
    "$\\boxed{{\\text{{{text}}}}}$": None,
    "<think>\nIt could be {wrong}. No.\n</think>\n\nThe answer is {text}.": None,
    "正确答案是{text}。": None,
    "我认为应该选{letter}，因为声音符合。": None,
    "{options}\nAnswer: {letter}": None,
    '{{"answer": "{letter}"}}': None,
    "It is not {wrong}; it is {text}.": None,
    "{wrong_letter}. Wait, actually {letter}.": None,
}


@pytest.fixture(scope="module")
def lines(shared_benchmarks):
    text = (shared_benchmarks / "official_scores.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_published_rules_give_the_official_verdict_on_every_line(lines):
    tasks = {benchmark: make_task(name) for benchmark, name in TASKS.items()}
    verdicts = [tasks[line["benchmark"]].official(line["item"], line["output"]) for line in lines]
    assert len(lines) == 1006
    assert verdicts == [line["official"] for line in lines]
    numbers = [line for line in lines if "official_extracted" in line]
    assert [extract_number(line["output"]) for line in numbers] == [
        line["official_extracted"] for line in numbers
    ]


def test_the_strict_reading_agrees_with_a_careful_reader(lines):
    tasks = {benchmark: make_task(name) for benchmark, name in TASKS.items()}
    agreeing, total = collections.Counter(), collections.Counter()
    for line in lines:
        strict = tasks[line["benchmark"]].strict(line["item"], line["output"])
        is_correct = strict.outcome == "correct"
        assert not (is_correct and line["sensible"] == "wrong"), line
        if line["sensible"] != "unclear":
            total[line["benchmark"]] += 1
            agreeing[line["benchmark"]] += is_correct == (line["sensible"] == "correct")
    assert all(agreeing[name] >= MIN_AGREEMENT * total[name] for name in TASKS)


@pytest.fixture(scope="module")
def mini_rows(shared_benchmarks):
    text = (shared_benchmarks / "MMAU" / "mmau-test-mini.json").read_text(encoding="utf-8")
    return json.loads(text)


def oracle_verdicts(rows):
    """For each phrasing: right by the strict reading, and by the published rule in both forms."""
    counts = {phrasing: [0, 0, 0] for phrasing in PHRASINGS}
    for row in rows:
        choices, answer = row["choices"], row["answer"]
        shipped = [f"({LETTERS[index]}) {choice}" for index, choice in enumerate(choices)]
        right = choices.index(answer)
        wrong = next(
            index
            for index, choice in enumerate(choices)
            if choice.strip().casefold() != answer.strip().casefold()
        )
        values = {
            "text": answer.strip(),
            "letter": LETTERS[right],
            "question": row["question"],
            "wrong": choices[wrong].strip(),
            "wrong_letter": LETTERS[wrong],
            "options": "\n".join(
                f"{LETTERS[index]}. {choice}" for index, choice in enumerate(choices)
            ),
        }
        for phrasing, count in counts.items():
            output = phrasing.format(**values)
            strict = strict_choice(output, choices, answer, question=row["question"])
            count[0] += strict.outcome == "correct"
            count[1] += matches_by_words(output, answer, choices)
            count[2] += matches_by_words(output, shipped[right], shipped)
    return counts


def test_an_answerer_that_is_always_right_is_read_as_right(mini_rows):
    rows = [row for row in mini_rows[::20] if row["choices"] not in AMBIGUOUS]
    for phrasing, (strict, *_) in oracle_verdicts(rows).items():
        assert strict == len(rows), phrasing


@pytest.mark.slow
def test_an_answerer_that_is_always_right_has_the_published_figures(mini_rows):
    assert sum(row["choices"] in AMBIGUOUS for row in mini_rows) == len(AMBIGUOUS)
    for phrasing, (strict, *official) in oracle_verdicts(mini_rows).items():
        assert strict >= MIN_STRICT * len(mini_rows), phrasing
        assert PHRASINGS[phrasing] in (None, tuple(official)), phrasing
