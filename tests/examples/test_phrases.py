"""Held-out speakers and phrases are not in training; the vocabulary has every word."""

import itertools
import re

import numpy as np
import pytest

from examples.spoken_corpus.espeak import variant_genders
from examples.spoken_corpus.phrases import (
    ANIMALS,
    COLOURS,
    DIGITS,
    KEYWORDS,
    SUM_RESULTS,
    draw_phrase,
    draw_random_phrase,
    number,
    vocabulary,
)
from examples.spoken_corpus.voices import families, speakers

KINDS = ("keyword", "sum", "statement", "question", "mandarin")


def _drawn(kind, held_out, count=1500):
    rng = np.random.default_rng((len(kind), held_out))
    return [draw_phrase(kind, rng, held_out=held_out) for _ in range(count)]


def test_each_speaker_has_the_gender_that_its_variant_declares():
    everybody = speakers(held_out=False) + speakers(held_out=True)
    genders = variant_genders()
    assert all(genders[speaker.variant] == speaker.gender for speaker in everybody)
    declared = {variant for variant, gender in genders.items() if gender is not None}
    assert declared - {speaker.variant for speaker in everybody} == {
        *(
            "whisper",
            "whisperf",
            "Demonic",
            "UniRobot",
            "anikaRobot",
            "AnxiousAndy",
            "Marco",
            "Alicia",
            "Lee",
        )
    }
    assert len({speaker.variant for speaker in everybody}) == len(everybody), (
        "no speaker is in two families"
    )


@pytest.mark.parametrize("gender", ["female", "male"])
def test_about_a_third_of_the_families_of_either_gender_is_held_out(gender):
    kept, held_out = families(gender, held_out=False), families(gender, held_out=True)
    assert 0.25 <= len(held_out) / (len(kept) + len(held_out)) <= 0.4
    assert not any(speaker.held_out for family in kept for speaker in family)
    assert all(speaker.held_out for family in held_out for speaker in family)


def test_related_variants_are_in_one_split():
    split = {
        speaker.variant: speaker.held_out
        for side in (False, True)
        for speaker in speakers(held_out=side)
    }
    for family in (
        ("steph", "steph2", "steph3"),
        ("linda", "belinda"),
        ("anika", "Andrea"),
        ("michel", "miguel", "Diogo"),
    ):
        assert len({split[variant] for variant in family}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_phrase_is_in_both_splits(kind):
    trained, held_out = (
        {phrase.transcript for phrase in _drawn(kind, side)} for side in (False, True)
    )
    assert not trained & held_out
    assert all(phrase.held_out for phrase in _drawn(kind, True, 5))


def test_random_phrases_never_equal_a_held_out_phrase():
    held_out = {phrase.transcript for kind in KINDS for phrase in _drawn(kind, True, 5000)}
    trained = {phrase.transcript for kind in KINDS for phrase in _drawn(kind, False, 5000)}
    rng = np.random.default_rng(0)
    random_phrases = {
        draw_random_phrase(kind, rng, 4).transcript
        for kind in ("random", "random_mandarin")
        for _ in range(5000)
    }
    assert random_phrases & trained, "otherwise chance alone would exclude held-out phrases"
    assert not random_phrases & held_out


@pytest.mark.parametrize(
    ("kind", "first", "second", "firsts"),
    [
        ("statement", "colour", "animal", COLOURS),
        ("sum", "a", "b", DIGITS),
        ("keyword", "keyword", "adjective", KEYWORDS),
        ("keyword", "keyword", "verb", KEYWORDS),
        ("keyword", "keyword", "name", KEYWORDS),
    ],
)
def test_no_combination_of_words_is_in_both_splits_but_every_word_is(kind, first, second, firsts):
    seen = []
    for side in (False, True):
        slots = [phrase.slots for phrase in _drawn(kind, side, 4000)]
        seen.append(
            {
                (filled[first], filled[second])
                for filled in slots
                if first in filled and second in filled
            }
        )
    assert not seen[0] & seen[1]
    for pairs in seen:
        assert {pair[0] for pair in pairs} == set(firsts)


def test_both_splits_have_every_result_of_a_sum():
    for side in (False, True):
        phrases = _drawn("sum", side, 4000)
        assert {phrase.answer for phrase in phrases} == {str(total) for total in SUM_RESULTS}
        for phrase in phrases[:50]:
            operands = [number(word) for word in phrase.transcript.split() if word in DIGITS]
            assert str(sum(operands)) == phrase.answer
    doubles = {
        phrase.slots["a"]
        for phrase in _drawn("sum", False, 4000)
        if phrase.slots["a"] == phrase.slots["b"]
    }
    assert len(doubles) == 7, "training has equal operands from 2+2 to 8+8"


def test_every_word_is_in_the_vocabulary_and_english_is_grammatical():
    known = set(vocabulary())
    assert len(known) == len(vocabulary())
    rng = np.random.default_rng(0)
    phrases = [
        phrase
        for kind, side in itertools.product(KINDS, (False, True))
        for phrase in _drawn(kind, side, 500)
    ]
    random_phrases = [
        draw_random_phrase(kind, rng, 4)
        for kind in ("random", "random_mandarin")
        for _ in range(200)
    ]
    assert all(set(phrase.transcript.split()) <= known for phrase in [*phrases, *random_phrases])
    assert {phrase.language for phrase in random_phrases} == {"English", "Mandarin"}
    for phrase in phrases:
        if phrase.kind != "mandarin":
            assert not re.search(r"\ba [aeiou]", phrase.transcript), phrase.transcript
    assert {word for phrase in phrases for word in phrase.transcript.split()} == known, (
        "the vocabulary has no unused word"
    )


def test_a_keyword_phrase_has_one_keyword_and_a_statement_one_colour_and_one_animal():
    for side in (False, True):
        for phrase in _drawn("keyword", side, 500):
            assert [word for word in phrase.transcript.split() if word in KEYWORDS] == [
                phrase.slots["keyword"]
            ]
        for phrase in _drawn("statement", side, 500):
            named = [word for word in phrase.transcript.split() if word in COLOURS + ANIMALS]
            assert sorted(named) == sorted([phrase.slots["colour"], phrase.slots["animal"]])
        for phrase in _drawn("question", side, 200):
            assert not set(phrase.transcript.split()) & {*COLOURS, *ANIMALS}


def test_fixed_slots_are_kept():
    rng = np.random.default_rng(0)
    for keyword, side in itertools.product(KEYWORDS, (False, True)):
        assert (
            draw_phrase("keyword", rng, held_out=side, fixed={"keyword": keyword}).slots["keyword"]
            == keyword
        )


def test_mandarin_is_written_without_spaces():
    phrase = _drawn("mandarin", False, 1)[0]
    assert phrase.language == "Mandarin"
    assert " " in phrase.transcript
    assert phrase.text == phrase.transcript.replace(" ", "")
