"""The rule of sets of words, against its definition written out."""

import random

from stepaudio_jax.evaluation.word_sets import matches_by_words, words_of


def test_words_are_runs_of_letters_digits_and_underscores():
    assert words_of("A_b c-d É 3.5 狗叫，猫") == {"a_b", "c", "d", "é", "3", "5", "狗叫", "猫"}


def test_the_rule_is_its_definition():
    rng = random.Random(2)
    vocabulary = ["cat", "dog", "a", "b", "9", ""]

    def text():
        return " ".join(rng.choices(vocabulary, k=rng.randint(0, 3)))

    for _ in range(2000):
        choices = [text() for _ in range(rng.randint(1, 4))]
        answer, prediction = rng.choice(choices), text()
        said = set(prediction.split())
        right = set(answer.split())
        forbidden = set()
        for choice in choices:
            if set(choice.split()) != right:
                forbidden |= set(choice.split()) - right
        expected = bool(said) and right <= said and not said & forbidden
        assert matches_by_words(prediction, answer, choices) is expected


def test_order_case_and_what_is_around_words_do_not_count():
    assert matches_by_words("PIANO, guitar!", "Guitar, Piano", ["Guitar, Piano", "Drum"])
    assert not matches_by_words("B", "Man", ["Woman", "Man"])
    assert not matches_by_words("", "", ["", "x"])
