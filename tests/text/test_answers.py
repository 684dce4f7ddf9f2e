"""The reader of answers: tables of replies, benchmark outputs and verdicts, hostile replies."""

import json
import random
from fractions import Fraction

import pytest

from stepaudio_jax.rl import verifiers
from stepaudio_jax.text import answers
from stepaudio_jax.text.answers import (
    matches_choice,
    normalize_answer,
    read_choice,
    read_number,
    read_yes_or_no,
)
from tests.text.answer_tables import CHOICES, NUMBERS, OPTION_TEXTS, YES_OR_NO

LETTERS = "ABCD"


def test_the_tables_have_at_least_sixty_pairs_each():
    assert min(map(len, (CHOICES, NUMBERS, YES_OR_NO))) >= 60


def test_answer_letters_are_read_as_in_the_table():
    assert [(reply, read_choice(reply)) for reply, _ in CHOICES] == CHOICES


def test_a_choice_is_right_for_its_letter_in_every_form_and_for_no_other():
    forms = ("{}", "({})", "{}.", "({}) the text of this option", "{}. the text of this option")
    for index, (reply, letter) in enumerate(CHOICES):
        for answer in LETTERS:
            form = forms[index % len(forms)]
            assert verifiers.choice(reply, form.format(answer)) is (letter == answer), (
                reply,
                answer,
            )
        if letter is not None:
            assert verifiers.choice(reply, letter.lower()), reply


def test_option_texts_count_where_the_other_options_are_not_known():
    assert [
        (reply, answer, matches_choice(reply, answer)) for reply, answer, _ in OPTION_TEXTS
    ] == OPTION_TEXTS


def quantity(text):
    """The number or the range that a text of `NUMBERS` stands for."""
    if text is None:
        return None
    low, dash, high = text[1:].partition("-")
    numbers = (Fraction(text[0] + low), Fraction(high)) if dash else (Fraction(text),)
    return answers.NumberRange(*numbers) if dash else numbers[0]


def test_answer_numbers_are_read_as_in_the_table():
    assert [(reply, read_number(reply)) for reply, _ in NUMBERS] == [
        (reply, quantity(text)) for reply, text in NUMBERS
    ]


def test_a_number_is_right_for_itself_and_for_no_neighbour():
    for reply, text in NUMBERS:
        value = quantity(text)
        if value is None:
            assert not any(
                verifiers.number(reply, answer) for answer in ("0", "1", "3", "5", "7", "-19", "19")
            ), reply
        else:
            assert verifiers.number(reply, text), reply
            assert not verifiers.number(reply, "123456.5"), reply
        if isinstance(value, answers.NumberRange):
            ends = {str(end) for end in (value.first, value.last, -value.last)}
            assert not any(verifiers.number(reply, end) for end in ends), reply


def test_yes_and_no_are_read_as_in_the_table():
    assert [(reply, read_yes_or_no(reply)) for reply, _ in YES_OR_NO] == YES_OR_NO
    for reply, says in YES_OR_NO:
        for answer, meaning in (
            ("yes", True),
            ("No.", False),
            ("是的", True),
            ("不是", False),
            ("**Yes**", True),
        ):
            assert verifiers.yes_or_no(reply, answer) is (says is meaning), (reply, answer)


def test_exact_text_is_the_same_however_its_characters_are_written():
    same = [
        ("Cafe\u0301", "Café"),
        ("한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"),
        ("ＡＢＣ１２３", "abc123"),
        ("你好，世界。", "你好,世界"),
        ("**red** fox", "Red fox"),
        ("the `red` _fox_", "the red fox"),
        ("“don’t”", "don't"),
        ("it’s\u00a0here", "it's here"),
        ("well–known", "well-known"),
        ("\ufeffa\u200bb", "ab"),
        ("−5", "-5"),
    ]
    for reply, answer in same:
        assert verifiers.exact_text(reply, answer), (reply, answer)
    for reply, answer in [
        ("5", "-5"),
        ("x²", "x2"),
        ("½", "12"),
        ("snakecase", "snake_case"),
        ("2*3", "23"),
        ("C", "C++"),
        ("50", "50%"),
    ]:
        assert not verifiers.exact_text(reply, answer), (reply, answer)


def test_replies_that_name_an_option_give_its_letter():
    options = ["dog", "A cat", "bird song", "", None, "A cat "]
    for reply, letter in [
        ("a cat", "B"),
        ("The answer is A cat.", "B"),
        ("I hear bird song, not a dog.", "C"),
        ("It is a dog... no, bird song.", "C"),
        ("a dog and a cat", None),
        ("B. dog", None),
        ("D", None),
        ("E", None),
        ("F", "F"),
        ("(A) dog", "A"),
        ("hotdog", None),
        ("the third option", "C"),
    ]:
        assert read_choice(reply, options) == letter, reply
    assert matches_choice("F", "A cat", options)
    assert matches_choice("B", "(B) A cat", options)
    assert read_choice("15 dollars", ["$5", "$15", "$1,500"]) == "B"
    assert read_choice("C", ["C", "sea"]) is None  # the letter of no option, and the text of one
    with pytest.raises(ValueError, match="must have one letter"):
        matches_choice("a", "a horse", options)


def lines_of(benchmarks, shared_benchmarks):
    lines = map(
        json.loads,
        (shared_benchmarks / "official_scores.jsonl").read_text(encoding="utf-8").splitlines(),
    )
    return [line for line in lines if line["benchmark"] in benchmarks]


def choices_of(item):
    """Options and the right answer's text; MMSU has a column for each."""
    return (
        item.get("choices") or [item.get(f"choice_{letter}") for letter in "abcd"],
        item.get("answer", item.get("answer_gt")),
    )


@pytest.mark.parametrize("known", [True, False], ids=["options known", "options unknown"])
def test_benchmark_outputs_are_read_as_by_a_careful_human(shared_benchmarks, known):
    """At least 97 % agree with `sensible`, and no wrong output counts as right."""
    agree = total = 0
    for line in lines_of({"MMAU", "MMSU", "MMAR"}, shared_benchmarks):
        options, answer = choices_of(line["item"])
        if not known:
            letter = next(
                LETTER
                for LETTER, option in zip("ABCDEFGH", options, strict=False)
                if option == answer
            )
            answer, options = answer if answer.startswith("(") else f"({letter}) {answer}", None
        right = matches_choice(line["output"] or "", answer, options)
        assert not (right and line["sensible"] == "wrong"), line
        if line["sensible"] != "unclear":
            agree, total = agree + (right == (line["sensible"] == "correct")), total + 1
    assert total > 700
    assert agree / total >= (0.97 if known else 0.94)


def test_numbers_of_benchmark_outputs_are_read(shared_benchmarks):
    """No wrong output is right; number words, converted units and the like are not read."""
    agree = total = 0
    for line in lines_of({"Spoken-MQA"}, shared_benchmarks):
        answer = line["item"]["answer"]
        right = verifiers.number(
            line["output"] or "",
            (answer if isinstance(answer, str) else answer[0]).split("####")[-1],
        )
        assert not (right and line["sensible"] == "wrong"), line
        if line["sensible"] != "unclear":
            agree, total = agree + (right == (line["sensible"] == "correct")), total + 1
    assert agree / total > 0.85


def test_no_reply_raises_or_is_read_beyond_the_limit():
    rng = random.Random(5)
    pieces = [
        *'AaBbIi 12.,-:()/\\{}*_"\n?不是对答案选的B½²−$%',
        "answer is ",
        "not ",
        "yes",
        "\\boxed{",
        "<think>",
        "or",
        "1e9",
    ]
    for _ in range(200):
        reply = "".join(rng.choices(pieces, k=rng.randint(0, 30)))
        assert read_choice(reply) in {None, *"ABI"}
        assert read_choice(reply, ["A", "b flat", "12"]) in {None, *"ABC"}
        assert isinstance(read_number(reply), Fraction | answers.NumberRange | None)
        assert read_yes_or_no(reply) in (True, False, None)
        assert isinstance(normalize_answer(reply), str)
    assert read_number("9" * 100_000) is None
    assert read_number("1e999999999") is None
    assert read_choice("\\boxed{" * 50_000) is None
    assert read_choice("noise " * 100_000 + "The answer is B.") == "B"
