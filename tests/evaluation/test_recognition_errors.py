"""Errors of transcripts, in words or characters, after Whisper's normalization."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("jiwer")

from stepaudio_jax.evaluation.recognition_errors import ErrorCount, count_errors

WORDS = st.lists(st.sampled_from(["kra", "blo", "fen"]), max_size=8)


def edit_distance(first, second):
    """Returns the Levenshtein distance of two lists, by the recurrence itself."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


@pytest.mark.parametrize(
    ("reference", "transcript", "language", "expected"),
    [
        ("It's ten o'clock, Mr. Smith.", "it is 10 o'clock mister smith", "en", (0, 6, "word")),
        ("I paid twenty-two dollars", "I paid $22", "English", (0, 3, "word")),
        ("um the uh cat", "the cat", None, (0, 2, "word")),
        ("the cat sat", "the bat sat down", "en-US", (2, 3, "word")),
        ("über alles", "uber alles", "de", (1, 2, "word")),
        ("今天天气很好。", "今天天气很好", "zh", (0, 6, "character")),
        ("OK", "OK", "Chinese (Mandarin)", (0, 2, "character")),
        ("ok", "ok", "zh_CN", (0, 2, "character")),
        ("今天天气很好。", "今天气真好", None, (2, 6, "character")),
        ("こんにちは", "こんばんは", "ja", (2, 5, "character")),
        ("สวัสดี", "สวัสดี", "Thai", (0, 4, "character")),
        ("안녕하세요 여러분", "안녕하세요 여러분", None, (0, 2, "word")),
        ("[noise] hello (coughs)", "hello", "en", (0, 1, "word")),
        ("[noise]", "hello there", "en", (2, 0, "word")),
        ("one two three", "", "en", (1, 1, "word")),
        ("a b", "...", "en", (2, 2, "word")),
        ("", "", None, (0, 0, "word")),
    ],
)
def test_errors_are_counted_in_the_unit_of_the_language(reference, transcript, language, expected):
    count = count_errors(reference, transcript, language)
    assert (count.errors, count.length, count.unit) == expected


def test_spellings_count_as_the_table_says():
    assert count_errors("the colour", "the color", "en") == ErrorCount(1, 2, "word")
    table = {"colour": "color"}
    assert count_errors("the colour", "the color", "en", table) == ErrorCount(0, 2, "word")


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_errors_are_the_edit_distance(words, transcript):
    count = count_errors(" ".join(words), " ".join(transcript), "it")
    assert count == ErrorCount(edit_distance(words, transcript), len(words), "word")


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(), st.sampled_from([None, "en", "zh", "de"]))
def test_no_text_is_an_error(reference, transcript, language):
    count = count_errors(reference, transcript, language)
    assert count.errors >= 0
    assert count.length >= 0
