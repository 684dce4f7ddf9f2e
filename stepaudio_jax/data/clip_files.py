"""Clips on their way into new files: bytes as they are, samples encoded without loss."""

import functools
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.config import AudioChannel
from stepaudio_jax.data.clips import decode_clip
from stepaudio_jax.data.containers.base import Samples
from stepaudio_jax.data.containers.places import AUDIO_EXTENSIONS, extension
from stepaudio_jax.errors import AudioError
from stepaudio_jax.storage import (
    Path,
    PathLike,
    atomic_binary_writer,
    format_path,
    open_read,
    read_range,
)
from stepaudio_jax.text import AudioPart

_BLOCK_BYTES = 1 << 20
_NAME_CHARACTERS = 32  # 128 bits of a SHA-256
_FOLDER_CHARACTERS = 3  # 4096 folders: of a million clips each has about 250
_CACHED_FILES = 4096
_START_BYTES = 16
_INT16_SCALE = 32768.0
_FLAC_MAX_CHANNELS, _FLAC_MAX_RATE = 8, 655_350
# How sound files begin -> the ending that people give them. Readers go by the content.
_ENDINGS = (
    (rb"RIFF....WAVE|RF64....WAVE", "wav"),
    (rb"fLaC", "flac"),
    (rb"OggS", "ogg"),
    (rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", "mp3"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "aac"),
    (rb"....ftyp", "m4a"),
    (rb"\x1a\x45\xdf\xa3", "webm"),
    (rb"#!AMR", "amr"),
    (rb"FORM....AIF", "aiff"),
    (rb"caff", "caf"),
    (rb"\.snd", "au"),
    (rb"\x30\x26\xb2\x75", "wma"),
    (rb"\x0b\x77", "ac3"),
)


class ClipFolder:
    """Keeps clips as files named by their content, so that each is stored once.

    Any number of processes may write into it; a file appears whole or not at all.

    Args:
        folder: the files lie in `clips/` below it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._add_file = functools.lru_cache(_CACHED_FILES)(self._copy)

    def add(self, clip: PathLike | bytes, name: str) -> str:
        """Stores a clip.

        Args:
            clip: the path of a file, which is copied byte for byte, or the content of one.
            name: from which the ending is taken, if it has one of sound.

        Returns:
            The file's path relative to the folder.
        """
        if not isinstance(clip, bytes):
            return self._add_file(os.fspath(clip))
        path = _path(hashlib.sha256(clip), _ending(name, clip[:_START_BYTES]))
        self._write(path, [clip])
        return path

    def _copy(self, source: str) -> str:
        digest = hashlib.sha256()
        for block in _blocks(source):
            digest.update(block)
        path = _path(digest, _ending(source, read_range(source, 0, _START_BYTES)))
        self._write(path, _blocks(source))
        return path

    def _write(self, path: str, blocks: Iterable[bytes]) -> None:
        """Writes a file that is not there yet; its name says what is in it."""
        final = self._folder / path
        if not final.exists():
            with atomic_binary_writer(final) as file:
                file.writelines(blocks)


def whole_clip(
    clip: PathLike | bytes | Samples,
    part: AudioPart,
    waveform: NDArray[np.float32],
    channel: AudioChannel,
) -> PathLike | bytes:
    """Returns a clip as a file or the content of one: samples as FLAC or WAV, all channels.

    Args:
        clip: as `open_clip` returns it.
        part: by which errors name it.
        waveform: [samples] at 16 kHz, what a model hears of it.
        channel: of which `waveform` is.

    Raises:
        AudioError: the samples cannot be written so that the same waveform is heard of them.
    """
    if not isinstance(clip, Samples):
        return clip
    content = encode_samples(clip.values, clip.rate)
    return _checked(content, part, waveform, channel)


def cut_clip(part: AudioPart, waveform: NDArray[np.float32], channel: AudioChannel) -> bytes:
    """Returns what a model hears of a part of a file, as the content of a FLAC or WAV file.

    Args:
        part: by which errors name it.
        waveform: [samples] of the part, at 16 kHz.
        channel: of which `waveform` is.

    Raises:
        AudioError: as of `whole_clip`.
    """
    return _checked(encode_samples(waveform, SAMPLE_RATE), part, waveform, channel)


def encode_samples(values: NDArray[Any], rate: int) -> bytes:
    """Returns samples as a sound file: FLAC if 16 bits hold them exactly, else WAV of floats.

    Args:
        values: [samples] or [samples, channels]; floats of full scale -1 to 1, or integers of
            16 bits in any dtype.
        rate: in Hz.
    """
    integers = _exact_integers(values)
    if (
        integers is None
        or (values.ndim > 1 and values.shape[1] > _FLAC_MAX_CHANNELS)
        or rate > _FLAC_MAX_RATE
    ):
        return _encode_wav(values, integers, rate)
    content = io.BytesIO()
    soundfile.write(content, integers, rate, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def encode_wav(values: NDArray[Any], rate: int) -> bytes:
    """Returns samples as a WAV file: of 16 bits if these hold them exactly, else of floats.

    Args:
        values, rate: see `encode_samples`.
    """
    return _encode_wav(values, _exact_integers(values), rate)


def _exact_integers(values: NDArray[Any]) -> NDArray[np.int16] | None:
    """Returns samples in 16 bits; None where these do not hold them exactly."""
    scale = _INT16_SCALE if np.issubdtype(values.dtype, np.floating) else 1.0
    scaled = values.astype(np.float64) * scale
    with np.errstate(invalid="ignore"):  # NaN, which no integer is equal to
        integers = np.clip(scaled, -32768, 32767).astype(np.int16)
    return integers if np.array_equal(integers, scaled) else None


def _encode_wav(values: NDArray[Any], integers: NDArray[np.int16] | None, rate: int) -> bytes:
    content = io.BytesIO()
    if integers is None:
        soundfile.write(content, values.astype(np.float32), rate, format="WAV", subtype="FLOAT")
    else:
        soundfile.write(content, integers, rate, format="WAV", subtype="PCM_16")
    return content.getvalue()


def _checked(
    content: bytes, part: AudioPart, waveform: NDArray[np.float32], channel: AudioChannel
) -> bytes:
    """Returns the content of a new sound file, of which the same waveform must be heard."""
    all_of_it = AudioPart(part.path)
    if not np.array_equal(decode_clip(content, all_of_it, channel=channel), waveform):
        raise AudioError(
            format_path(part.name), "cannot be written without loss; write it as a sound file"
        )
    return content


def _blocks(path: str) -> Iterator[bytes]:
    """Yields the content of a file, which may be larger than memory."""
    with open_read(path) as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _path(digest: "hashlib._Hash", ending: str) -> str:
    name = digest.hexdigest()[:_NAME_CHARACTERS]
    return f"clips/{name[:_FOLDER_CHARACTERS]}/{name}.{ending}"


def _ending(name: str, start: bytes) -> str:
    ending = extension(name)
    if ending in AUDIO_EXTENSIONS:
        return ending
    matches = (
        known for pattern, known in _ENDINGS if re.match(pattern, start, re.DOTALL) is not None
    )
    return next(matches, "audio")
