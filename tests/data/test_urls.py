"""Clips named by URLs, read from a server on loopback."""

import numpy as np
import pytest

from stepaudio_jax.data.clips import load_clip, probe_clip
from stepaudio_jax.errors import AudioError
from stepaudio_jax.text.dialogue import AudioPart


@pytest.mark.parametrize(("path", "attempts"), [("a.wav", 1), ("500-2", 3), ("cut-1", 2)])
def test_clip_is_read_also_after_failures(web, formats, path, attempts):
    address, requests = web
    part = AudioPart(f"{address}/{path}")
    np.testing.assert_array_equal(
        load_clip(part, allow_urls=True), load_clip(AudioPart(str(formats / "clips" / "a.wav")))
    )
    assert len(requests) == attempts
    assert probe_clip(part, allow_urls=True) is None  # it is not read for that
    assert len(requests) == attempts


@pytest.mark.parametrize(
    ("path", "attempts", "message"),
    [("404-9", 1, "answers 404"), ("500-9", 3, "answers 500"), ("cut-9", 3, "cannot be read")],
)
def test_server_that_gives_no_clip_is_an_error(web, path, attempts, message):
    address, requests = web
    with pytest.raises(AudioError, match=message) as error:
        load_clip(AudioPart(f"{address}/{path}"), allow_urls=True)
    assert len(requests) == attempts
    assert "\n" not in str(error.value)


def test_urls_are_read_only_where_they_are_allowed_and_encrypted(web):
    address, requests = web
    with pytest.raises(AudioError, match=r"data\.allow_urls"):
        load_clip(AudioPart(f"{address}/a.wav"))
    with pytest.raises(AudioError, match="not encrypted"):
        load_clip(AudioPart("http://127.0.0.1/a.wav"), allow_urls=True)
    assert not requests
