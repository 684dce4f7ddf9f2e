"""Paths as users write them, and how they are shown."""

import pathlib

from stepaudio_jax.storage import expand_home, truncate, truncate_words, user_path


def test_a_tilde_means_home(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    assert expand_home("~") == "/homes/me"
    assert expand_home("~/runs/a") == "/homes/me/runs/a"
    assert user_path("~/runs") == pathlib.Path("/homes/me/runs")
    for path in ("", "a~/b", "./~", "~nobody-has-this-name/x", "gs://bucket/~"):
        assert expand_home(path) == path


def test_long_values_are_shown_by_their_beginning():
    assert truncate("short") == "short"
    assert truncate("x" * 300_000, 10) == "xxxxxxxxxx.. (300000 characters)"
    text = (
        f"audio data:{'A' * 300_000}: is not a sound file,"
        " and a sentence of many words stays as long as it is " + "word " * 99
    )
    shown = truncate_words(text)
    assert shown.startswith("audio data:AAAA")
    assert "(300006 characters) is not a sound file" in shown
    assert shown.endswith("word " * 99)
