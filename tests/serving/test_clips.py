"""Clips of requests: data: URIs, files of the allowed folder, limits, and what is kept."""

import base64
import io

import numpy as np
import pytest
import soundfile

from stepaudio_jax.errors import ApiError
from stepaudio_jax.serving import ServingSettings
from stepaudio_jax.serving.clips import ClipReader, UrlTime
from tests.serving.running_server import wave_bytes


def reader(**settings):
    return ClipReader(ServingSettings(**settings), 10_000_000)


def fetch(clips, url):
    return clips.fetch(url, "x", UrlTime(9.0))


def decode(clips, content, *, max_samples=160_000):
    return clips.decode(
        content, "message 1: part 1", max_samples=max_samples, convention="hf", channel="first"
    )


def test_data_uris_are_read_in_all_their_forms():
    clips = reader()
    text = base64.b64encode(b"\x00\xff>?" * 3).decode()
    for uri in (
        f"data:audio/wav;base64,{text}",
        f"DATA:;base64,{text.replace('=', '%3D').replace('+', '%2B')}",
        f"data:audio/x;codecs=opus;base64,{text[:6]}\n {text[6:]}",
        "data:,%00%FF%3E%3F%00%FF%3E%3F%00%FF%3E%3F",
    ):
        assert fetch(clips, uri) == b"\x00\xff>?" * 3


@pytest.mark.parametrize(
    "url",
    [
        "data:audio/wav;base64",
        "data:;base64,***",
        "data:;base64,",
        "data:,",
        "ftp://x/a",
        "clip.wav",
        "",
        "s3://b/k",
    ],
)
def test_other_addresses_are_refused_and_named(url):
    with pytest.raises(ApiError) as caught:
        reader().fetch(url, "message 3: part 2", UrlTime(9.0))
    assert caught.value.status == 400
    assert caught.value.message.startswith("message 3: part 2: ")


def test_only_files_of_the_folder_are_read(tmp_path):
    folder, outside = tmp_path / "clips", tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    outside.mkdir()
    (folder / "a b.wav").write_bytes(b"in")
    (folder / "deep" / "c.wav").write_bytes(b"deep")
    (outside / "secret").write_bytes(b"out")
    (tmp_path / "clips_too").write_bytes(b"out")
    (folder / "link").symlink_to(outside / "secret")
    (folder / "dir").symlink_to(outside)
    clips = reader(audio_folder=str(folder))
    assert fetch(clips, f"file://{folder}/a%20b.wav") == b"in"
    assert fetch(clips, f"file://localhost{folder}/deep/c.wav") == b"deep"
    assert fetch(clips, "file:deep/c.wav") == b"deep"
    messages = {}
    for path in (
        *(
            f"//{folder}/../outside/secret",
            f"//{folder}/%2e%2e/outside/secret",
            f"//{outside}/secret",
        ),
        *(
            f"//{folder}/link",
            f"//{folder}/dir/secret",
            f"//{folder}_too",
            f"//{folder}",
            f"//{folder}/none",
        ),
        *(
            "//[::1/x",
            "///etc/passwd",
            "///dev/zero",
            f"//host{folder}/a%20b.wav",
            f"//{folder}/a%00",
            "//",
            "",
        ),
    ):
        with pytest.raises(ApiError) as caught:
            fetch(clips, f"file:{path}")
        messages[path] = caught.value.message
        assert str(tmp_path) not in caught.value.message
    # Whether a file outside is there cannot be told from the answer.
    assert messages[f"//{outside}/secret"] == messages[f"//{folder}/none"]
    assert messages[f"//{folder}/link"] == messages[f"//{folder}/none"]
    with pytest.raises(ApiError, match="audio-folder"):
        fetch(reader(), f"file://{folder}/a%20b.wav")


def test_decoding_gives_up_where_a_clip_is_too_long():
    """Ten minutes of silence are a few kB of FLAC: what counts is what comes out."""
    buffer = io.BytesIO()
    soundfile.write(buffer, 1e-3 * np.ones(600 * 16_000, np.float32), 16_000, format="FLAC")
    assert len(buffer.getvalue()) < 100_000
    clips = reader(max_audio_s=2.0)
    with pytest.raises(ApiError) as caught:
        decode(clips, buffer.getvalue(), max_samples=32_000)
    assert (caught.value.status, caught.value.code) == (413, "audio_too_long")


def test_features_are_kept_and_limits_hold_for_them_too():
    clips = reader()
    content = wave_bytes(1.0)
    first = decode(clips, content)
    assert first.samples == 16_000
    assert first.features.chunk_tokens == (13,)
    assert decode(clips, content) is first
    with pytest.raises(ApiError):
        decode(clips, content, max_samples=15_000)
