"""Decodes a sound file into the waveform that a model hears: one channel, at 16 kHz."""

import contextlib
import ctypes
import functools
import io
import mmap
import os
import platform
import re
import stat
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO, get_args

import numpy as np
import soundfile
from numpy.typing import NDArray

from stepaudio_jax.audio import mp3, truncation
from stepaudio_jax.audio.lengths import SAMPLE_RATE, audio_token_count
from stepaudio_jax.audio.resampling import resample, resampled_length
from stepaudio_jax.config import AudioChannel, DataConfig, LengthConvention
from stepaudio_jax.errors import AudioError
from stepaudio_jax.storage import (
    CONVERT_SOUND,
    PathLike,
    format_path,
    open_read,
    recognize,
    recognize_file,
)

_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "MP3", "OGG")
# Hz; a header with any other rate is damaged, and resampling would take unbounded memory.
SAMPLE_RATE_RANGE = (1_000, 768_000)
_MAX_AMPLITUDE = 256.0  # full scale is 1; larger values are integers stored as floats
_UNKNOWN_LENGTH = (1 << 63) - 1  # libsndfile's SF_COUNT_MAX
_BLOCK_SAMPLES = 1 << 16
_PROBE_BYTES = 1 << 14  # read to recognise a file's format
_COPY_AGAIN_HINT = "get the whole file again, or remove it"


def load_audio(
    source: PathLike | bytes,
    *,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
) -> NDArray[np.float32]:
    """Decodes a clip (WAV, FLAC, MP3 or Ogg, recognised by its content) to one channel at 16 kHz.

    Args:
        source: a path, or the file's content.
        length_convention: of the model. A clip is too short if it has no audio token: under "hf",
            at 320 samples (20 ms) or fewer.
        channel: of a clip with several channels, the "first" (as in the released front end) or the
            "mix" (mean) of all.

    Returns:
        [samples] f32, full scale -1..1.

    Raises:
        AudioError: names the file and the reason: it is missing, a folder, empty, not sound, in
            another format, cut short (`truncation` and `mp3` say what can be detected), damaged,
            without samples, not finite, far beyond full scale, or too short; or it has sound and
            the model would hear silence (in its first channel, or in a mix that cancels).
    """
    if isinstance(source, bytes):
        name, content = "<bytes>", source
    else:
        path = os.fspath(source)
        name, content = format_path(path), _read(path)
    if not content:
        raise AudioError(name, f"is empty (0 bytes); {_COPY_AGAIN_HINT}")
    with suppress_decoder_messages():
        samples, rate = _decode(name, content, channel)
    return check_and_resample(name, samples, rate, length_convention)


def check_and_resample(
    name: str, samples: NDArray[np.float32], rate: int, length_convention: LengthConvention
) -> NDArray[np.float32]:
    """Checks decoded samples [samples] and resamples them to 16 kHz.

    Raises:
        AudioError: they are not finite, far beyond full scale, or too few for an audio token.
    """
    if not np.isfinite(samples).all():
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise AudioError(
            name, f"has {bad} NaN or infinite samples of {len(samples)}; export it again"
        )
    peak = float(np.abs(samples).max())
    if peak > _MAX_AMPLITUDE:
        raise AudioError(
            name,
            f"has samples up to {peak:g}, full scale is 1; divide by the range of its integers",
        )
    waveform = resample(samples, rate, SAMPLE_RATE)
    if audio_token_count(len(waveform), length_convention) == 0:
        raise AudioError(name, _too_short(len(samples), rate))
    return waveform


def probe_audio(path: PathLike, *, length_convention: LengthConvention = "hf") -> int | None:
    """Returns a clip's length from its header: a quick check of many clips.

    Args:
        path: of the file. A WAV file is mapped into memory, and only the headers of its chunks are
            read.
        length_convention: as in `load_audio`.

    Returns:
        The clip's length in samples at 16 kHz, or None if the header does not say it (MP3).

    Raises:
        AudioError: for what the header shows and `load_audio` would reject too: the file is
            missing, a folder, empty, not sound, in another format, a WAV file cut short, or too
            short. Damage further in is found only by decoding.
    """
    path = os.fspath(path)
    name = format_path(path)
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise AudioError(name, f"is empty (0 bytes); {_COPY_AGAIN_HINT}")
        start = file.read(_PROBE_BYTES)
        if start[:3] == b"ID3" or mp3.scan_frames(start) is not None:
            return None
        file.seek(0)
        if start[8:12] == b"WAVE":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                reason = truncation.find_truncation(content)
            if reason is not None:
                raise AudioError(name, f"{reason}; {_COPY_AGAIN_HINT}")
        with suppress_decoder_messages(), _open_sound(name, file, start, size) as sound:
            frames, rate = sound.frames, sound.samplerate
    if not frames:
        return None  # a FLAC header may leave it open
    samples = resampled_length(frames, rate, SAMPLE_RATE)
    if audio_token_count(samples, length_convention) == 0:
        raise AudioError(name, _too_short(frames, rate))
    return samples


def _read(path: str) -> bytes:
    with _open(path) as file:
        return file.read()


def _open(path: str) -> BinaryIO:
    """Opens a regular file, or raises an AudioError that says why it cannot be opened."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open_read(path)
    except FileNotFoundError:
        finding = recognize_file(path, "sound")  # it may be a broken link
        raise AudioError(
            format_path(path), str(finding or "does not exist; correct the path")
        ) from None
    except OSError as error:
        raise AudioError(format_path(path), f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise AudioError(
            format_path(path), f"is not a path that can exist ({error}); correct it"
        ) from None
    reason = (
        "is a folder; name a file in it"
        if stat.S_ISDIR(mode)
        else "is not a regular file; name a sound file"
    )
    raise AudioError(format_path(path), reason)


def _decode(name: str, content: bytes, channel: AudioChannel) -> tuple[NDArray[np.float32], int]:
    """Returns the decoded channel [samples] f32, not yet resampled, and its sample rate in Hz."""
    stream = mp3.scan_frames(content)
    reason = (
        truncation.find_truncation(content)
        if stream is None
        else mp3.find_truncation(content, stream)
    )
    if reason is not None:
        raise AudioError(name, f"{reason}; {_COPY_AGAIN_HINT}")
    if stream is not None:
        content = mp3.insert_frame_count(content, stream)
    with _open_sound(name, io.BytesIO(content), content, len(content)) as file:
        # In blocks, since a damaged header can promise any number of samples.
        reducer, declared = ChannelReducer(channel), file.frames
        try:
            while len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                reducer.add(block)
        except soundfile.SoundFileError as error:
            raise AudioError(
                name, f"is cut short or damaged ({_one_line(error)}); {_COPY_AGAIN_HINT}"
            ) from None
        samples = reducer.samples()
        if file.format == "FLAC" and len(samples) < declared:
            raise AudioError(
                name,
                f"is cut short: its header says {declared} samples and {len(samples)} are there;"
                f" {_COPY_AGAIN_HINT}",
            )
    if not len(samples):
        raise AudioError(name, "has no samples; remove it")
    reason = reducer.find_silence()
    if reason is not None:
        raise AudioError(name, reason)
    return samples, file.samplerate


def _open_sound(name: str, stream: BinaryIO, start: bytes, size: int) -> soundfile.SoundFile:
    """Opens a file that libsndfile can decode, and checks its header.

    Args:
        name: of the clip, for error messages.
        stream: the file.
        start: its first bytes, from which an error says what the file is if it is not sound.
        size: its length in bytes.
    """
    try:
        file = soundfile.SoundFile(stream)
    except (soundfile.SoundFileError, TypeError, ValueError):
        finding = recognize(start, size, "sound")
        why = f"({size} bytes); {CONVERT_SOUND}" if finding is None else f"- it {finding}"
        raise AudioError(name, f"is not a sound file that can be decoded {why}") from None
    reason = None
    if file.format not in _FORMATS:
        reason = f"is in the format {file.format}; {CONVERT_SOUND}"
    elif not SAMPLE_RATE_RANGE[0] <= file.samplerate <= SAMPLE_RATE_RANGE[1]:
        reason = (
            f"says its sample rate is {file.samplerate} Hz; {SAMPLE_RATE_RANGE[0]} to"
            f" {SAMPLE_RATE_RANGE[1]} are allowed"
        )
    elif file.frames == _UNKNOWN_LENGTH:
        reason = f"does not say how many samples it has (written to a pipe?); {CONVERT_SOUND}"
    if reason is not None:
        file.close()
        raise AudioError(name, reason)
    return file


def _too_short(samples: int, rate: int) -> str:
    return f"is too short: {samples} samples at {rate} Hz give no audio token; remove it"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# Several channels: reduced to one, and checked for silence.

_ABSOLUTE_SILENCE = 1e-4  # -80 dB of full scale
# -60 dB of the loudest channel: a lossy encoder leaks less than this into a silent channel.
_RELATIVE_SILENCE = 1e-3


class ChannelReducer:
    """Reduces decoded blocks to one channel as they are read; tracks the range of each channel.

    Args:
        channel: "first" keeps the first channel, as the released front end does; "mix" averages
            all.

    Raises:
        ValueError: `channel` is neither.
    """

    def __init__(self, channel: AudioChannel):
        if channel not in get_args(AudioChannel):
            raise ValueError(
                f"channel={channel!r} is not one of {', '.join(get_args(AudioChannel))}"
            )
        self._channel = channel
        self._blocks: list[NDArray[np.float32]] = []
        self._low: NDArray[np.float32] | None = None
        self._high: NDArray[np.float32] | None = None

    def add(self, block: NDArray[np.float32]) -> None:
        """Adds decoded samples [samples, channels]."""
        if block.shape[1] == 1 or self._channel == "first":
            self._blocks.append(block[:, 0].copy())
        else:
            with np.errstate(invalid="ignore", over="ignore"):  # `load_audio` reports them
                self._blocks.append(block.mean(axis=1, dtype=np.float32))
        if block.shape[1] == 1:
            return
        low, high = block.min(axis=0), block.max(axis=0)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def samples(self) -> NDArray[np.float32]:
        """Returns the reduced channel of all blocks: [samples] f32."""
        return np.concatenate(self._blocks) if self._blocks else np.zeros(0, np.float32)

    def find_silence(self) -> str | None:
        """Returns why the reduced channel is silent though the clip has sound, or None.

        A channel's level is half the difference of its highest and its lowest sample, so that a
        constant offset is silence too. A channel is silent below -80 dB of full scale, or 60 dB
        below the loudest channel.
        """
        if self._low is None or self._high is None:
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            levels = (self._high - self._low) / 2
        loudest = int(np.argmax(np.where(np.isfinite(levels), levels, 0)))
        level, channels = float(levels[loudest]), len(levels)
        if self._channel == "first":
            if _is_silent_beside(float(levels[0]), level):
                return (
                    f"has a silent first channel, and channel {loudest + 1} of {channels} is not"
                    " silent; set data.channel=mix (--channel mix) to hear the mean of all"
                    " channels, or put its sound into the first"
                )
            return None
        samples = self.samples()
        if _is_silent_beside((float(samples.max()) - float(samples.min())) / 2, level / channels):
            return (
                f"has {channels} channels that cancel each other in their mean; set"
                " data.channel=first (--channel first) to hear the first one alone, or turn the"
                " sign of one of them"
            )
        return None


def _is_silent_beside(level: float, other: float) -> bool:
    """Returns whether a level is silence beside another one.

    The factor 10 keeps one of two very quiet channels from being called silent.
    """
    return (
        other >= _ABSOLUTE_SILENCE
        and level < other / 10
        and level < max(_ABSOLUTE_SILENCE, _RELATIVE_SILENCE * other)
    )


# libmpg123 prints notes about good files to C's stderr, and libsndfile gives no way to silence it.
# Skip this part unless such messages appear.

_MPG123_MESSAGE = re.compile(
    rb"^(\[src/libmpg123/[^\n]*|Warning: Xing stream size off [^\n]*"
    rb"|Note: (Illegal Audio-MPEG-Header|Trying to resync|Skipped|Hit end of)[^\n]*)(\n|$)",
    re.MULTILINE,
)
_STDERR = 2


@contextlib.contextmanager
def suppress_decoder_messages() -> Iterator[None]:
    """Drops libmpg123's lines from what is written to C's `stderr` within, and forwards the rest.

    Any number of threads may be inside at once. It needs glibc and does nothing elsewhere.
    """
    stream = _stream()
    if stream is None:
        yield
        return
    stream.enter()
    try:
        yield
    finally:
        stream.leave()


@functools.cache
def _stream() -> "_MemoryStream | None":
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    return _MemoryStream()


class _MemoryStream:
    """Puts a stream in memory in the place of C's `stderr` while any thread is inside."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        library.fdopen.restype = ctypes.c_void_p
        library.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
        library.fflush.argtypes = [ctypes.c_void_p]
        self._flush = library.fflush
        self._variable = ctypes.c_void_p.in_dll(library, "stderr")
        self._original = self._variable.value
        self._descriptor = os.memfd_create("stepaudio-stderr")
        # Never closed: another thread may be about to write.
        self._stream = library.fdopen(self._descriptor, b"a")
        if not self._stream:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._lock = threading.Lock()
        self._active = 0
        self._bytes_forwarded = 0  # bytes read so far, libmpg123's included

    def enter(self) -> None:
        with self._lock:
            self._active += 1
            self._variable.value = self._stream

    def leave(self) -> None:
        with self._lock:
            self._active -= 1
            if not self._active:
                self._variable.value = self._original
            self._flush(self._stream)
            text = os.pread(
                self._descriptor,
                os.fstat(self._descriptor).st_size - self._bytes_forwarded,
                self._bytes_forwarded,
            )
            self._bytes_forwarded += len(text)
            if not self._active and self._bytes_forwarded:
                os.ftruncate(self._descriptor, 0)
                self._bytes_forwarded = 0
            if kept := _MPG123_MESSAGE.sub(b"", text):
                os.write(_STDERR, kept)
