"""Samples in memory are heard as the same samples in a file are."""

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import load_audio, waveform_from_array
from stepaudio_jax.errors import AudioError


def tone(channels=1, rate=22_050, seconds=0.3):
    time = np.arange(int(rate * seconds)) / rate
    columns = [0.4 * np.sin(2 * np.pi * (300 + 200 * index) * time) for index in range(channels)]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("channel", ["first", "mix"])
@pytest.mark.parametrize(
    ("dtype", "subtype"),
    [("float32", "FLOAT"), ("int16", "PCM_16"), ("int32", "PCM_32"), ("uint8", "PCM_U8")],
)
def test_an_array_gives_the_waveform_of_a_wav_file_with_the_same_samples(
    tmp_path, channel, dtype, subtype
):
    samples = tone(channels=2)
    if dtype == "uint8":
        samples = np.round(samples * 127 + 128).astype(np.uint8)
        soundfile.write(tmp_path / "a.wav", (samples.astype(float) - 128) / 128, 22_050, subtype)
    else:
        if dtype != "float32":
            samples = samples * np.iinfo(dtype).max
        samples = samples.astype(dtype)
        soundfile.write(tmp_path / "a.wav", samples, 22_050, subtype)
    expected = load_audio(tmp_path / "a.wav", channel=channel)
    np.testing.assert_array_equal(
        waveform_from_array(samples, 22_050, channel=channel), expected, strict=True
    )


def test_one_channel_may_have_one_dimension_or_two():
    samples = tone()
    np.testing.assert_array_equal(
        waveform_from_array(samples[:, 0], np.int64(22_050)), waveform_from_array(samples, 22_050.0)
    )


REFUSED = {
    "no rate": (tone(), None, "has the sample rate None; it must be a whole number of Hz"),
    "half a Hz": (tone(), 16_000.5, "must be a whole number of Hz"),
    "not a number": (tone(), float("nan"), "must be a whole number of Hz"),
    "seconds for Hz": (tone(), 2, "has the sample rate 2 Hz; 1000 to 768000 are allowed"),
    "no samples": (np.zeros(0), 16_000, "has no samples"),
    "too short": (np.ones(10), 16_000, "is too short: 10 samples at 16000 Hz"),
    "channels first": (tone(2).T, 16_000, r"laid out as \[channels, samples\]: transpose it"),
    "three dimensions": (np.zeros((1, 2, 3)), 16_000, r"has the shape \(1, 2, 3\)"),
    "a number": (np.float32(1), 16_000, r"has the shape \(\)"),
    "words": (np.array(["a"]), 16_000, "has the dtype <U1"),
    "int64": (np.ones(16_000, int), 16_000, "has the dtype int64; give floats, int16, int32"),
    "integers as floats": (20_000 * tone(), 16_000, "full scale is 1"),
    "not finite": (np.full(16_000, np.inf), 16_000, "NaN or infinite samples"),
    "silent first channel": (tone(2) * [0, 1], 16_000, "has a silent first channel"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_sound_is_refused_by_name(kind):
    samples, rate, message = REFUSED[kind]
    with pytest.raises(AudioError, match=f"audio my clip: .*{message}"):
        waveform_from_array(samples, rate, name="my clip")
