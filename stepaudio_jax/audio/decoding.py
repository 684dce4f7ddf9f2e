"""A sound file -> the waveform that a model hears of it, at 16 kHz."""

import contextlib
import ctypes
import functools
import io
import math
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
from stepaudio_jax.audio.error import AudioError, format_path
from stepaudio_jax.audio.lengths import SAMPLE_RATE, LengthConvention, audio_token_count
from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.storage import CONVERT_SOUND, recognize, recognize_file

# Resampling by a windowed sinc: torchaudio's default filter, which the released front end was trained behind.

LOWPASS_FILTER_WIDTH = 6  # zero crossings of the sinc on each side
ROLLOFF = 0.99  # cut-off frequency, as a fraction of the lower of the two Nyquist frequencies


def resample(waveform: NDArray[np.float32], rate_in: int, rate_out: int) -> NDArray[np.float32]:
    """Resamples a waveform, with silence assumed on both sides of it.

    With a = ROLLOFF * min(rate_in, rate_out) and w the Hann window over |t| <= LOWPASS_FILTER_WIDTH
    / a,

        y[m] = a / rate_in * sum_n x[n] sinc(a t) w(t),    t = n / rate_in - m / rate_out.

    Args:
        waveform: [samples_in].
        rate_in: Hz.
        rate_out: Hz.

    Returns:
        [ceil(samples_in * rate_out / rate_in)] f32, computed in float64.
    """
    if rate_in == rate_out:
        return np.asarray(waveform, np.float32)
    from scipy.signal import upfirdn  # slow to import, and only those who resample need it

    divisor = math.gcd(rate_in, rate_out)
    up, down = rate_out // divisor, rate_in // divisor
    taps = _sinc_filter(up, down)
    samples_out = resampled_length(len(waveform), rate_in, rate_out)
    # The filter is centred: output m is sample m * down + centre of the filtered signal. upfirdn
    # keeps each down-th sample from the first on, so zeros in front bring the centre to a multiple
    # of `down`.
    centre = len(taps) // 2
    lead = -centre % down
    filtered = upfirdn(np.concatenate([np.zeros(lead), taps]), waveform, up, down)
    first = (centre + lead) // down
    filtered = filtered[first : first + samples_out]
    return np.pad(filtered, (0, samples_out - len(filtered))).astype(np.float32)


def resampled_length(samples: int, rate_in: int, rate_out: int) -> int:
    """Returns ceil(samples * rate_out / rate_in), the samples that `resample` makes of `samples`."""
    return -(-samples * rate_out // rate_in)


@functools.lru_cache(maxsize=8)
def _sinc_filter(up: int, down: int) -> NDArray[np.float64]:
    """The filter at `up` times the input's rate, its centre in the middle: [taps] f64."""
    cutoff = ROLLOFF * min(up, down)
    half = math.ceil(LOWPASS_FILTER_WIDTH / cutoff * up * down)
    position = np.clip(
        np.arange(-half, half + 1) / (up * down) * cutoff,
        -LOWPASS_FILTER_WIDTH,
        LOWPASS_FILTER_WIDTH,
    )
    window = np.cos(position * (np.pi / LOWPASS_FILTER_WIDTH / 2)) ** 2
    return np.sinc(position) * window * (cutoff / down)


# Several channels -> the one waveform that a model hears.

_ABSOLUTE_SILENCE = 1e-4  # -80 dB of full scale
_RELATIVE_SILENCE = (
    1e-3  # -60 dB of the loudest channel: what a lossy encoder leaks into a silent one
)


class ChannelReducer:
    """Reduces blocks of decoded samples to one channel as they are read, and measures every channel.

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
            with np.errstate(
                invalid="ignore", over="ignore"
            ):  # what is not finite is told of in a message
                self._blocks.append(block.mean(axis=1, dtype=np.float32))
        if block.shape[1] == 1:
            return
        low, high = block.min(axis=0), block.max(axis=0)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def samples(self) -> NDArray[np.float32]:
        """Returns what the model hears of all blocks: [samples] f32."""
        return np.concatenate(self._blocks) if self._blocks else np.zeros(0, np.float32)

    def find_silence(self) -> str | None:
        """Returns why a model would hear silence though the clip has sound, or None where it would not.

        The level of a channel is half of what lies between its lowest and its highest sample, so
        that a constant offset is silence too. A channel is silent below -80 dB of full scale, or 60
        dB below the loudest channel.
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
                    f"has a silent first channel, and channel {loudest + 1} of {channels} is not silent; set data.channel=mix "
                    "(--channel mix) to hear the mean of all channels, or put its sound into the first"
                )
            return None
        samples = self.samples()
        if _is_silent_beside((float(samples.max()) - float(samples.min())) / 2, level / channels):
            return (
                f"has {channels} channels that cancel each other in their mean; set data.channel=first (--channel first) to "
                "hear the first one alone, or turn the sign of one of them"
            )
        return None


def _is_silent_beside(level: float, other: float) -> bool:
    """Tells if a level is silence beside another one; the factor 10 keeps two very quiet channels from being told apart."""
    return (
        other >= _ABSOLUTE_SILENCE
        and level < other / 10
        and level < max(_ABSOLUTE_SILENCE, _RELATIVE_SILENCE * other)
    )


# Keeps what libmpg123 prints about good files out of sight: libsndfile gives no way to ask it to be quiet.

_OF_MPG123 = re.compile(
    rb"^(\[src/libmpg123/[^\n]*|Warning: Xing stream size off [^\n]*"
    rb"|Note: (Illegal Audio-MPEG-Header|Trying to resync|Skipped|Hit end of)[^\n]*)(\n|$)",
    re.MULTILINE,
)
_STDERR = 2


@contextlib.contextmanager
def suppress_decoder_messages() -> Iterator[None]:
    """Passes on what is written to C's `stderr` within, but for libmpg123's lines; any number of threads may be inside.

    Only where C's library is glibc: elsewhere it does nothing.
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
    """A stream of C's in memory, which takes the place of `stderr` while any thread is inside."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        library.fdopen.restype = ctypes.c_void_p
        library.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
        library.fflush.argtypes = [ctypes.c_void_p]
        self._flush = library.fflush
        self._variable = ctypes.c_void_p.in_dll(library, "stderr")
        self._original = self._variable.value
        self._descriptor = os.memfd_create("stepaudio-stderr")
        self._stream = library.fdopen(
            self._descriptor, b"a"
        )  # never closed: another thread may be about to write
        if not self._stream:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._lock = threading.Lock()
        self._active = 0
        self._bytes_forwarded = 0  # bytes looked at so far

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
            if kept := _OF_MPG123.sub(b"", text):
                os.write(_STDERR, kept)


_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "MP3", "OGG")
SAMPLE_RATE_RANGE = (
    1_000,
    768_000,
)  # Hz; a header that says anything else is wrong, and would cost memory without bound
_MAX_AMPLITUDE = 256.0  # full scale is 1: what is beyond this is integers stored as floats
_UNKNOWN_LENGTH = (1 << 63) - 1  # libsndfile's SF_COUNT_MAX
_BLOCK_SAMPLES = 1 << 16
_PROBE_BYTES = 1 << 14  # of a file whose format is not known yet
_COPY_AGAIN_HINT = "get the whole file again, or remove it"


def load_audio(
    source: str | os.PathLike[str] | bytes,
    *,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
) -> NDArray[np.float32]:
    """Decodes a clip: WAV, FLAC, MP3 or OGG, known by its content and not by its name; one channel, at 16 kHz.

    Args:
        source: a path, or the file's content.
        length_convention: of the model that will hear it. A clip is too short where it would have
            no audio token: under "hf", at 320 samples (20 ms) or fewer.
        channel: of a clip with several: the "first", as the released front end has it, or the "mix"
            (mean) of all.

    Returns:
        [samples] f32, full scale -1..1.

    Raises:
        AudioError: naming the file and the reason: it is missing, a folder, empty, not sound, in
            another format, cut short (see `completeness` for what can be told), damaged, without
            samples, not finite, far beyond full scale, or too short; or it has sound and the model
            would hear silence: in its first channel, or in a mix that cancels.
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


def probe_audio(
    path: str | os.PathLike[str], *, length_convention: LengthConvention = "hf"
) -> int | None:
    """Reads a clip's header, for a quick look at many clips; what it finds is a defect to `load_audio` too.

    Args:
        path: of a file; a WAV file is mapped into memory, and only the headers of its chunks are
        read.
        length_convention: as in `load_audio`.

    Returns:
        The clip's length in samples at 16 kHz; None where the header does not say it (MP3).

    Raises:
        AudioError: as `load_audio`, for what the header shows: the file is missing, a folder,
            empty, not sound, in another format, a WAV file cut short, or too short. Damage further
            in is seen when the clip is decoded.
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
    """Opens a regular file."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError:
        finding = recognize_file(path, "sound")  # a link to nothing
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
    """Returns what the model hears, before resampling, and its sample rate."""
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
        # Block by block, because a header can promise any number of samples.
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
                f"is cut short: its header says {declared} samples and {len(samples)} are there; {_COPY_AGAIN_HINT}",
            )
    if not len(samples):
        raise AudioError(name, "has no samples; remove it")
    reason = reducer.find_silence()
    if reason is not None:
        raise AudioError(name, reason)
    return samples, file.samplerate


def _open_sound(name: str, stream: BinaryIO, start: bytes, size: int) -> soundfile.SoundFile:
    """Opens what libsndfile can decode, and checks what its header says.

    Args:
        name: of the clip, for error messages.
        stream: the file.
        start: its first bytes, by which it is recognised where it is no sound.
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
        reason = f"says its sample rate is {file.samplerate} Hz; {SAMPLE_RATE_RANGE[0]} to {SAMPLE_RATE_RANGE[1]} are allowed"
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
