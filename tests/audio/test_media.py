"""Recordings of phones and browsers: decoded by PyAV, and by libsndfile where it can."""

import sys

import numpy as np
import pytest

from stepaudio_jax.audio import load_audio, probe_audio
from stepaudio_jax.errors import AudioError
from tests.conftest import SHARED

# Samples at 48 kHz that ffmpeg writes of each file. The recording itself has 330198.
RECORDING = 330_198
FFMPEG_SAMPLES = {
    "speech.3gp": 330_192,  # its index rounds to milliseconds
    "speech.aac": 331_776,  # a stream does not tell what is the encoder's delay
    "speech.ac3": 330_240,
    "speech.amr": 331_200,
    "speech.m4a": 330_192,
    "speech.mkv": RECORDING,
    "speech.mov": 330_192,
    "speech.mp4": 330_192,
    "speech.webm": RECORDING,
    "speech.wma": 329_728,
    "speech_live.webm": RECORDING,
}
# By how many samples at 48 kHz the sound lies behind that of the other files, with ffmpeg too.
DELAYS = {"speech.aac": 1024, "speech.ac3": 256, "speech.amr": 240, "speech.wma": -2048}
MP4 = ("speech.m4a", "speech.mp4", "speech.mov", "speech.3gp")
EXACT_PCM = ("speech.aiff", "speech.caf", "speech_alac.m4a", "speech.flac")


@pytest.fixture(scope="module")
def media(formats):
    pytest.importorskip("av", reason="needs the extra `audio`")
    return formats / "media"


@pytest.fixture(scope="module")
def shared_media():
    folder = SHARED / "formats" / "media"
    if not folder.is_dir():
        pytest.skip("needs the shared folder 'formats' beside the checkout")
    pytest.importorskip("av", reason="needs the extra `audio`")
    return folder


@pytest.mark.parametrize("name", FFMPEG_SAMPLES)
def test_every_container_is_decoded_as_ffmpeg_does(media, name):
    waveform = load_audio(media / name)
    assert waveform.dtype == np.float32
    assert len(waveform) == -(-FFMPEG_SAMPLES[name] // 3)
    np.testing.assert_array_equal(waveform, load_audio((media / name).read_bytes()))
    assert probe_audio(media / name) == (len(waveform) if name in MP4 else None)
    # The same speech, in time with the Ogg file that libsndfile decodes, to half a millisecond.
    reference = load_audio(media / "speech.opus")
    spectrum = np.fft.rfft(reference, 1 << 18).conj() * np.fft.rfft(waveform, 1 << 18)
    correlation = np.fft.irfft(spectrum)
    lag = (int(np.argmax(correlation)) + (1 << 17)) % (1 << 18) - (1 << 17)
    assert abs(lag - DELAYS.get(name, 0) / 3) <= 8
    size = min(len(reference), len(waveform) - max(lag, 0))
    shifted = waveform[max(lag, 0) :][:size] if lag >= 0 else waveform[:size]
    start = max(-lag, 0)
    similar = np.corrcoef(shifted[: size - start], reference[start:size])[0, 1]
    assert similar > (0.8 if name == "speech.amr" else 0.96)


def test_opus_is_decoded_alike_in_every_container(media):
    """By libopus: FFmpeg's own decoder differs from it by up to a third of full scale."""
    expected = load_audio(media / "speech.opus")
    for name in ("speech.webm", "speech_live.webm", "speech.mkv"):
        np.testing.assert_allclose(load_audio(media / name), expected, rtol=0, atol=1e-6)


def test_one_track_sounds_alike_in_every_mpeg_4_file(media):
    expected = load_audio(media / "speech.m4a", channel="mix")
    for name in MP4[1:]:
        np.testing.assert_array_equal(load_audio(media / name, channel="mix"), expected)


@pytest.mark.parametrize("name", EXACT_PCM)
def test_lossless_files_have_the_samples_of_the_wav_file(shared_media, name):
    expected = load_audio(shared_media / "speech.wav")
    np.testing.assert_array_equal(load_audio(shared_media / name), expected)
    assert probe_audio(shared_media / name) == len(expected)


@pytest.mark.parametrize("name", FFMPEG_SAMPLES)
@pytest.mark.parametrize("kept", [0.999, 0.97, 0.61, 0.3, 0.02])
def test_files_cut_short_are_refused(media, name, kept):
    content = (media / name).read_bytes()
    with pytest.raises(AudioError, match="cut short") as error:
        load_audio(content[: round(len(content) * kept)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*FFMPEG_SAMPLES, "speech_vbr.mp3"])
def test_a_cut_is_missed_only_between_the_frames_of_a_stream(media, name):
    """Live WebM, AAC, AMR and AC-3 do not tell how many frames there should be."""
    content = (media / name).read_bytes()
    lengths = np.random.default_rng(0).integers(100, len(content), 60)
    missed = 0
    for length in lengths:
        try:
            load_audio(content[:length])
        except AudioError:
            continue
        missed += 1
    assert missed <= (10 if name in ("speech.amr", "speech_live.webm", "speech.aac") else 0)


def test_the_missing_extra_is_named(media, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for name in FFMPEG_SAMPLES:
        for read in (load_audio, probe_audio):
            with pytest.raises(AudioError, match=r"install the extra .*'stepaudio-jax\[audio\]'"):
                read(media / name)
    assert len(load_audio(media / "speech.opus")) == 110_066


def written(path, *streams, rate=48_000, **options):
    """Writes [samples] of each audio stream to a file, with any number of them."""
    import av

    with av.open(str(path), "w", options=options) as container:
        tracks = [container.add_stream("aac", rate=rate, layout="mono") for _ in streams]
        for track, samples in zip(tracks, streams, strict=True):
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            for packet in [*track.encode(frame), *track.encode(None)]:
                container.mux(packet)
    return path


def tone(seconds, rate=48_000, hertz=300):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype("f4")


def with_pictures(path, samples, rate=48_000):
    """Writes a video of ten pictures, with one audio track, or with none."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        track = container.add_stream("aac", rate=rate, layout="mono") if len(samples) else None
        for shade in range(10):
            picture = np.full((32, 32, 3), 20 * shade, np.uint8)
            for packet in video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        container.mux(video.encode(None))
        if track is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            container.mux([*track.encode(frame), *track.encode(None)])
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_the_sound_of_a_video(media, tmp_path, suffix):
    path = with_pictures(tmp_path / f"a.{suffix}", tone(1))
    waveform = load_audio(path)
    assert 16_000 <= len(waveform) <= 16_400  # the encoder's delay is counted
    assert 0.25 < np.abs(waveform[2000:14_000]).max() < 0.35


def test_a_video_without_sound_is_refused(media, tmp_path):
    path = with_pictures(tmp_path / "a.mp4", tone(0))
    for read in (load_audio, probe_audio):
        with pytest.raises(AudioError, match=r"a.mp4: has no audio track \(video only\)"):
            read(path)


def test_several_audio_tracks_are_refused(media, tmp_path):
    path = written(tmp_path / "a.mp4", tone(1), tone(1, hertz=500))
    with pytest.raises(AudioError, match="has 2 audio tracks; write the one to be heard"):
        load_audio(path)


def test_a_fragmented_file_is_decoded_to_its_end(media, tmp_path):
    fragments = {"movflags": "frag_every_frame+empty_moov"}
    path = written(tmp_path / "a.mp4", tone(2), **fragments)
    assert len(load_audio(path)) >= 32_000
    content = path.read_bytes()
    with pytest.raises(AudioError, match="cut short"):
        load_audio(content[:-100])


def test_two_webm_recordings_in_one_file_are_refused(media):
    content = (media / "speech_live.webm").read_bytes()
    with pytest.raises(AudioError, match="several WebM recordings one after another"):
        load_audio(content + content)


def test_damage_is_refused_in_one_line(media):
    content = bytearray((media / "speech.m4a").read_bytes())
    content[2000:40_000] = bytes(38_000)
    with pytest.raises(AudioError, match="damaged") as error:
        load_audio(bytes(content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["speech.m4a", "speech.webm", "speech.amr", "speech.wma"])
def test_any_damage_gives_finite_sound_or_an_audio_error(media, name):
    original = (media / name).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(15):
        content = bytearray(original)
        for place in rng.integers(0, min(len(content), 4000), 5):
            content[place] = rng.integers(256)
        try:
            waveform = load_audio(bytes(content))
        except AudioError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert np.isfinite(waveform).all()


def encoded_as(path, codec, samples, rate, form):
    """Writes [samples] of integers as a file of a container and codec that soundfile lacks."""
    import av

    with av.open(str(path), "w", format=form) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(track.codec_context.format.name, "mono", rate)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        queue = av.AudioFifo()
        for piece in resampler.resample(frame):
            queue.write(piece)
        size = track.codec_context.frame_size or 1024
        pieces = [*queue.read_many(size), *([queue.read(partial=True)] if queue.samples else [])]
        for piece in [*pieces, None]:
            for packet in track.encode(piece):
                container.mux(packet)
    return path


def test_lossless_core_audio_whose_cookie_libsndfile_does_not_know(media, tmp_path, monkeypatch):
    """As FFmpeg writes it: left to PyAV."""
    samples = (tone(1.3, 16_000) * 32_767).astype(np.int16)
    path = encoded_as(tmp_path / "a.caf", "alac", samples, 16_000, "caf")
    np.testing.assert_array_equal(load_audio(path), samples.astype(np.float32) / 32_768)
    np.testing.assert_array_equal(load_audio(path, start_s=0.5), load_audio(path)[8000:])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"'stepaudio-jax\[audio\]'"):
        load_audio(path)


def test_mp3_in_a_wav_file_says_only_about_how_long_it_is(media, tmp_path):
    samples = (tone(3.5, 44_100) * 32_767).astype(np.int16)
    path = encoded_as(tmp_path / "a.wav", "libmp3lame", samples, 44_100, "wav")
    whole = load_audio(path)
    assert len(whole) >= 3.5 * 16_000
    assert probe_audio(path) is None
    np.testing.assert_array_equal(load_audio(path, start_s=2), whole[32_000:])
