"""A sound file -> the waveform that a model hears of it, at 16 kHz."""

import io
import mmap
import os
import stat
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from stepaudio_jax.audio import completeness, mpeg
from stepaudio_jax.audio.channels import ChannelReducer
from stepaudio_jax.audio.error import AudioError, format_path
from stepaudio_jax.audio.lengths import SAMPLE_RATE, LengthConvention, audio_token_count
from stepaudio_jax.audio.quiet import suppress_decoder_messages
from stepaudio_jax.audio.resampling import resample, resampled_length
from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.recognition import CONVERT_SOUND, recognize, recognize_file

_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "MP3", "OGG")
_SAMPLE_RATE_RANGE = (
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
        if start[:3] == b"ID3" or mpeg.scan_frames(start) is not None:
            return None
        file.seek(0)
        if start[8:12] == b"WAVE":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                reason = completeness.find_truncation(content)
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
    stream = mpeg.scan_frames(content)
    reason = (
        completeness.find_truncation(content)
        if stream is None
        else mpeg.find_truncation(content, stream)
    )
    if reason is not None:
        raise AudioError(name, f"{reason}; {_COPY_AGAIN_HINT}")
    if stream is not None:
        content = mpeg.insert_frame_count(content, stream)
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
    elif not _SAMPLE_RATE_RANGE[0] <= file.samplerate <= _SAMPLE_RATE_RANGE[1]:
        reason = f"says its sample rate is {file.samplerate} Hz; {_SAMPLE_RATE_RANGE[0]} to {_SAMPLE_RATE_RANGE[1]} are allowed"
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
