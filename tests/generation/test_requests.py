"""A growing reply: whole characters, stop strings, the end of the reasoning, loops."""

import pathlib
import random

import numpy as np
import pytest

from stepaudio_jax.config import RepetitionDetectionConfig
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.generation import Sampling
from stepaudio_jax.generation.requests import RepetitionDetector, RequestState
from stepaudio_jax.hub import load_tokenizer
from stepaudio_jax.text import parse_reply
from tests.generation.small_model import BYTES

BASE = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny_base"


def reply_state(text, *, pieces=1, in_reasoning=False, **settings):
    """Adds a reply `pieces` bytes at a time; returns its state and the text after each."""
    state = RequestState(0, Sampling(**settings), BYTES, in_reasoning=in_reasoning)
    tokens = np.array(BYTES.encode(text) if isinstance(text, str) else list(text))
    shown = []
    for start in range(0, len(tokens), pieces):
        part = tokens[start : start + pieces]
        state.add(part, -part / 10, -part / 20)
        shown.append(state.take_new_text())
    return state, shown


def test_characters_of_several_tokens_are_streamed_whole():
    _, shown = reply_state("héllo 你好 🙂!")
    assert "".join(shown) == "héllo 你好 🙂!"
    assert "�" not in "".join(shown)
    assert shown[1:3] == ["", "é"]
    state, shown = reply_state("好".encode()[:2])
    assert shown == ["", ""]
    assert state.take_new_text(last=True) == "�"


@pytest.mark.parametrize("pieces", [1, 4, 100])
def test_a_stop_string_ends_the_reply_where_it_begins(pieces):
    """It comes in parts, after a false beginning; what precedes it keeps its log-probabilities."""
    state, shown = reply_state("a STO a STOP b", pieces=pieces, stop_strings=("STOP", "zzz"))
    assert state.stopped
    assert "".join(shown) + state.take_new_text(last=True) == "a STO a "
    tokens, logprobs, sampling_logprobs = state.output_tokens()
    assert BYTES.decode(tokens) == "a STO a "
    assert logprobs == pytest.approx([-token / 10 for token in tokens])
    assert sampling_logprobs == pytest.approx([-token / 20 for token in tokens])


def test_a_token_that_spells_more_than_the_stop_string_keeps_its_part_of_the_reply():
    """It was sampled, so it stays with its log-probability; the reply has only its beginning."""
    tokenizer = load_tokenizer(BASE)
    tokens = np.array(tokenizer.encode("I hear.\n</think>\nThe keyword"))
    last = tokenizer.token_bytes(int(tokens[-1])).decode()
    assert len(last) > 2
    for stop, kept in ((last[1:], len(tokens)), (last, len(tokens) - 1)):
        state = RequestState(0, Sampling(stop_strings=(stop,)), tokenizer)
        state.add(tokens, -tokens / 10, -tokens / 20)
        reply = "The keyword".removesuffix(stop)
        assert state.stopped
        assert state.take_new_text(last=True) == f"I hear.\n</think>\n{reply}"
        assert state.output_tokens()[0] == tuple(tokens[:kept])
        assert (
            parse_reply(
                state.output_tokens()[0],
                tokenizer,
                ended=True,
                stop_overlap_bytes=state.stop_overlap_bytes,
            ).reply
            == reply
        )


def test_text_that_may_become_a_stop_string_is_held_back():
    state, shown = reply_state("ab<end", stop_strings=("<end>",))
    assert "".join(shown) == "ab"
    assert not state.stopped
    assert state.take_new_text(last=True) == "<end"


def test_the_first_of_several_stop_strings_counts():
    state, _ = reply_state("one two three", stop_strings=("three", "two"))
    assert BYTES.decode(state.output_tokens()[0]) == "one "


REASONED = "A voice,\nmale.\n</think>\nA male\nvoice </think> again"


@pytest.mark.parametrize("pieces", [1, 5, 100])
@pytest.mark.parametrize(
    ("stop", "reply"),
    [
        ("voice", "A male\n"),
        ("\n", "A male"),  # the line break after the tag is the format's
        ("A", ""),
        ("male.", None),  # in the reasoning only
        ("</think>", "A male\nvoice "),
        ("\n</think>", None),
        ("</think>\nA", None),  # begins before the reply
        ("\nA", None),
        ("zzz", None),
    ],
)
def test_stop_strings_count_in_the_reply_only(pieces, stop, reply):
    state, shown = reply_state(REASONED, pieces=pieces, in_reasoning=True, stop_strings=(stop,))
    text = "".join(shown) + state.take_new_text(last=True)
    assert state.stopped is (reply is not None)
    assert text == (REASONED if reply is None else REASONED[: REASONED.index("A male")] + reply)
    assert BYTES.decode(state.output_tokens()[0]) == text


def test_stop_strings_count_in_the_reasoning_where_that_is_asked_for():
    state, _ = reply_state(
        REASONED, in_reasoning=True, stop_strings=("voice",), stop_in_reasoning=True
    )
    assert BYTES.decode(state.output_tokens()[0]) == "A "
    state, _ = reply_state(
        REASONED, in_reasoning=True, stop_strings=("</think>",), stop_in_reasoning=True
    )
    assert BYTES.decode(state.output_tokens()[0]) == "A voice,\nmale.\n"


def test_a_text_without_a_reasoning_is_searched_from_its_beginning_and_one_that_opens_it_is_not():
    assert (
        BYTES.decode(reply_state("A voice", stop_strings=("voice",))[0].output_tokens()[0]) == "A "
    )
    state, _ = reply_state("<think>\nvoice\n</think>\n\nHer\nvoice", stop_strings=("voice",))
    assert BYTES.decode(state.output_tokens()[0]) == "<think>\nvoice\n</think>\n\nHer\n"


def test_a_reasoning_is_shown_at_once_whatever_may_become_a_stop_string():
    _, shown = reply_state("ab<en", in_reasoning=True, stop_strings=("<end>",))
    assert shown == ["a", "b", "<", "e", "n"]
    _, shown = reply_state("ab\n</think>\nab<en", in_reasoning=True, stop_strings=("<end>",))
    assert "".join(shown) == "ab\n</think>\nab"


def test_random_texts_stop_where_the_definition_says():
    """A token that completes stop strings in the reply ends it before the earliest of them."""
    rng = random.Random(3)
    for _ in range(300):
        text = "".join(
            rng.choices(["a", "b", "\n", "</think>", "</th", "ab"], k=rng.randint(0, 20))
        )
        stops = tuple(
            "".join(rng.choices("ab\n", k=rng.randint(1, 3))) for _ in range(rng.randint(1, 3))
        )
        pieces = rng.randint(1, 4)
        tag = text.find("</think>")
        start = len(text) if tag < 0 else tag + 8 + text.startswith("\n", tag + 8)
        places = [
            [place for stop in stops if (place := text.find(stop, start, end)) >= 0]
            for end in range(len(text) + 1)
        ]
        expected = next((text[: min(found)] for found in places if found), text)
        state, shown = reply_state(text, pieces=pieces, in_reasoning=True, stop_strings=stops)
        assert "".join(shown) + state.take_new_text(last=True) == expected, (text, stops)
        assert state.stopped is any(places)


def ends_in_a_loop(tokens, detection):
    """Compares the end with every pattern: the definition of a loop."""
    return any(
        len(tokens) >= size * detection.min_count
        and tokens[len(tokens) - size * detection.min_count :]
        == tokens[-size:] * detection.min_count
        for size in range(detection.min_pattern_size, detection.max_pattern_size + 1)
    )


def test_a_loop_is_seen_at_the_token_that_completes_it():
    rng = random.Random(4)
    seen = 0
    for _ in range(400):
        smallest = rng.randint(1, 4)
        detection = RepetitionDetectionConfig(
            min_pattern_size=smallest,
            max_pattern_size=smallest + rng.randint(0, 6),
            min_count=rng.randint(2, 4),
        )
        pattern = rng.choices(range(3), k=rng.randint(1, 8))
        tokens = (rng.choices(range(3), k=rng.randint(0, 9)) + pattern * rng.randint(1, 6))[:40]
        limit = rng.choice([len(tokens) + 1, 40, 1000])
        expected = next(
            (end for end in range(1, len(tokens) + 1) if ends_in_a_loop(tokens[:end], detection)),
            None,
        )
        detector = RepetitionDetector(detection, max_new_tokens=limit)
        assert (
            next((end for end, token in enumerate(tokens, 1) if detector.add(token)), None)
            == expected
        )
        seen += expected is not None
    assert 100 < seen < 390


def test_a_loop_ends_a_text_and_a_stop_string_goes_first():
    detection = RepetitionDetectionConfig(max_pattern_size=4, min_count=3)
    state, shown = reply_state("no: la la la la la", repetition_detection=detection)
    assert (state.repeated, state.stopped) == (True, False)
    assert "".join(shown) == BYTES.decode(state.output_tokens()[0]) == "no: la la la"
    state, _ = reply_state(
        "no: la la la la la", repetition_detection=detection, stop_strings=("la la la",)
    )
    assert (state.repeated, state.stopped) == (False, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_pattern_size": 4}, "max_pattern_size=4 and min_count=0 belong together"),
        ({"min_count": 4}, "max_pattern_size=0 and min_count=4 belong together"),
        ({"max_pattern_size": 4, "min_count": 1}, "min_count=1 must be at least 2"),
        (
            {"max_pattern_size": 4, "min_count": 2, "min_pattern_size": 5},
            "min_pattern_size=5 must lie between 1 and",
        ),
        ({"max_pattern_size": -1, "min_count": 2}, "max_pattern_size=-1 must be a whole number"),
        ({"max_pattern_size": 4, "min_count": 2.0}, "min_count=2.0 must be a whole number"),
    ],
)
def test_invalid_repetition_detection_is_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        RepetitionDetectionConfig(**settings)


def test_a_stop_token_is_not_part_of_the_reply():
    state = RequestState(0, Sampling(stop_tokens=(7,)), BYTES)
    state.add(np.array([65, 7, 66]), np.zeros(3), np.zeros(3))
    assert state.stopped
    assert state.output_tokens()[0] == (65,)


def test_the_end_of_the_reasoning_is_seen_however_it_is_spelt():
    assert not reply_state("so </thin")[0].reasoning_ended
    assert reply_state("so </think> and")[0].reasoning_ended
