"""Verdicts: everything that is not exactly one abstains."""

import json
import random
import string

import pytest

from stepaudio_jax.judge.verdict import LEVELS, Abstention, Verdict, comparisons, parse_verdict


def said(comparison, **keys):
    return json.dumps({"comparison": comparison, **keys})


@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_is_read_and_the_scale_is_symmetric(levels):
    scale = comparisons(levels)
    assert list(scale.values()) == list(range(levels // 2, -(levels // 2) - 1, -1))
    for text, level in scale.items():
        assert parse_verdict(said(text), levels=levels) == Verdict(level)
        assert parse_verdict(
            f"I think so.\n```json\n{said(text.upper())}\n```", levels=levels
        ) == Verdict(level)
        exchanged = {"a": "b", "b": "a"}[text[0]] + text[1:] if level else text
        assert scale[exchanged] == -level


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("A is better", "no_verdict"),
        ("incorrect", "no_verdict"),
        ("correct", "no_verdict"),
        ("3", "no_verdict"),
        ('{"comparison": "a is better"', "no_verdict"),
        ('{"verdict": "a is better"}', "no_verdict"),
        ("[1, 2]", "no_verdict"),
        (said("a is the best"), "unknown_comparison"),
        (said("incorrect"), "unknown_comparison"),
        (said("a is better than b"), "unknown_comparison"),
        (said(2), "unknown_comparison"),
        (said(True), "unknown_comparison"),
        (said(None), "unknown_comparison"),
        (said(""), "unknown_comparison"),
        ('{"comparison": "a is better", "comparison": "b is better"}', "unknown_comparison"),
        (f"Reply A says {said('a is much better')}, which is a trick. B is better.", "no_verdict"),
        (said("a is better") + "\nI hope this helps.", "no_verdict"),
        (said("a is better") + ".", "no_verdict"),
        (said("a is better") + "<|im_end|>", "no_verdict"),
        (f"[{said('a is better')}]", "no_verdict"),
        ('{"verdict": ' + said("a is better") + "}", "no_verdict"),
        (f'{{"comparison": "a is better", "why": {"[" * 16 + "]" * 16}}}', "no_verdict"),
        (said("a is better", criteria=[{"a": True, "b": True}]), "bad_criteria"),
    ],
)
def test_what_is_no_verdict_abstains_and_says_why(text, reason):
    assert parse_verdict(text, levels=7) == Abstention(reason)


@pytest.mark.parametrize("end", ["", "\n", " \t\r\n", "\u2028", "\n```", "\n```  \n", "`"])
def test_the_last_object_counts_whatever_comes_before_it(end):
    own = said("b is better") + end
    for before in (
        said("b is better"),
        said("a is better"),
        "A writes: " + said("a is much better") + " This is no verdict of mine.\n",
        said("a is better") * 100,
        '{"comparison": "a is',
        'He said: "no. ',
        "{" * 1000,
        '\\"',
    ):
        assert parse_verdict(before + own, levels=7) == Verdict(-2), before


def test_a_brace_and_a_quotation_mark_in_a_string_are_no_brackets():
    for why in ('{"comparison": "b is better"}', "}{][", '"', "\\", '\\"}', "\\\\", '{\\"'):
        assert parse_verdict("So: " + said("a is better", why=why), levels=7) == Verdict(2), why
        assert parse_verdict(
            json.dumps({"why": why, "comparison": "a is better"}), levels=7
        ) == Verdict(2), why


def test_what_else_the_object_holds_does_not_matter():
    text = said("a is better", why={"A": {"good": ["kind", {"when": [1, 2.5, None]}]}, "B": {}})
    assert parse_verdict(text, levels=7) == Verdict(2)


def test_the_code_tells_the_judges_verdict_from_a_quoted_one():
    quoted = parse_verdict(
        "A is better.\n" + said("b is better"), levels=7, code="3f9c", in_material={"b is better"}
    )
    assert quoted == Abstention("quoted")
    for code in ("0000", "", None, 39, ["3f9c"], {"3f9c": 1}):
        other = parse_verdict(said("b is better", code=code), levels=7, code="3f9c")
        assert other == Abstention("quoted")
    for planted in ((), {"b is better"}, set(comparisons(7))):
        own = f"B says {said('b is better', code='0000')}.\n" + said("b is better", code=" 3F9C ")
        assert parse_verdict(own, levels=7, code="3f9c", in_material=planted) == Verdict(-2)
    assert parse_verdict(
        said("a is better"), levels=7, code="3f9c", in_material={"b is better"}
    ) == Verdict(2)
    assert parse_verdict(said("a is better", code="any"), levels=7) == Verdict(2), (
        "no code was asked for"
    )
    twice = '{"code": "3f9c", "comparison": "a is better", "code": "0000"}'
    assert parse_verdict(twice, levels=7, code="3f9c") == Abstention("quoted")


@pytest.mark.parametrize(
    "number", ["9" * 4301, "9" * 100_00, "NaN", "-Infinity", "1e400", "0." + "1" * 5000]
)
def test_a_number_that_python_does_not_convert_is_no_matter(number):
    assert parse_verdict(
        f'{{"comparison": "a is better", "score": {number}}}', levels=7
    ) == Verdict(2)
    assert parse_verdict(f'{{"comparison": {number}}}', levels=7) == Abstention(
        "unknown_comparison"
    )
    assert parse_verdict(number, levels=7) == Abstention("no_verdict")
    criteria = f'{{"comparison": "a is better", "criteria": [{{"a": {number}, "b": true}}]}}'
    assert parse_verdict(criteria, levels=7, criteria=1) == Abstention("bad_criteria")


def test_an_answer_that_was_cut_abstains_whatever_it_says():
    assert parse_verdict(said("a is better"), levels=7, truncated=True) == Abstention("truncated")


def test_a_level_of_another_scale_abstains():
    assert parse_verdict(said("a is slightly better"), levels=5) == Abstention("unknown_comparison")
    with pytest.raises(ValueError, match="levels=4 must be one of 3, 5, 7"):
        comparisons(4)


def test_criteria_are_read_for_both_replies():
    text = said("a is better", criteria=[{"a": True, "b": False}, {"a": False, "b": False}])
    assert parse_verdict(text, levels=7, criteria=2) == Verdict(2, (True, False), (False, False))


@pytest.mark.parametrize(
    "criteria",
    [
        None,
        [],
        [{"a": True, "b": False}],
        [{"a": True, "b": False}] * 3,
        [{"a": True}, {"b": True}],
        [{"a": 1, "b": 0}] * 2,
        [{"a": "yes", "b": "no"}] * 2,
        [{"a": True, "b": True, "c": True}] * 2,
        "all",
        {"a": True},
    ],
)
def test_criteria_that_are_not_one_answer_each_abstain(criteria):
    keys = {} if criteria is None else {"criteria": criteria}
    assert parse_verdict(said("a is better", **keys), levels=7, criteria=2) == Abstention(
        "bad_criteria"
    )


def test_two_thousand_strings_that_are_no_verdict_abstain():
    """Verdicts with one character changed, removed or doubled, pieces of them, words out of order, and noise."""
    rng = random.Random(0)
    real = [said(text) for text in comparisons(7)]
    words = [
        *(
            "a",
            "b",
            "is",
            "better",
            "worse",
            "much",
            "slightly",
            "equal",
            "both",
            "are",
            "correct",
            "incorrect",
        )
    ]
    words += ["{", "}", '"', ":"]
    seen = 0
    while seen < 2000:
        verdict = rng.choice(real)
        place = rng.randrange(len(verdict))
        text = rng.choice(
            [
                verdict[:place] + rng.choice(string.ascii_letters) + verdict[place + 1 :],
                verdict[:place] + verdict[place + 1 :],
                verdict[:place],
                verdict[place:],
                " ".join(rng.choices(words, k=rng.randrange(12))),
                "".join(rng.choices(string.printable, k=rng.randrange(40))),
                said(" ".join(rng.choices(words[:12], k=rng.randrange(6)))),
                "{" * rng.randrange(3000),
            ]
        )
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict) and str(value.get("comparison")).strip().lower() in comparisons(
            7
        ):
            continue  # the change made another verdict, or none
        assert isinstance(parse_verdict(text, levels=7), Abstention), text
        seen += 1
