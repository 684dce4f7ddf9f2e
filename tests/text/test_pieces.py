"""Where the pieces of a text end in it."""

import random

import pytest

from stepaudio_jax.text.pieces import find_difference, find_piece_ends, join_attributes


def slices(text, pieces):
    """The text cut behind each piece, without the white space around; None if it is not these."""
    ends = find_piece_ends(text, pieces)
    return ends and [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("Hello there. Bye.", [" Hello there.", " Bye."], ["Hello there.", "Bye."]),
        ("Hello there.\n\nBye.", ["Hello  there.", "Bye."], ["Hello there.", "Bye."]),
        ("你好世界再见", ["你好", "世界", "再见"], ["你好", "世界", "再见"]),
        ("a b", ["a", "", " ", "b"], ["a", "", "", "b"]),
        # Words without the punctuation and the case of the text.
        (
            "Hello, world! (It is) I.",
            ["hello", "world", "it", "is", "i"],
            ["Hello,", "world!", "(It", "is)", "I."],
        ),
        ("你好。「世界」", ["你好", "世界"], ["你好。", "「世界」"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया"], ["नमस्ते", "दुनिया।"]),
        ("'Tis so", ["tis", "so"], ["'Tis", "so"]),
    ],
)
def test_pieces_are_cut_out_of_the_text(text, pieces, expected):
    assert slices(text, pieces) == expected


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one two", ["one"]),
        ("one", ["one", "two"]),
        ("one two", ["one", "too"]),
        ("one two", ["two", "one"]),
        ("7", ["seven"]),
        ("straße", ["strasse"]),
        ("one", []),
    ],
)
def test_another_text_is_not_these_pieces(text, pieces):
    assert find_piece_ends(text, pieces) is None


def test_every_character_is_in_exactly_one_piece():
    draw = random.Random(0)
    for _ in range(200):
        pieces = ["".join(draw.choices("ab ,.(é你 \n", k=draw.randint(0, 6))) for _ in range(8)]
        text = draw.choice(["", " ", "\n"]).join(pieces)
        cut = slices(text, pieces)
        assert ["".join(piece.split()) for piece in cut] == ["".join(p.split()) for p in pieces]
        bare = ["".join(filter(str.isalnum, piece)).upper() for piece in pieces]
        if len("".join(bare)) == sum(map(str.isalnum, text)):
            cut = slices(text, bare)
            assert ["".join(filter(str.isalnum, piece)).upper() for piece in cut] == bare


def test_the_difference_is_shown_where_it_begins():
    text = "the quick brown fox jumps over the lazy dog"
    mine, theirs = find_difference(text, ["the quick brown fox ", "leaps over the lazy dog"])
    assert mine == "ckbrownfoxjumpsovert"
    assert theirs == "ckbrownfoxleapsovert"


def test_labels_of_several_pieces_are_joined_once_each():
    labels = [{"speaker": "a", "room": "hall"}, {"speaker": "b"}, {"speaker": "a"}, {}]
    assert join_attributes(labels) == {"speaker": "a, b", "room": "hall"}
