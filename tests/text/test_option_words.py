"""Options that a reply gives in other words, in another order, or after the list of all."""

import pytest

from stepaudio_jax.text.answers import read_choice

DOGS = ["A dog barking ", "A dog growling", "A cat hissing", "A person coughing"]
PLACES = ["At a party", "In a library", "In a classroom", "Cannot be reliably determined"]
NOISE = ["With applause", "With laughter", "With applause and laughter", "With silence"]
FRUIT = ["苹果", "苹果和香蕉", "香蕉", "什么都没买"]
CHORDS = ["G", "A#", "D", "E"]
YEARS = ["one thousand, nine hundred and ninety", "one thousand, nine hundred and ninety-two"]
TURNS = ["first speaker shows joy; second speaker is sad", "both speakers are sad"]


@pytest.mark.parametrize(
    ("reply", "options", "letter"),
    [
        ("growling", DOGS, "B"),
        ("The dog growls.", DOGS, "B"),
        ("dog barks", DOGS, "A"),
        ("a dog", DOGS, None),
        ("The dog does not growl.", DOGS, None),
        ("growling?", DOGS, None),
        ("At a birthday party", PLACES, "A"),
        ("After the party", PLACES, None),
        ("Not at a party", PLACES, None),
        ("Applause and laughter", NOISE, "C"),
        ("laughter and applause", NOISE, None),
        ("applause", NOISE, "A"),
        ("香蕉和苹果", FRUIT, "B"),
        ("香蕉", FRUIT, "C"),
        ("tea and coffee", ["coffee and tea", "coffee", "tea"], "A"),
        ("tea then coffee", ["coffee then tea", "coffee", "tea"], None),
        ("nineteen ninety", YEARS, "A"),
        ("1992", YEARS, "B"),
        ("first speaker is sad; second speaker shows joy", TURNS, None),
        ("B E N G A L I", ["Arabic", "Bengali"], "B"),
        ("B B B B B B", ["Arabic", "Bengali"], None),
        ("正确答案是Bengali。", ["Arabic", "Bengali"], "B"),
        ("G", CHORDS, "A"),
        ("E", CHORDS, "D"),
        ("D", CHORDS, None),
        ("C, D", CHORDS, "C"),
        ("A, D", CHORDS, None),
        ("A. G\nB. A#\nC. D\nD. E\n\nAnswer: C", CHORDS, "C"),
        ("A. G\nB. A#\nC. D\nD. E", CHORDS, None),
        ("a", ["one", "said", "of", "a"], "D"),
        ("None", ["none of the speakers", "both speakers"], None),
    ],
)
def test_options_are_found_in_other_words(reply, options, letter):
    assert read_choice(reply, options) == letter
