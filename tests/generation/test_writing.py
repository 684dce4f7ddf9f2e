"""A reply as it comes: whole characters, stop strings, the end of the reasoning."""

import pathlib

import numpy as np
import pytest

from stepaudio_jax.generation import Sampling
from stepaudio_jax.generation.writing import Written
from stepaudio_jax.hub import load_tokenizer
from stepaudio_jax.text import parse_reply
from tests.generation.small_model import BYTES

BASE = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny_base"


def write(text, *, pieces=1, **settings):
    """Gives a reply byte by byte (or so many at a time); returns it and the pieces of text that it gave out."""
    written = Written(0, Sampling(**settings), BYTES)
    tokens = np.array(BYTES.encode(text) if isinstance(text, str) else list(text))
    shown = []
    for start in range(0, len(tokens), pieces):
        part = tokens[start : start + pieces]
        written.add(part, -part / 10, -part / 20)
        shown.append(written.take_text())
    return written, shown


def test_characters_arrive_whole():
    _, shown = write("héllo 你好 🙂!")
    assert "".join(shown) == "héllo 你好 🙂!"
    assert "�" not in "".join(shown)
    assert shown[1:3] == ["", "é"]
    written, shown = write("好".encode()[:2])
    assert shown == ["", ""]
    assert written.take_text(last=True) == "�"


@pytest.mark.parametrize("pieces", [1, 4, 100])
def test_a_stop_string_ends_the_reply_where_it_begins(pieces):
    """It comes in parts, a false beginning comes first, and what stood before it is kept with its log-probabilities."""
    written, shown = write("a STO a STOP b", pieces=pieces, stop_strings=("STOP", "zzz"))
    assert written.stopped
    assert "".join(shown) + written.take_text(last=True) == "a STO a "
    tokens, logprobs, sampling_logprobs = written.kept()
    assert BYTES.decode(tokens) == "a STO a "
    assert logprobs == pytest.approx([-token / 10 for token in tokens])
    assert sampling_logprobs == pytest.approx([-token / 20 for token in tokens])


def test_a_token_that_spells_more_than_the_stop_string_keeps_its_part_of_the_reply():
    """It was drawn, so that it stays with its log-probability; the reply has only its beginning."""
    tokenizer = load_tokenizer(BASE)
    tokens = np.array(tokenizer.encode("I hear.\n</think>\nThe keyword"))
    last = tokenizer.token_bytes(int(tokens[-1])).decode()
    assert len(last) > 2
    for stop, kept in ((last[1:], len(tokens)), (last, len(tokens) - 1)):
        written = Written(0, Sampling(stop_strings=(stop,)), tokenizer)
        written.add(tokens, -tokens / 10, -tokens / 20)
        reply = "The keyword".removesuffix(stop)
        assert written.stopped
        assert written.take_text(last=True) == f"I hear.\n</think>\n{reply}"
        assert written.kept()[0] == tuple(tokens[:kept])
        assert parse_reply(written.kept()[0], tokenizer, ended=True, surplus=written.surplus).reply == reply


def test_what_may_become_a_stop_string_is_not_shown_yet():
    written, shown = write("ab<end", stop_strings=("<end>",))
    assert "".join(shown) == "ab"
    assert not written.stopped
    assert written.take_text(last=True) == "<end"


def test_the_first_of_several_stop_strings_counts():
    written, _ = write("one two three", stop_strings=("three", "two"))
    assert BYTES.decode(written.kept()[0]) == "one "


def test_a_stop_token_is_not_part_of_the_reply():
    written = Written(0, Sampling(stop_tokens=(7,)), BYTES)
    written.add(np.array([65, 7, 66]), np.zeros(3), np.zeros(3))
    assert written.stopped
    assert written.kept()[0] == (65,)


def test_the_end_of_the_reasoning_is_seen_however_it_is_spelt():
    assert not write("so </thin")[0].reasoning_ended
    assert write("so </think> and")[0].reasoning_ended
