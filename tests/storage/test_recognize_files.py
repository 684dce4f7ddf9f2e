"""Files that are not what their name promises: one line that says what they are, and what to do."""

import json
import os
import re
import sys

import pytest
import soundfile

from stepaudio_jax import hub, storage
from stepaudio_jax.audio import load_audio
from stepaudio_jax.errors import AudioError, CheckpointError, TextError
from stepaudio_jax.storage import recognize, recognize_file, recognize_values
from tests.hub.folders import random_folder
from tests.storage.contents import CONTENTS, FFMPEG, LFS, SOUNDS

BOTH = {**CONTENTS, **SOUNDS}
UNDECODABLE = ("silk", "avi")
SHARD, INDEX = "model-00001-of-00001.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_folder(tmp_path_factory.mktemp("model") / "whole")


def copy_with(model, folder, name, content):
    """Makes a folder of links to the model's files, one of them replaced."""
    folder.mkdir()
    for file in model.iterdir():
        if file.name != name:
            (folder / file.name).symlink_to(file)
    (folder / name).write_bytes(content)
    return folder


EXTRA = "install the extra that decodes it, pip install 'stepaudio-jax[audio]', or " + FFMPEG


@pytest.mark.parametrize("kind", BOTH)
def test_other_content_in_place_of_sound(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "av", None)  # as where the extra is not installed
    content, what = BOTH[kind]
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(AudioError, match=what) as error:
            load_audio(source)
        assert "\n" not in str(error.value)
        assert str(error.value).endswith(FFMPEG) == (kind in SOUNDS)
        assert str(error.value).endswith(EXTRA) == (kind in SOUNDS and kind not in UNDECODABLE)
        assert error.value.source == (str(path) if source is path else "<bytes>")


@pytest.mark.parametrize("kind", BOTH)
def test_other_content_in_place_of_a_shard(tmp_path, model, kind):
    content, what = BOTH[kind]
    folder = copy_with(model, tmp_path / "copy", SHARD, content)
    begins = f"{SHARD} is not a safetensors file.*: it "
    with pytest.raises(
        CheckpointError, match=begins + (what if kind in CONTENTS else f".*{what}")
    ) as error:
        hub.read_model_config(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["config.json", INDEX, "tokenizer.json", "tokenizer_config.json", "added_tokens.json"]
)
@pytest.mark.parametrize(
    "kind", ["lfs", "html", "html in UTF-16", "xml", "json", "text", "empty", "zeros", "zip"]
)
def test_other_content_in_place_of_json(tmp_path, model, kind, name):
    content, what = CONTENTS[kind]
    folder = copy_with(model, tmp_path / "copy", name, content)
    with pytest.raises((CheckpointError, TextError), match=rf"{re.escape(name)}.* {what}") as error:
        hub.read_model_config(folder), hub.load_tokenizer(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["lfs", "html", "zeros", "zip"])
def test_other_content_in_place_of_merges(tmp_path, model, kind):
    content, what = CONTENTS[kind]
    folder = copy_with(model, tmp_path / "copy", "merges.txt", content)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TextError, match=rf"merges.txt: {what}"):
        hub.load_tokenizer(folder)


def test_json_of_a_model_is_not_taken_for_a_servers_message():
    assert recognize_values({"error": "x", "model_type": "qwen2"}) is None
    assert recognize_values({"status": "x"}) is None
    assert recognize_values([{"error": "x"}]) is None
    assert str(recognize_values({"detail": {"code": 1}})).startswith(
        "holds a server's message in JSON"
    )


@pytest.mark.parametrize("purpose", ["sound", "weights", "tokenizer"])
def test_unknown_content_is_not_guessed(purpose):
    for content in (b"\xfe\x01\x02\x03" * 50, bytes(range(256)), b"\0" * 10 + b"\x81\x82"):
        assert recognize(content, len(content), purpose) is None


def test_weights_in_place_of_sound(model):
    with pytest.raises(
        AudioError, match=r"is a file of weights \(safetensors\); name a sound file"
    ):
        load_audio(model / SHARD)


def test_an_ogg_file_of_speech_that_is_not_decoded():
    speex = b"OggS\0\2" + bytes(20) + b"\1\x50" + b"Speex   1.2" + bytes(70)
    assert recognize(speex, len(speex), "sound").what == "is an Ogg file of Speex"


def test_a_long_text_is_shown_in_part():
    finding = recognize(b"word " * 100_000, 500_000, "sound")
    assert len(str(finding)) < 200
    assert recognize("é".encode() * 65_535, 131_070, "sound") is not None  # cut within a character


def test_links_to_nothing_and_downloads_under_way(tmp_path):
    link = tmp_path / "clip.wav"
    link.symlink_to("../blobs/abc")
    with pytest.raises(
        AudioError, match=r"is a link to ../blobs/abc, which does not exist; .*`cp -rL`"
    ):
        load_audio(link)
    link.unlink()
    link.symlink_to(".git/annex/objects/x")
    assert "run `git annex get`" in str(recognize_file(link, "sound"))
    (tmp_path / "b.wav.crdownload").touch()
    with pytest.raises(
        AudioError, match=r"b.wav.crdownload is: an unfinished download; download or copy it again"
    ):
        load_audio(tmp_path / "b.wav")
    with pytest.raises(AudioError, match="does not exist; correct the path"):
        load_audio(tmp_path / "c.wav")


def test_good_files_are_not_examined(tmp_path, monkeypatch, model):
    """Recognition costs nothing unless reading has failed."""
    monkeypatch.setattr(hub.safetensors, "recognize_file", None)
    monkeypatch.setattr(storage.json_files, "recognize_file", None)
    path = tmp_path / "clip.wav"
    soundfile.write(path, [0.1, -0.1] * 4000, 16_000)
    monkeypatch.setattr("stepaudio_jax.audio.sndfile.recognize", None)
    assert len(load_audio(path)) == 8000
    assert hub.read_model_config(model).decoder.vocab_size == 300


def test_a_pointer_among_files_of_a_clone(tmp_path, model):
    """`git clone` without LFS leaves pointers in place of large files, the tokenizer among them."""
    for name in (SHARD, "tokenizer.json"):
        folder = copy_with(model, tmp_path / name, name, LFS)
        with pytest.raises(ValueError, match=rf"{name}.*Git LFS pointer"):
            hub.import_weights(folder, tmp_path / "out")
    assert not os.path.exists(tmp_path / "out")
    values = json.loads((model / INDEX).read_text())
    assert values["weight_map"]
