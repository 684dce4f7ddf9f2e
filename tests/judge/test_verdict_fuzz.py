"""Five thousand answers of a judge: only the judge's own verdict is parsed, and nothing raises."""

import random

import pytest

from stepaudio_jax.judge.verdict import Abstention, Verdict, parse_verdict
from tests.judge.random_answers import KINDS, draw_answer

ANSWERS = 5000


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_judges_own_verdict_counts(kind):
    rng = random.Random(kind)
    for _ in range(-(-ANSWERS // len(KINDS))):
        drawn = draw_answer(rng, kind, size=rng.choice((100, 1000, 6000)))
        question = drawn.question
        read = parse_verdict(
            drawn.text,
            levels=7,
            criteria=question.criteria,
            code=question.code,
            in_material=question.in_material,
        )
        if drawn.open:
            assert isinstance(read, Verdict | Abstention)
        elif drawn.verdict is None:
            assert isinstance(read, Abstention), ascii(drawn)
        else:
            assert read == drawn.verdict, ascii(drawn)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 500_000,
        '{"a":' * 100_000,
        "[" * 500_000 + "]" * 500_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '"{' * 250_000 + "}",
        '{"comparison": "a is better", "n": ' + "9" * 500_000 + "}",
        "\\" * 500_000 + '"}',
        '{"a": "' + '\\"' * 250_000 + '"}',
        "{" + ", ".join(f'"{number}": 0' for number in range(50_000)) + ', "0": 0}',
        " " * 500_000 + "`" * 500_000 + " " * 500_000,
        '{"comparison": "' + "a" * 500_000 + '"}',
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_half_a_megabyte_of_anything_is_no_verdict(text):
    assert isinstance(parse_verdict(text, levels=7), Abstention)
