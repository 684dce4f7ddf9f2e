"""Clips by every kind of name: files, parts of files, containers, data URIs and URLs."""

import base64

import numpy as np
import pytest
import soundfile

from stepaudio_jax.config import DataConfig
from stepaudio_jax.data.clips import load_clip, load_silence, open_clip_cache, probe_clip
from stepaudio_jax.errors import AudioError, ConfigError, StorageError
from stepaudio_jax.text.dialogue import AudioPart


@pytest.fixture(scope="module")
def expected(formats):
    samples, _ = soundfile.read(formats / "clips" / "a.wav", dtype="float32")
    return samples


def test_names_of_one_clip_give_the_same_samples(formats, expected):
    content = (formats / "clips" / "a.wav").read_bytes()
    uri = f"data:audio/wav;base64,{base64.b64encode(content).decode()}"
    names = [
        str(formats / "clips" / "a.wav"),
        uri,
        f"{formats}/webdataset/talks-000000.tar#a.wav",
        f"{formats}/hf_parquet/train-00000-of-00001.parquet#0/audio",
        f"{formats}/array_record/examples-00000-of-00001.array_record#0/audio",
        f"{formats}/tfrecord/talks-00000-of-00001.tfrecord#0/audio",
        f"{formats}/tfds/talks/plain/1.0.0/talks-train.array_record-00000-of-00001#1/speech",
    ]
    for name in names:
        np.testing.assert_array_equal(load_clip(AudioPart(name)), expected, err_msg=name[:99])
        assert probe_clip(AudioPart(name)) == len(expected)


def test_part_of_a_clip(formats, expected):
    for name in ("clips/a.wav", "tfds/talks/plain/1.0.0/talks-train.array_record-00000-of-00001"):
        place = "" if name.endswith(".wav") else "#1/speech"
        part = AudioPart(f"{formats}/{name}{place}", start_s=0.25, end_s=0.75)
        np.testing.assert_array_equal(load_clip(part), expected[4000:12_000])
        assert probe_clip(part) == 8000
        with pytest.raises(AudioError, match=r"1\.16|1\.15"):
            load_clip(AudioPart(part.path, start_s=0.25, end_s=9.0))


def test_silence_has_the_length_of_the_clip_and_no_sound(formats, expected):
    silence = load_silence(AudioPart(str(formats / "clips" / "a.wav")))
    assert silence.shape == expected.shape
    assert silence.dtype == np.float32
    assert not silence.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.wav", "gone.wav: does not exist"),
        ("data:audio/wav;base64,UklGR*", "is not base64"),
        ("data:audio/wav;base64,", r"is empty \(0 bytes\)"),
        ("https://example.com/a.wav", "is a URL, which is not read unless data.allow_urls"),
        ("http://example.com/a.wav", "is a URL"),
        ("{formats}/webdataset/talks-000000.tar#z.wav", "z.wav"),
    ],
)
def test_names_of_no_clip_are_errors(formats, name, message):
    for read in (load_clip, load_silence, probe_clip):
        with pytest.raises(AudioError, match=message) as error:
            read(AudioPart(name.format(formats=formats)))
        assert "\n" not in str(error.value)


def test_refused_bucket_is_no_bad_clip(gcs):
    """`data.on_bad_audio="skip"` would leave out every clip of it."""
    gcs.put("bucket", "a.wav", b"RIFF")
    gcs.forbidden.add("bucket")
    with pytest.raises(StorageError, match="403"):
        load_clip(AudioPart("gs://bucket/a.wav"))


def test_clips_of_buckets_are_kept_on_the_disk(formats, expected, gcs, tmp_path):
    names = {"a.wav": "clips/a.wav", "x.tar#a.wav": "webdataset/talks-000000.tar"}
    cache = open_clip_cache(DataConfig(clip_cache_dir=str(tmp_path / "kept"), clip_cache_gb=1.0))
    for name, file in names.items():
        gcs.put("bucket", name.partition("#")[0], (formats / file).read_bytes())
        part = AudioPart(f"gs://bucket/{name}")
        assert probe_clip(part, cache=cache) == len(expected)
        num_files = len(list(tmp_path.rglob("??/*")))
        assert num_files == 1 + ("#" in name)
        del gcs.requests[:]
        for read in (load_clip, load_silence, probe_clip):
            read(part, cache=cache)
        np.testing.assert_array_equal(load_clip(part, cache=cache), expected)
        some = AudioPart(part.path, start_s=0.25, end_s=0.5)
        np.testing.assert_array_equal(load_clip(some, cache=cache), expected[4000:8000])
        assert not [line for line in gcs.requests if "alt=media" in line]
        assert len(list(tmp_path.rglob("??/*"))) == num_files
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_clips_of_this_machine_are_not_kept(formats, tmp_path):
    cache = open_clip_cache(DataConfig(clip_cache_dir=str(tmp_path)))
    content = base64.b64encode((formats / "clips" / "a.wav").read_bytes()).decode()
    for name in (
        str(formats / "clips" / "a.wav"),
        f"{formats}/webdataset/talks-000000.tar#a.wav",
        f"data:audio/wav;base64,{content}",
    ):
        load_clip(AudioPart(name), cache=cache)
        probe_clip(AudioPart(name), cache=cache)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["used"]


def test_errors_name_a_clip_that_is_kept_by_its_address(gcs, tmp_path):
    gcs.put("bucket", "a.wav", b"RIFF1234WAVE")
    cache = open_clip_cache(DataConfig(clip_cache_dir=str(tmp_path)))
    for _ in range(2):
        for read in (load_clip, probe_clip):
            with pytest.raises(AudioError, match=r"^audio gs://bucket/a\.wav: ") as error:
                read(AudioPart("gs://bucket/a.wav"), cache=cache)
            assert str(tmp_path) not in str(error.value)
    with pytest.raises(AudioError, match=r"gone.wav: does not exist"):
        load_clip(AudioPart("gs://bucket/gone.wav"), cache=cache)


def test_cache_that_cannot_be_is_a_mistake_of_the_configuration(tmp_path):
    (tmp_path / "file").write_text("")
    assert open_clip_cache(DataConfig()) is None
    with pytest.raises(ConfigError, match=f"clip_cache_dir={tmp_path}/file: cannot keep clips"):
        open_clip_cache(DataConfig(clip_cache_dir=str(tmp_path / "file")))
    for settings, message in (
        ({"clip_cache_dir": "gs://bucket/clips"}, "must be a folder on the host's own disk"),
        ({"clip_cache_dir": ""}, "write None for none"),
        ({"clip_cache_gb": 0.0}, "must be positive"),
        ({"clip_cache_gb": float("nan")}, "must be finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            DataConfig(**settings)
