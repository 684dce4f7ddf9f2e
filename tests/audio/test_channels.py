"""Clips with several channels: the first or the mean is used, and never silence for sound."""

import io

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import load_audio
from stepaudio_jax.errors import AudioError

RATE = 16_000
FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


def noise(peak=0.5, seed=0, samples=8000):
    return (peak * np.random.default_rng(seed).uniform(-1, 1, samples)).astype(np.float32)


def clip(*channels, file_format="WAV", subtype="FLOAT"):
    file = io.BytesIO()
    soundfile.write(file, np.stack(channels, axis=1), RATE, format=file_format, subtype=subtype)
    return file.getvalue()


SILENT = np.zeros(8000, np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_first_and_mix(count):
    channels = [noise(0.2 + 0.1 * number, seed=number) for number in range(count)]
    content = clip(*channels)
    np.testing.assert_array_equal(load_audio(content), channels[0])
    np.testing.assert_array_equal(load_audio(content, channel="first"), channels[0])
    mean = np.mean(np.stack(channels, axis=1).astype(np.float64), axis=1)
    np.testing.assert_allclose(load_audio(content, channel="mix"), mean, atol=1e-7)


def test_a_long_clip_is_mixed_to_its_end():
    left, right = noise(samples=200_000), noise(seed=1, samples=200_000)
    np.testing.assert_allclose(
        load_audio(clip(left, right), channel="mix"), (left + right) / 2, atol=1e-7
    )


@pytest.mark.parametrize(("file_format", "subtype"), FORMATS)
def test_a_silent_first_channel_is_an_error_that_names_the_setting(tmp_path, file_format, subtype):
    path = tmp_path / "right.wav"
    tone = (0.5 * np.sin(2 * np.pi * 220 * np.arange(8000) / RATE)).astype(np.float32)
    path.write_bytes(clip(SILENT, tone, file_format=file_format, subtype=subtype))
    with pytest.raises(AudioError) as error:
        load_audio(path)
    said = str(error.value)
    assert said.startswith(
        f"audio {path}: has a silent first channel, and channel 2 of 2 is not silent; "
    )
    assert "data.channel=mix" in said
    assert "--channel mix" in said
    heard = load_audio(path, channel="mix")[1000:7000]  # an encoder's edges are its own
    assert 0.2 < np.abs(heard).max() < 0.3


@pytest.mark.parametrize(
    "first",
    [
        SILENT + np.float32(0.01),  # a constant offset
        noise(6e-5),  # the dither of 16 bits
        noise(4e-4),  # what a lossy encoder leaks of a loud channel
    ],
)
def test_a_channel_far_below_another_is_silent(first):
    with pytest.raises(AudioError, match="channel 3 of 4 is not silent"):
        load_audio(clip(first, SILENT, noise(), noise(0.1)))


@pytest.mark.parametrize(
    "channels",
    [
        (SILENT,),
        (SILENT, SILENT),
        (SILENT, noise(9e-5)),
        (noise(9e-5), noise(2e-4)),  # two channels of a quiet room
        (noise(0.01), noise()),
        (noise(), SILENT),
        (noise(), noise(seed=1), SILENT),
    ],
)
@pytest.mark.parametrize("channel", ["first", "mix"])
def test_quiet_clips_and_quiet_other_channels_are_accepted(channels, channel):
    assert len(load_audio(clip(*channels), channel=channel)) == 8000


@pytest.mark.parametrize(
    ("file_format", "subtype"), [form for form in FORMATS if form[0] in ("WAV", "FLAC")]
)
def test_channels_that_cancel_are_an_error_of_the_mix_only(file_format, subtype):
    content = clip(noise(), -noise(), file_format=file_format, subtype=subtype)
    with pytest.raises(
        AudioError,
        match=r"has 2 channels that cancel each other in their mean; set data\.channel=first",
    ):
        load_audio(content, channel="mix")
    assert np.abs(load_audio(content)).max() > 0.4


def test_non_finite_samples_count_in_the_reduced_channel_only():
    broken = noise()
    broken[7] = np.nan
    assert len(load_audio(clip(noise(), broken))) == 8000
    with pytest.raises(AudioError, match="has 1 NaN or infinite samples of 8000"):
        load_audio(clip(noise(), broken), channel="mix")
    with pytest.raises(AudioError, match="has 1 NaN"):
        load_audio(clip(broken, noise()))
    endless = np.full(8000, np.inf, np.float32)
    assert len(load_audio(clip(noise(), endless))) == 8000
    for channel in ("first", "mix"):
        with pytest.raises(AudioError, match="has 8000 NaN or infinite samples"):
            load_audio(clip(endless, -endless), channel=channel)


def test_unknown_channel_settings_are_refused():
    with pytest.raises(ValueError, match="channel='right' is not one of first, mix"):
        load_audio(clip(noise(), noise()), channel="right")
