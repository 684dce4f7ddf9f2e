"""load_audio: formats by content, the first channel, and errors that name the file."""

import ctypes
import io
import os
import pathlib
import pickle
import platform
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.audio import load_audio, resample
from stepaudio_jax.audio.decoder_messages import suppress_decoder_messages
from stepaudio_jax.errors import AudioError

FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("AIFF", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("AU", "PCM_16"),
]
EXACT = ("WAV", "FLAC", "AIFF", "CAF", "AU")
CUTS = ["WAV", "FLAC", "MP3", "OGG", "AIFF", "CAF", "AU"]


def speech_like(samples, rate=16_000, seed=0):
    time = np.arange(samples) / rate
    noise = np.random.default_rng(seed).normal(0, 0.01, samples)
    return (0.3 * np.sin(2 * np.pi * 220 * time) * np.sin(2 * np.pi * 3 * time) + noise).astype(
        np.float32
    )


def encoded(waveform, file_format="WAV", subtype=None, rate=16_000):
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=file_format, subtype=subtype)
    return file.getvalue()


def wav_of_samples(samples):
    """A float WAV written by hand, since no encoder would write NaN as asked."""
    body = np.asarray(samples, "<f4").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(body),
        b"WAVE",
        b"fmt ",
        16,
        3,
        1,
        16_000,
        64_000,
        4,
        32,
        b"data",
        len(body),
    )
    return header + body


@pytest.mark.parametrize(("file_format", "subtype"), FORMATS)
@pytest.mark.parametrize("name", ["clip.wav", "clip.mp3", "clip"])
def test_formats_are_recognised_by_content(tmp_path, file_format, subtype, name):
    waveform = speech_like(16_000)
    path = tmp_path / name
    path.write_bytes(encoded(waveform, file_format, subtype))
    loaded = load_audio(path)
    assert loaded.dtype == np.float32
    assert loaded.shape == (16_000,)
    np.testing.assert_array_equal(loaded, load_audio(path.read_bytes()))
    # Lossy formats keep the waveform's shape, not its samples.
    assert np.corrcoef(loaded, waveform)[0, 1] > (0.9999 if file_format in EXACT else 0.98)


def test_first_channel_not_the_mean():
    left, right = speech_like(8000), speech_like(8000, seed=1)[::-1]
    loaded = load_audio(encoded(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_array_equal(loaded, left)


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_resamples(rate):
    waveform = speech_like(rate, rate)
    loaded = load_audio(encoded(waveform, subtype="FLOAT", rate=rate))
    np.testing.assert_array_equal(loaded, resample(waveform, rate, 16_000))
    assert loaded.shape == (16_000,)


def test_a_long_clip_is_read_to_its_end():
    waveform = speech_like(70 * 16_000)
    np.testing.assert_array_equal(load_audio(encoded(waveform, subtype="FLOAT")), waveform)


def test_the_real_clips(shared_audio):
    seconds = {
        path.name: len(load_audio(path)) / 16_000 for path in sorted(shared_audio.glob("*.wav"))
    }
    assert seconds["big_bench_audio_test.wav"] == pytest.approx(26.9, abs=0.05)  # the MP3
    assert seconds["music_playing_followed_by_a_woman_speaking.wav"] == pytest.approx(
        10.0, abs=0.05
    )  # stereo
    assert seconds["song.wav"] == pytest.approx(15.9, abs=0.05)
    assert len(seconds) == 8


def test_unusable_files_are_refused(tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("not a sound at all\n" * 100)
    empty = tmp_path / "empty.wav"
    empty.touch()
    nan = tmp_path / "nan.wav"
    nan.write_bytes(wav_of_samples([np.nan] * 200))
    fifo = tmp_path / "fifo.wav"
    os.mkfifo(fifo)
    for path, reason in [
        (tmp_path / "missing.wav", "does not exist"),
        (tmp_path, "is a folder"),
        (text, "is not a sound file"),
        (empty, r"is empty \(0 bytes\)"),
        (nan, "has 200 NaN or infinite samples of 200"),
        (fifo, "not a regular file"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (text / "inside.wav", "cannot be read"),
    ]:
        with pytest.raises(AudioError, match=reason) as error:
            load_audio(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["a\0b.wav", "\ud800.wav", "line\nbreak.wav"])
def test_impossible_paths_are_refused(path):
    with pytest.raises(AudioError, match=r"audio '.*'") as error:
        load_audio(path)
    assert str(error.value).isprintable()


def test_unusable_bytes_are_refused():
    samples = speech_like(16_000)
    for content, reason in [
        (b"", "is empty"),
        (b"RIFF", "is not a sound file"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(100), "is not a sound file"),
        (encoded(samples, "W64"), "format W64"),
        (encoded(samples, rate=999), "999 Hz"),
        (encoded(samples[:0]), "has no samples"),
        (wav_of_samples([0.0] * 999 + [np.inf]), "has 1 NaN or infinite samples of 1000"),
        (wav_of_samples(np.arange(1000)), "samples up to 999"),
    ]:
        with pytest.raises(AudioError, match=reason) as error:
            load_audio(content)
        assert error.value.source == "<bytes>"


@pytest.mark.parametrize(("rate", "longest_refused"), [(16_000, 320), (48_000, 960), (8_000, 160)])
def test_clips_without_a_token_are_too_short(rate, longest_refused):
    waveform = speech_like(longest_refused + 1, rate)
    assert len(load_audio(encoded(waveform, rate=rate))) > 320
    with pytest.raises(AudioError, match=f"too short: {longest_refused} samples at {rate} Hz"):
        load_audio(encoded(waveform[:-1], rate=rate))
    assert len(load_audio(encoded(waveform[:3], rate=rate), length_convention="vllm")) > 0


@pytest.mark.parametrize("file_format", CUTS)
@pytest.mark.parametrize("kept", [0.999, 0.97, 0.6, 0.3, 0.05])
def test_files_cut_short_are_refused(file_format, kept):
    content = encoded(speech_like(48_000), file_format)
    load_audio(content)
    with pytest.raises(AudioError, match="cut short"):
        load_audio(content[: round(len(content) * kept)])


@pytest.mark.parametrize("file_format", CUTS)
def test_every_cut_is_detected(file_format):
    """Every cut of a small file is refused; the last byte of an MP3 matters like any other."""
    content = encoded(speech_like(4000), file_format)
    load_audio(content)
    for length in range(1, len(content), max(1, len(content) // 300)):
        with pytest.raises(AudioError):
            load_audio(content[:length])
    with pytest.raises(AudioError):
        load_audio(content[:-1])


def mp3_frames(file_format_bytes):
    """Where each frame starts: by the sync word and the bit rates of MPEG 2 layer III."""
    starts, position = [], 0
    rates = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    while position < len(file_format_bytes):
        assert file_format_bytes[position : position + 2] == b"\xff\xf3"
        third = file_format_bytes[position + 2]
        starts.append(position)
        position += 72 * rates[(third >> 4) - 1] * 1000 // 16_000 + (third >> 1 & 1)
    return starts


def mp3_without_header_frame():
    """An MP3 of variable bit rate without a frame count, and where its frames start."""
    content = encoded(speech_like(48_000), "MP3")
    starts = mp3_frames(content)
    return content[starts[1] :], [start - starts[1] for start in starts[1:]]


def test_an_mp3_without_a_count():
    content, starts = mp3_without_header_frame()
    lengths = np.diff(starts)
    assert (
        lengths.max() > 1.5 * lengths.min()
    )  # so that its length cannot be told from its first frame
    assert len(load_audio(content)) == 576 * len(starts) - 529
    for cut in (-1, -20):
        with pytest.raises(AudioError, match="last MP3 frame is incomplete"):
            load_audio(content[:cut])
    with pytest.raises(AudioError, match="last MP3 frame is incomplete"):
        load_audio(content[: starts[40] + 2])
    # The documented limit: nothing tells that frames are missing.
    assert len(load_audio(content[: starts[40]])) == 576 * 40 - 529


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000])
def test_an_mp3_sounds_the_same_in_blocks_as_in_one_piece(rate):
    """A decoder that begins anew with each block gets the first frame of some of them wrong."""
    noise = np.random.default_rng(0).normal(0, 0.05, 12 * rate).astype(np.float32)
    content = encoded(speech_like(12 * rate, rate) + noise, "MP3", rate=rate)
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    np.testing.assert_allclose(
        load_audio(content), resample(expected, rate, 16_000), rtol=0, atol=5e-7
    )


def test_concatenated_mp3s_are_decoded_to_the_end():
    content = encoded(speech_like(48_000), "MP3")
    together = load_audio(content + content)
    assert len(together) >= 96_000
    np.testing.assert_allclose(together[1000:40_000], load_audio(content)[1000:40_000], atol=1e-3)
    assert np.abs(together[-16_000:-3000]).max() > 0.1


def test_concatenated_ogg_streams_are_refused():
    content = encoded(speech_like(48_000), "OGG")
    with pytest.raises(AudioError, match="several Ogg streams"):
        load_audio(content + content)


def test_an_mp3_with_tags():
    content, _ = mp3_without_header_frame()
    picture = b"\xff\xfb\x90\x00 not a frame " * 20
    size = len(picture)
    id3 = (
        b"ID3\x04\x00\x00"
        + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
        + picture
    )
    tag = b"TAG" + bytes(125)
    expected = load_audio(content)
    np.testing.assert_array_equal(load_audio(id3 + content + tag), expected)
    with pytest.raises(AudioError, match="last MP3 frame is incomplete"):
        load_audio(id3 + content[:-20])


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="messages are suppressed with glibc only"
)
def test_messages_of_libmpg123_are_suppressed(capfd):
    """For files of LAME, tags, silence, concatenations; what other threads print gets through."""
    library = ctypes.CDLL(None)
    contents = []
    for rate in (16_000, 22_050, 44_100):
        file = io.BytesIO()
        soundfile.write(
            file, speech_like(3 * rate, rate), rate, format="MP3", bitrate_mode="CONSTANT"
        )
        contents += [file.getvalue(), file.getvalue() * 2, file.getvalue() + bytes(5000)]
    soundfile.read(io.BytesIO(contents[-1]))
    assert (
        "Warning: Xing stream size off" in capfd.readouterr().err
    )  # there is something to keep out of sight
    with ThreadPoolExecutor(3) as pool:
        assert all(len(waveform) for waveform in pool.map(load_audio, contents))
    with suppress_decoder_messages():
        library.fputs(
            b"[src/libmpg123/x.c:1] error: no\nanother library's line\n",
            ctypes.c_void_p.in_dll(library, "stderr"),
        )
    print("Python's line", file=sys.stderr)
    assert capfd.readouterr().err == "another library's line\nPython's line\n"


@pytest.mark.parametrize(
    ("version", "rate"),
    [("v1", 44_100), ("v1", 48_000), ("v1", 32_000), ("v2", 22_050), ("v2.5", 8_000)],
)
def test_mp3_frames_are_found_at_every_rate(version, rate):
    content = encoded(speech_like(rate, rate), "MP3", rate=rate)
    assert len(load_audio(content)) == 16_000, version
    with pytest.raises(AudioError, match="cut short"):
        load_audio(content[: len(content) // 2])


def test_a_wav_written_to_a_pipe():
    content = bytearray(encoded(speech_like(4000)))
    place = content.index(b"data") + 4
    content[4:8] = content[place : place + 4] = b"\xff\xff\xff\xff"
    assert len(load_audio(bytes(content))) == 4000


def test_an_unfinished_wav_is_not_called_empty():
    content = bytearray(encoded(speech_like(4000)))
    place = content.index(b"data") + 4
    content[place : place + 4] = bytes(4)
    with pytest.raises(
        AudioError,
        match="was never finished: its header says 0 bytes of samples and 8000 are there",
    ):
        load_audio(bytes(content))
    empty = bytes(content[: place + 4])
    for rest in (b"", struct.pack("<4sI", b"LIST", 4) + b"abcd"):
        with pytest.raises(AudioError, match="has no samples"):
            load_audio(empty + rest)


def test_a_wav_with_chunks_around_its_data():
    content = encoded(speech_like(4001))
    place = content.index(b"data")
    odd = struct.pack("<4sI", b"LIST", 5) + b"abcde\0"
    with_chunks = content[:place] + odd + content[place:] + odd
    assert len(load_audio(with_chunks)) == 4001
    with pytest.raises(AudioError, match=r"says 8002 bytes of samples and 8000 are there"):
        load_audio(content[:place] + odd + content[place:-2])


def test_rf64():
    content = encoded(speech_like(4000), "RF64")
    assert len(load_audio(content)) == 4000
    with pytest.raises(AudioError, match="cut short: its header says"):
        load_audio(content[:-100])


def test_a_flac_that_does_not_say_its_length():
    content = bytearray(encoded(speech_like(4000), "FLAC"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    with pytest.raises(AudioError, match="does not say how many samples"):
        load_audio(bytes(content))


def test_a_flac_that_promises_more_than_it_has():
    content = bytearray(encoded(speech_like(4000), "FLAC"))
    content[21] |= 0x0F
    content[22:26] = b"\xff\xff\xff\xff"
    with pytest.raises(AudioError, match="cut short"):  # and not by running out of memory
        load_audio(bytes(content))


def test_a_damaged_flac():
    content = bytearray(encoded(speech_like(48_000), "FLAC"))
    content[len(content) // 2] ^= 0x55
    with pytest.raises(AudioError, match="damaged"):
        load_audio(bytes(content))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), file_format=st.sampled_from(CUTS))
def test_any_bytes_give_finite_sound_or_an_audio_error(data, file_format):
    content = bytearray(encoded(speech_like(2000), file_format))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 200)))] = data.draw(
            st.integers(0, 255)
        )
    content = bytes(content) + data.draw(st.binary(max_size=20))
    try:
        waveform = load_audio(content)
    except AudioError:
        pass
    else:
        assert waveform.dtype == np.float32
        assert np.isfinite(waveform).all()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"", b"RIFF\x40\0\0\0WAVE", b"fLaC", b"OggS", b"ID3", b"\xff\xfb"]),
    st.binary(max_size=300),
)
def test_random_bytes_are_an_audio_error(start, rest):
    with pytest.raises(AudioError):
        load_audio(start + rest)


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "is empty")))
    assert (str(error), error.source, error.reason) == (
        "audio a.wav: is empty",
        "a.wav",
        "is empty",
    )


def test_import_is_light():
    """Reading threads and the corpus need no JAX, and librosa's import costs more than a second."""
    root = pathlib.Path(__file__).parents[2]
    code = """
import sys, stepaudio_jax.audio
print(sorted({'jax', 'librosa', 'torch', 'numba'} & set(sys.modules)))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
