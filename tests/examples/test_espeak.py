"""The synthesizer is reproducible and rejects what it cannot say."""

import builtins
import concurrent.futures

import numpy as np
import pytest

from examples.spoken_corpus import espeak
from examples.spoken_corpus.espeak import CorpusError, Synthesizer, variant_genders


def _session(order):
    """Speaks with voices in an order; two use noise (`breath`, klatt), and all of them flutter."""
    voices = [
        ("en-us", "m3", "what is three"),
        ("en-gb-x-rp", "f5", "add two"),
        ("cmn", "f2", "红茶"),
        ("en-us", "klatt4", "hello"),
    ]
    with Synthesizer() as synthesizer:
        return [
            synthesizer.say(voices[i][2], language=voices[i][0], variant=voices[i][1])
            for i in order
        ]


def _same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_session_does_not_depend_on_earlier_or_parallel_sessions():
    order = [0, 1, 2, 3, 0]
    alone = _session(order)
    assert not np.array_equal(alone[0], alone[4]), (
        "state survives within a session; otherwise this test would prove nothing"
    )
    _session([3, 2, 1])
    assert _same(alone, _session(order))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for beside in pool.map(_session, [order] * 6):
            assert _same(alone, beside)


def test_parameters_change_the_speech():
    def samples(**parameters):
        with Synthesizer() as synthesizer:
            return synthesizer.say("what is three plus four", language="en-us", **parameters)

    normal = samples()
    assert normal.dtype == np.int16
    assert (
        len(samples(words_per_minute=120))
        > 1.3 * len(normal)
        > 1.3 * 1.3 * len(samples(words_per_minute=270))
    )
    assert not np.array_equal(samples(pitch=80)[:5000], normal[:5000])
    assert not np.array_equal(samples(variant="f3")[:5000], normal[:5000])
    assert not np.array_equal(samples(pitch_range=0)[:9000], normal[:9000])


def test_genders_are_read_from_the_variants_files():
    genders = variant_genders()
    assert genders["f1"] == "female"  # "gender female 70"
    assert genders["Andy"] == "male"  # "gender Male"
    assert genders["zac"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"variant": "f99"},
            r"variant='f99' is none of the 104 that espeak-ng has; the nearest is 'f[0-9]'",
        ),
        ({"variant": "M3"}, r"variant='M3'"),
        ({"variant": "../voices/!v/f1"}, r"variant='\.\./"),
        ({"language": "en-gb"}, r"language='en-gb' is not a language of espeak-ng"),
        ({"language": "en-us+f1"}, r"language='en-us\+f1'"),
        ({"words_per_minute": 79}, "words_per_minute=79 must be from 80 to 450"),
        ({"words_per_minute": 451}, "words_per_minute=451"),
        ({"pitch": 100}, "pitch=100 must be from 0 to 99"),
        ({"pitch_range": -1}, "pitch_range=-1"),
        ({"text": ""}, "made no sound for text=''"),
        ({"text": " . "}, "made no sound"),
        ({"text": "a\0b"}, "zero character"),
    ],
)
def test_invalid_arguments_are_errors(arguments, message):
    with Synthesizer() as synthesizer, pytest.raises(CorpusError, match=message):
        synthesizer.say(**{"text": "hello", "language": "en-us", **arguments})


def test_a_missing_library_is_an_error_with_the_command_to_install_it(monkeypatch):
    real_import = builtins.__import__

    def without_espeak(name, *arguments, **keywords):
        if name == "espeakng_loader":
            raise ModuleNotFoundError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_espeak)
    with pytest.raises(CorpusError, match=r"pip install 'stepaudio-jax\[quickstart\]'"):
        espeak.Synthesizer()
