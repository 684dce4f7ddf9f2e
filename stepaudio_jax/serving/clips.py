"""Reads the clips of a request: base64, `data:`, and what the settings allow of https and file."""

import base64
import binascii
import dataclasses
import hashlib
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio import SAMPLE_RATE, iter_audio
from stepaudio_jax.audio.waveform import join
from stepaudio_jax.config import AudioChannel, LengthConvention
from stepaudio_jax.errors import ApiError, AudioError
from stepaudio_jax.generation.bounded_cache import BoundedCache
from stepaudio_jax.generation.prompts import ClipFeatures, clip_features
from stepaudio_jax.serving.address_rules import short_name
from stepaudio_jax.serving.https_client import read_https
from stepaudio_jax.serving.settings import ServingSettings
from stepaudio_jax.storage import expand_home, read_bytes

_DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_LOCAL_HOSTS = ("", "localhost")


@dataclasses.dataclass
class UrlTime:
    """The time that reading the clips of a request from their URLs may still take, in seconds."""

    left: float


@dataclasses.dataclass(frozen=True)
class ReadClip:
    """A clip as a prompt needs it.

    Attributes:
        features: its chunks.
        samples: its length at 16 kHz.
    """

    features: ClipFeatures
    samples: int


class ClipReader:
    """Reads and decodes clips, and keeps what it has computed of the last ones.

    Args:
        settings: limits, and which addresses are read.
        cache_bytes: of the features that are kept.
    """

    def __init__(self, settings: ServingSettings, cache_bytes: int):
        self._settings = settings
        self._cache: BoundedCache[ReadClip] = BoundedCache(cache_bytes)
        self._lock = threading.Lock()

    def fetch(self, source: str, where: str, url_time: UrlTime) -> bytes:
        """Returns the file that a URL names.

        Args:
            source: `data:`, `https:` or `file:`.
            where: the message and part, the start of an error.
            url_time: of the request; what is used is taken off.

        Raises:
            ApiError: the URL is not allowed, or its file cannot be read in time.
        """
        scheme = source.partition(":")[0].lower()
        try:
            if scheme == "data":
                return _read_data_uri(source)
            if scheme == "https":
                return self._read_https(source, url_time)
            if scheme == "file":
                return self._read_file(source)
        except AudioError as error:
            raise clip_error(where, f"{error.source} {error.reason}") from None
        raise clip_error(
            where,
            f"{short_name(source)} is not read; send the clip as input_audio or as a data: URI, or"
            " give an https: URL of a host that this server reads from",
        )

    def decode(
        self,
        content: bytes,
        where: str,
        *,
        max_samples: int,
        convention: LengthConvention,
        channel: AudioChannel,
    ) -> ReadClip:
        """Decodes a sound file.

        Args:
            content: the file.
            where: the message and part, the start of an error.
            max_samples: at 16 kHz; decoding a longer clip is given up there.
            convention: of the model.
            channel: which channel is used.

        Raises:
            ApiError: it is no sound, or too long.
        """
        key = hashlib.sha256(f"{convention} {channel} ".encode() + content).digest()
        with self._lock:
            known = self._cache.get(key)
        if known is None:
            waveform = self._decode(content, where, max_samples, convention, channel)
            features = clip_features(waveform, convention)
            known = ReadClip(features, len(waveform))
            with self._lock:
                self._cache.put(key, known, sum(chunk.nbytes for chunk in features.chunks))
        if known.samples > max_samples:
            raise self._too_long(where)
        return known

    @property
    def _max_bytes(self) -> int:
        return round(self._settings.max_body_mb * 1e6)

    def _decode(
        self,
        content: bytes,
        where: str,
        max_samples: int,
        convention: LengthConvention,
        channel: AudioChannel,
    ) -> NDArray[np.float32]:
        def pieces() -> Iterator[NDArray[np.float32]]:
            count = 0
            for piece in iter_audio(content, length_convention=convention, channel=channel):
                count += len(piece)
                if count > max_samples:
                    raise self._too_long(where)
                yield piece

        try:
            return join(pieces())
        except AudioError as error:
            raise clip_error(where, f"the clip {error.reason}") from None

    def _too_long(self, where: str) -> ApiError:
        limit = self._settings.max_audio_s
        return ApiError(
            413,
            f"{where}: the sound of the request is longer than this server's {limit:g} s; cut it,"
            " or start the server with a larger --max-audio-s",
            code="audio_too_long",
        )

    def _read_https(self, url: str, url_time: UrlTime) -> bytes:
        if url_time.left <= 0:
            raise AudioError(short_name(url), "cannot be read in time; send the clip itself")
        started = time.monotonic()
        try:
            return read_https(
                url,
                self._settings.audio_domains,
                max_bytes=self._max_bytes,
                timeout_s=url_time.left,
            )
        finally:
            url_time.left -= time.monotonic() - started

    def _read_file(self, url: str) -> bytes:
        folder = self._settings.audio_folder
        name = short_name(url)
        if folder is None:
            raise AudioError(name, "is not read: this server was started without --audio-folder")
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError as error:
            raise AudioError(name, f"is no URL ({error}); write it again") from None
        if parts.netloc not in _LOCAL_HOSTS or parts.query or parts.fragment:
            raise AudioError(name, "must be file:///PATH, without host and query")
        root, path = os.path.realpath(expand_home(folder)), urllib.parse.unquote(parts.path)
        has_name = "\0" not in path
        path = os.path.realpath(os.path.join(root, path)) if has_name else root
        # The same words for what is not there and what is not allowed: they tell nothing of the
        # machine's files.
        if not path.startswith(os.path.join(root, "")) or not os.path.isfile(path):
            raise AudioError(name, "is no file of the folder that this server reads from")
        if os.path.getsize(path) > self._max_bytes:
            raise AudioError(name, f"is larger than {self._settings.max_body_mb:g} MB")
        return read_bytes(path)


def decode_clip_data(text: str) -> bytes:
    """Returns the file that `input_audio.data` holds: in base64, or as a `data:` URI.

    Raises:
        AudioError: it is neither, or empty.
    """
    if text[:5].lower() == "data:":  # some clients send the URI
        return _read_data_uri(text)
    return decode_base64(text)


def decode_base64(text: str) -> bytes:
    """Returns the bytes of base64, whose padding may be missing and which may have line breaks.

    Raises:
        AudioError: it is not base64, or empty.
    """
    compact = "".join(text.split())
    try:
        content = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError("the clip", f"is not base64 ({error}); encode it again") from None
    if not content:
        raise AudioError("the clip", "is empty; send a sound file")
    return content


def clip_error(where: str, message: str) -> ApiError:
    """Returns the refusal of a clip."""
    return ApiError(400, f"{where}: {message}", param="messages", code="invalid_audio")


def seconds(samples: int) -> float:
    """Returns the length of a clip in seconds."""
    return samples / SAMPLE_RATE


def _read_data_uri(uri: str) -> bytes:
    match = _DATA_URI.match(uri)
    if match is None:
        raise AudioError("the data: URI", "has no comma after its type; write it again")
    body = uri[match.end() :]
    if match[0].lower().endswith(";base64,"):
        return decode_base64(body if "%" not in body else urllib.parse.unquote(body))
    content = urllib.parse.unquote_to_bytes(body)
    if not content:
        raise AudioError("the clip", "is empty; send a sound file")
    return content
