"""Reads the clip that an audio part refers to, wherever it lies: a file, a container, a URI."""

import base64
import binascii
import dataclasses
import re
import urllib.parse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio import SAMPLE_RATE, iter_audio, load_audio, probe_audio
from stepaudio_jax.audio.waveform import join
from stepaudio_jax.config import AudioChannel, DataConfig, LengthConvention
from stepaudio_jax.data.containers.base import Samples
from stepaudio_jax.data.containers.folders import exists
from stepaudio_jax.data.containers.opening import read_embedded_clip, split_clip_name
from stepaudio_jax.data.urls import read_url
from stepaudio_jax.errors import AudioError, ConfigError, DataError, StorageError
from stepaudio_jax.storage import CachedFile, DiskCache, PathLike, format_path, is_bucket_path
from stepaudio_jax.text import AudioPart

# RFC 2397: data:[<mediatype>][;base64],<data>
_DATA_URI = re.compile(r"data:(?P<header>[^,]{0,200}),", re.IGNORECASE)
_URL = re.compile(r"https?://", re.IGNORECASE)
_MEASURED_BEFORE_S = 1.0  # a last segment may be too short for a clip


def open_clip_cache(config: DataConfig) -> DiskCache | None:
    """Opens the cache of clips that a configuration asks for; None if it asks for none.

    Raises:
        ConfigError: its folder cannot be used.
    """
    if config.clip_cache_dir is None:
        return None
    try:
        return DiskCache(config.clip_cache_dir, round(config.clip_cache_gb * 1e9))
    except StorageError as error:
        raise ConfigError(f"clip_cache_dir={error}") from None


def load_clip(
    part: AudioPart,
    /,
    *,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
    allow_urls: bool = DataConfig.allow_urls,
    cache: DiskCache | None = None,
) -> NDArray[np.float32]:
    """Decodes a clip, or the part of it from `start_s` to `end_s`.

    Args:
        part: names the clip: a file, local or in a bucket; `FILE#PLACE` inside a container; a
            `data:` URI; or a URL.
        length_convention: see `audio.load_audio`.
        channel: see `audio.load_audio`.
        allow_urls: whether a clip may be a URL.
        cache: where clips are kept that do not lie on this machine; see `open_clip`.

    Returns:
        [samples] f32 at 16 kHz, full scale -1..1.

    Raises:
        AudioError: the clip cannot be read or decoded; names it and the reason.
    """
    source = open_clip(part.path, allow_urls=allow_urls, cache=cache)
    return decode_clip(source, part, length_convention=length_convention, channel=channel)


def decode_clip(
    source: PathLike | bytes | Samples,
    part: AudioPart,
    /,
    *,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
) -> NDArray[np.float32]:
    """Decodes a clip that `open_clip` has opened; see `load_clip`.

    Args:
        source: the clip.
        part: by which errors name it, and which part of it is decoded.
        length_convention, channel: see `audio.load_audio`.
    """
    try:
        return load_audio(
            source,
            start_s=part.start_s or None,
            end_s=part.end_s,
            length_convention=length_convention,
            channel=channel,
        )
    except AudioError as error:
        raise AudioError(format_path(part.path), error.reason) from None


def iter_clip(
    part: AudioPart,
    /,
    *,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
    allow_urls: bool = DataConfig.allow_urls,
    cache: DiskCache | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yields the samples of `load_clip` piece by piece, and holds only one piece.

    Raises:
        AudioError: as of `load_clip`.
    """
    source = open_clip(part.path, allow_urls=allow_urls, cache=cache)
    try:
        yield from iter_audio(
            source,
            start_s=part.start_s or None,
            end_s=part.end_s,
            length_convention=length_convention,
            channel=channel,
        )
    except AudioError as error:
        raise AudioError(format_path(part.path), error.reason) from None


def load_clip_within(
    part: AudioPart,
    max_samples: int,
    /,
    *,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
    allow_urls: bool = DataConfig.allow_urls,
    cache: DiskCache | None = None,
) -> tuple[NDArray[np.float32], int]:
    """Decodes a clip as `load_clip` does, and keeps nothing of one that is longer than a limit.

    Returns:
        [samples] f32, none of them where there are more than `max_samples`; and their number.

    Raises:
        AudioError: as of `load_clip`.
    """
    count = 0

    def pieces() -> Iterator[NDArray[np.float32]]:
        nonlocal count
        for piece in iter_clip(
            part,
            length_convention=length_convention,
            channel=channel,
            allow_urls=allow_urls,
            cache=cache,
        ):
            count += len(piece)
            if count <= max_samples:
                yield piece

    waveform = join(pieces())
    return (waveform if count <= max_samples else waveform[:0].copy()), count


def measure_clip(
    part: AudioPart,
    /,
    *,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
    allow_urls: bool = DataConfig.allow_urls,
    cache: DiskCache | None = None,
) -> int:
    """Returns a clip's number of samples at 16 kHz; decodes it where its header does not say it.

    Of a clip with segments, only what lies behind the beginning of the last one is decoded then.

    Raises:
        AudioError: as of `load_clip`.
    """

    def count_from(start_s: float) -> int:
        pieces = iter_clip(
            dataclasses.replace(part, start_s=start_s),
            length_convention=length_convention,
            channel=channel,
            allow_urls=allow_urls,
            cache=cache,
        )
        before = round(start_s * SAMPLE_RATE) - round(part.start_s * SAMPLE_RATE)
        return before + sum(map(len, pieces))

    samples = probe_clip(
        part, length_convention=length_convention, allow_urls=allow_urls, cache=cache
    )
    if samples is not None:
        return samples
    last_s = part.segments[-1].start_s - _MEASURED_BEFORE_S if part.segments else 0.0
    if last_s > part.start_s:
        try:
            return count_from(last_s)
        except AudioError:  # perhaps the clip ends before its last segment
            pass
    return count_from(part.start_s)


def load_silence(
    part: AudioPart,
    /,
    *,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
    allow_urls: bool = DataConfig.allow_urls,
    cache: DiskCache | None = None,
) -> NDArray[np.float32]:
    """Returns zeros [samples] f32, as many as the clip has at 16 kHz; see `load_clip`."""
    waveform = load_clip(
        part,
        length_convention=length_convention,
        channel=channel,
        allow_urls=allow_urls,
        cache=cache,
    )
    return np.zeros_like(waveform)


def probe_clip(
    part: AudioPart,
    /,
    *,
    length_convention: LengthConvention = "hf",
    allow_urls: bool = DataConfig.allow_urls,
    cache: DiskCache | None = None,
) -> int | None:
    """Returns a clip's number of samples at 16 kHz from its header, as `audio.probe_audio` does.

    None where the header does not say it, and for URLs, which are not read for it. Of a large file
    that the cache does not have, only the header is read, and not kept.

    Raises:
        AudioError: the clip cannot be read; names it and the reason.
    """
    if _URL.match(part.path):
        _check_url(part.path, allow_urls)
        return None
    source = open_clip(part.path, allow_urls=allow_urls, cache=cache, only_header=True)
    if isinstance(source, Samples):
        return len(decode_clip(source, part, length_convention=length_convention))
    try:
        return probe_audio(
            source,
            start_s=part.start_s or None,
            end_s=part.end_s,
            length_convention=length_convention,
        )
    except AudioError as error:
        raise AudioError(format_path(part.path), error.reason) from None


def is_missing_file(path: str) -> bool:
    """Returns whether an audio part's path names a file of its own, and there is none."""
    if _DATA_URI.match(path) or _URL.match(path) or split_clip_name(path)[1] is not None:
        return False
    try:
        return not exists(path)
    except StorageError:  # a bucket that cannot be used, or an address of another kind
        return False


def open_clip(
    path: str,
    *,
    allow_urls: bool = DataConfig.allow_urls,
    cache: DiskCache | None = None,
    only_header: bool = False,
) -> PathLike | bytes | Samples:
    """Returns where or what a clip is: the path of a file, or its content if it lies elsewhere.

    Args:
        path: of an audio part.
        allow_urls: whether a clip may be a URL.
        cache: where clips in buckets and of the web are kept: files, URLs whose servers tell when
            they change, and files in tar archives. Sound that other containers store with its row
            is read with the row, and not kept.
        only_header: whether no more than a header will be read.

    Raises:
        AudioError: the clip cannot be read; names it and the reason.
    """
    if _DATA_URI.match(path):
        return _decode_data_uri(path)
    if _URL.match(path):
        _check_url(path, allow_urls)
        return read_url(path, cache)
    if split_clip_name(path)[1] is None:
        if cache is not None and is_bucket_path(path):
            return CachedFile(path, cache, keeps=not only_header)
        return path
    try:
        return read_embedded_clip(path, cache)
    except DataError as error:
        raise AudioError(format_path(path), str(error)) from None


def _decode_data_uri(uri: str) -> bytes:
    """Returns the bytes of a `data:` URI (RFC 2397)."""
    header, _, body = uri.partition(",")
    if not header.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(body)
    try:
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError(f"{header},..", f"is not base64 ({error}); write it again") from None


def _check_url(path: str, allow_urls: bool) -> None:
    if not allow_urls:
        raise AudioError(
            format_path(path),
            "is a URL, which is not read unless data.allow_urls=true (--allow-urls) allows it;"
            " download it, and name the file",
        )
