"""Parts of recordings: the same samples as of the whole, and nothing else in memory."""

import dataclasses
import io
import tracemalloc

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import (
    input_file,
    iter_audio,
    load_audio,
    media,
    probe_audio,
    waveform_from_array,
)
from stepaudio_jax.errors import AudioError

FORMATS = [
    ("WAV", "PCM_16", 16_000),
    ("WAV", "FLOAT", 44_100),
    ("FLAC", "PCM_16", 48_000),
    ("MP3", "MPEG_LAYER_III", 44_100),
    ("OGG", "VORBIS", 22_050),
    ("OGG", "VORBIS", 16_000),
    ("WAV", "GSM610", 8_000),
    ("AU", "G721_32", 8_000),
    ("OGG", "OPUS", 48_000),
    ("AIFF", "PCM_24", 8_000),
    ("CAF", "ALAC_16", 44_100),
    ("AU", "PCM_16", 16_001),
]
MEDIA = ["m4a", "mov", "3gp", "webm", "mkv", "aac", "amr", "wma", "ac3"]


def speech_like(samples, rate):
    time = np.arange(samples) / rate
    noise = np.random.default_rng(samples).normal(0, 0.05, samples)
    return (0.3 * np.sin(2 * np.pi * 220 * time) * np.sin(6 * np.pi * time) + noise).astype("f4")


def encoded(seconds, file_format="WAV", subtype="PCM_16", rate=16_000):
    file = io.BytesIO()
    samples = speech_like(int(seconds * rate), rate)
    soundfile.write(file, samples, rate, format=file_format, subtype=subtype)
    return file.getvalue()


def check_parts(source):
    whole = load_audio(source)
    seconds = len(whole) / 16_000
    rng = np.random.default_rng(0)
    parts = [np.sort(rng.uniform(0, seconds, 2)) for _ in range(6)]
    for start, end in [*parts, (0, 0.5), (0.1, 0.2), (seconds - 0.5, seconds), (0, seconds)]:
        if end - start < 0.03:
            continue
        expected = whole[round(start * 16_000) : round(end * 16_000)]
        np.testing.assert_array_equal(load_audio(source, start_s=start, end_s=end), expected)
    np.testing.assert_array_equal(load_audio(source, start_s=1.5), whole[24_000:])
    np.testing.assert_array_equal(load_audio(source, end_s=1.5), whole[:24_000])


@pytest.mark.parametrize(("file_format", "subtype", "rate"), FORMATS)
def test_a_part_has_the_samples_of_the_whole(file_format, subtype, rate):
    check_parts(encoded(3.7, file_format, subtype, rate))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_part_at_the_end_of_a_vorbis_recording(rate):
    """Where libsndfile seeks to another place than it says, in the last page."""
    content = encoded(25.3, "OGG", "VORBIS", rate)
    whole = load_audio(content)
    for start in np.random.default_rng(rate).uniform(4, 25.2, 5):
        expected = whole[round(start * 16_000) :]
        np.testing.assert_array_equal(load_audio(content, start_s=start), expected)


@pytest.mark.parametrize("suffix", MEDIA)
def test_a_part_of_a_phones_recording_has_the_samples_of_the_whole(formats, suffix):
    pytest.importorskip("av", reason="needs the extra `audio`")
    check_parts(formats / "media" / f"speech.{suffix}")


@pytest.mark.parametrize("subtype", ["OPUS", "webm"])
def test_a_part_far_inside_an_opus_recording(tmp_path, subtype):
    """The decoder begins 20 s before the part, and agrees with one that began at the start."""
    content = encoded(45, "OGG", "OPUS", 48_000)
    if subtype == "webm":
        content = in_webm(content, tmp_path / "a.webm")
    whole = load_audio(content)
    for start, end in ((21.3, 22), (30.001, 33.3), (44, 45)):
        np.testing.assert_array_equal(
            load_audio(content, start_s=start, end_s=end),
            whole[round(start * 16_000) : round(end * 16_000)],
        )


def test_a_part_far_inside_an_mp3_file_differs_in_last_bits_only():
    content = encoded(40, "MP3", "MPEG_LAYER_III", 22_050)
    whole = load_audio(content)
    for start, end in ((31.01, 32), (38.003, 39.7)):
        np.testing.assert_allclose(
            load_audio(content, start_s=start, end_s=end),
            whole[round(start * 16_000) : round(end * 16_000)],
            rtol=0,
            atol=3e-7,
        )


def in_webm(ogg, path):
    """Copies an Ogg file's packets into a WebM file."""
    av = pytest.importorskip("av", reason="needs the extra `audio`")
    with av.open(io.BytesIO(ogg)) as source, av.open(str(path), "w") as target:
        track = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = track
                target.mux(packet)
    return path.read_bytes()


def test_aac_far_inside_a_recording_is_found_to_the_sample(formats, monkeypatch):
    """Without noise that the decoder makes up, the samples would be the same too."""
    pytest.importorskip("av", reason="needs the extra `audio`")
    path = formats / "media" / "speech.m4a"
    whole = load_audio(path)
    monkeypatch.setattr(media, "_SEEK_BEHIND_S", 2)
    for start, end in ((2.2, 3.1), (5.0001, 6.5)):
        part = load_audio(path, start_s=start, end_s=end)
        expected = whole[round(start * 16_000) : round(end * 16_000)]
        assert part.shape == expected.shape
        assert np.corrcoef(part, expected)[0, 1] > 0.97
        shifted = np.corrcoef(part[:-8], expected[8:])[0, 1]
        assert shifted < 0.9


def test_a_part_of_samples_in_memory():
    samples = speech_like(44_100, 44_100)
    whole = waveform_from_array(samples, 44_100)
    part = waveform_from_array(samples, 44_100, start_s=0.25, end_s=0.75)
    np.testing.assert_array_equal(part, whole[4000:12_000])
    with pytest.raises(AudioError, match=r"<array>: is 1\.000 s long, and end_s=2 lies behind"):
        waveform_from_array(samples, 44_100, end_s=2)


@dataclasses.dataclass(frozen=True)
class Samples:
    values: np.ndarray
    rate: int


@pytest.mark.parametrize("dtype", ["int16", "int64", "int32"])
def test_samples_of_a_container(dtype):
    """A data set may have widened the 16 bits of its sound."""
    content = encoded(1)
    values = soundfile.read(io.BytesIO(content), dtype="int16")[0].astype(dtype)
    np.testing.assert_array_equal(
        load_audio(Samples(values, 16_000), start_s=0.5), load_audio(content, start_s=0.5)
    )
    floats = (values / 32_768).astype(np.float32)
    np.testing.assert_array_equal(load_audio(Samples(floats, 16_000)), load_audio(content))


def test_integers_of_more_than_16_bits_are_refused():
    values = np.array([0, 40_000] * 400)
    with pytest.raises(AudioError, match="has integers from 0 to 40000, which exceed 16 bits"):
        load_audio(Samples(values, 16_000))


OUT_OF_RANGE = [
    ({"end_s": 99}, r"is 3\.000 s long, and end_s=99 lies behind its end"),
    ({"start_s": 2, "end_s": 3.02}, r"is 3\.000 s long, and end_s=3\.02 lies behind"),
    ({"start_s": 3}, r"is 3\.000 s long, and start_s=3 lies behind"),
    ({"start_s": 50, "end_s": 51}, r"is 3\.000 s long, and start_s=50 lies behind"),
    ({"start_s": 2, "end_s": 1}, "has end_s=1, which is not behind start_s=2"),
    ({"start_s": 1, "end_s": 1}, "has end_s=1, which is not behind start_s=1"),
    ({"start_s": -1}, "has start_s=-1; give seconds from its beginning"),
    ({"end_s": float("nan")}, "has end_s=nan; give seconds"),
    ({"start_s": 1, "end_s": 1.01}, r"is too short: the part from start_s=1 has 160 samples"),
]


@pytest.mark.parametrize(("part", "message"), OUT_OF_RANGE)
@pytest.mark.parametrize(
    ("file_format", "subtype"),
    [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)
def test_a_part_outside_its_file_is_refused(tmp_path, file_format, subtype, part, message):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(3, file_format, subtype))
    with pytest.raises(AudioError, match=f"a.wav: {message}"):
        load_audio(path, **part)
    if file_format != "MP3":
        with pytest.raises(AudioError, match=f"a.wav: {message}"):
            probe_audio(path, **part)


def test_a_part_outside_a_browsers_recording_is_refused(formats):
    pytest.importorskip("av", reason="needs the extra `audio`")
    for part in ({"start_s": 50}, {"start_s": 50, "end_s": 51}, {"start_s": 1, "end_s": 9}):
        with pytest.raises(AudioError, match=r"is 6\.8\d+ s long, and .* lies behind its end"):
            load_audio(formats / "media" / "speech_live.webm", **part)


def test_an_end_may_be_rounded_up():
    content = encoded(2.996)
    np.testing.assert_array_equal(load_audio(content, end_s=3.0), load_audio(content))


@pytest.mark.parametrize("file_format", ["OGG", "MP3", "FLAC", "WAV"])
def test_a_part_behind_the_cut_of_a_file_says_that_it_was_cut_short(file_format):
    subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(file_format, "PCM_16")
    content = encoded(30, file_format, subtype)
    content = content[: round(len(content) * 0.5)]
    with pytest.raises(AudioError, match="cut short"):
        load_audio(content, start_s=20, end_s=25)


def test_probe_gives_the_length_of_a_part(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(encoded(3.3, "FLAC", rate=44_100))
    for part in ({}, {"start_s": 1.1}, {"end_s": 2.3}, {"start_s": 1.1, "end_s": 2.3}):
        assert probe_audio(path, **part) == len(load_audio(path, **part))


@pytest.mark.parametrize(("file_format", "subtype", "rate"), FORMATS)
def test_a_large_file_is_read_through_a_window(tmp_path, monkeypatch, file_format, subtype, rate):
    content = encoded(12, file_format, subtype, rate)
    if file_format == "MP3":
        content = content[417:]  # without the frame that counts the others, as streams are saved
    path = tmp_path / "a"
    path.write_bytes(content)
    expected = load_audio(content)
    monkeypatch.setattr(input_file, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(input_file, "_WINDOW_BYTES", 1000)
    np.testing.assert_array_equal(load_audio(path), expected)
    np.testing.assert_array_equal(load_audio(path, start_s=9), expected[144_000:])
    path.write_bytes(content[:-30])
    with pytest.raises(AudioError, match="cut short"):
        load_audio(path)


@pytest.mark.parametrize("name", ["speech.m4a", "speech_live.webm", "speech.aac", "speech.wma"])
def test_a_large_media_file_is_read_through_a_window(formats, monkeypatch, name):
    pytest.importorskip("av", reason="needs the extra `audio`")
    expected = load_audio(formats / "media" / name)
    monkeypatch.setattr(input_file, "MAX_BYTES_IN_MEMORY", 0)
    np.testing.assert_array_equal(load_audio(formats / "media" / name), expected)


def test_the_pieces_of_a_recording_are_its_samples():
    content = encoded(20, "FLAC", rate=44_100)
    pieces = list(iter_audio(content))
    assert max(map(len, pieces)) < 30_000
    np.testing.assert_array_equal(np.concatenate(pieces), load_audio(content))


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Of 150 s in 29 MB, 9.6 MB remain: no more than a fifth and some blocks are held beside."""
    path = tmp_path / "a.wav"
    samples = speech_like(48_000, 48_000)
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        for _ in range(150):
            file.write(np.stack([samples, samples], axis=1))
    load_audio(path, end_s=1)  # what is imported on first use does not count
    tracemalloc.start()
    try:
        waveform = load_audio(path, channel="mix")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        load_audio(path, start_s=140, end_s=141)
        part_peak = tracemalloc.get_traced_memory()[1] - waveform.nbytes
    finally:
        tracemalloc.stop()
    assert waveform.nbytes == 4 * 150 * 16_000
    assert peak < 1.2 * waveform.nbytes + 6e6
    assert part_peak < 6e6
