"""The clips of the dialogues that a judge hears."""

import dataclasses
import hashlib
import threading

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import AudioChannel, DataConfig, LengthConvention
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.errors import AudioError, DataError
from stepaudio_jax.generation.bounded_cache import BoundedCache
from stepaudio_jax.judge.query import Clip
from stepaudio_jax.storage import DiskCache
from stepaudio_jax.text import AudioPart

MAX_CLIP_BYTES = 2**28  # of decoded sound that a reader keeps: more than an hour


class ClipReader:
    """Reads clips for a judge's questions, most of them once.

    A pair is asked about twice, and a dialogue once for each of its replies: the samples that were
    used last are kept.

    Args:
        length_convention: of a judge that is a model of ours; decides which clips are too short.
        channel: which channel of a multichannel clip is heard; see `audio.load_audio`.
        allow_urls: whether clips may be URLs.
        clip_cache: where clips are kept that do not lie on this machine.
        max_bytes: of samples that are kept in memory.
    """

    def __init__(
        self,
        *,
        length_convention: LengthConvention = "hf",
        channel: AudioChannel = DataConfig.channel,
        allow_urls: bool = DataConfig.allow_urls,
        clip_cache: DiskCache | None = None,
        max_bytes: int = MAX_CLIP_BYTES,
    ):
        self._length_convention: LengthConvention = length_convention
        self._channel: AudioChannel = channel
        self._allow_urls, self._clip_cache = allow_urls, clip_cache
        self._samples = BoundedCache[NDArray[np.float32]](max_bytes)
        self._clips: dict[bytes, tuple[str, int]] = {}  # (digest, samples) of each clip so far
        self._lock = threading.Lock()

    def with_convention(self, length_convention: LengthConvention) -> "ClipReader":
        """Returns a reader of the same settings for a model of another length convention."""
        if length_convention == self._length_convention:
            return self
        return ClipReader(
            length_convention=length_convention,
            channel=self._channel,
            allow_urls=self._allow_urls,
            clip_cache=self._clip_cache,
        )

    def __call__(self, part: AudioPart, origin: str) -> Clip:
        """Returns the clip of an audio part; its samples may be read again when they are needed.

        Args:
            part: names the clip; see `data.clips.load_clip`.
            origin: of its record (`file:line`), for error messages.

        Raises:
            DataError: the clip cannot be read, or has changed meanwhile; names the record.
        """
        part = dataclasses.replace(part, transcript=None, attributes={}, segments=())
        name = f"{part.start_s} {part.end_s} {part.path}".encode(errors="surrogatepass")
        key = hashlib.sha256(name).digest()
        with self._lock:
            known = self._clips.get(key)
        if known is None:
            samples = self._read(part, key, origin)
            known = _digest(samples), len(samples)
            with self._lock:
                self._clips[key] = known
        digest, num_samples = known

        def read() -> NDArray[np.float32]:
            samples = self._read(part, key, origin)
            if len(samples) != num_samples or _digest(samples) != digest:
                raise DataError(
                    f"{_prefix(origin)}the clip {part.name} has changed while the judge was asked;"
                    " start again"
                )
            return samples

        return Clip(digest, num_samples, read)

    def _read(self, part: AudioPart, key: bytes, origin: str) -> NDArray[np.float32]:
        with self._lock:
            samples = self._samples.get(key)
        if samples is not None:
            return samples
        try:
            samples = load_clip(
                part,
                length_convention=self._length_convention,
                channel=self._channel,
                allow_urls=self._allow_urls,
                cache=self._clip_cache,
            )
        except AudioError as error:
            raise DataError(
                f"{_prefix(origin)}the judge cannot hear a clip: {error}", kind="reward"
            ) from None
        with self._lock:
            self._samples.put(key, samples, samples.nbytes)
        return samples


def _digest(samples: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(samples, "<f4").tobytes()).hexdigest()


def _prefix(origin: str) -> str:
    return f"{origin}: " if origin else ""
