"""A sound file -> its first channel at 16 kHz."""

import io
import os
import stat

import numpy as np
import soundfile
from numpy.typing import NDArray

from stepaudio_jax.audio import completeness, mpeg
from stepaudio_jax.audio.error import AudioError
from stepaudio_jax.audio.lengths import SAMPLE_RATE, LengthConvention, audio_token_count
from stepaudio_jax.audio.resampling import resample
from stepaudio_jax.recognition import CONVERT_SOUND, recognize, recognize_file

_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "MP3", "OGG")
_RATES = (1_000, 768_000)  # Hz; a header that says anything else is wrong, and would cost memory without bound
_LOUDEST = 256.0  # full scale is 1: what is beyond this is integers stored as floats
_UNKNOWN_FRAMES = (1 << 63) - 1  # libsndfile's SF_COUNT_MAX
_BLOCK_FRAMES = 1 << 16
_COPY_AGAIN = "get the whole file again, or remove it"


def load_audio(source: str | os.PathLike[str] | bytes, *, length_convention: LengthConvention = "hf") -> NDArray[np.float32]:
    """Decodes a clip: WAV, FLAC, MP3 or OGG, known by its content and not by its name; its first channel, at 16 kHz.

    Args:
        source: a path, or the file's content.
        length_convention: of the model that will hear it. A clip is too short where it would have no audio token: under "hf",
            at 320 samples (20 ms) or fewer.

    Returns:
        [samples] f32, full scale -1..1.

    Raises:
        AudioError: naming the file and the reason: it is missing, a folder, empty, not sound, in another format, cut short (see
            `completeness` for what can be told), damaged, without samples, not finite, far beyond full scale, or too short.
    """
    if isinstance(source, bytes):
        name, content = "<bytes>", source
    else:
        path = os.fspath(source)
        name, content = _shown(path), _read(path)
    if not content:
        raise AudioError(name, f"is empty (0 bytes); {_COPY_AGAIN}")
    samples, rate = _decode(name, content)
    if not np.isfinite(samples).all():
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise AudioError(name, f"has {bad} NaN or infinite samples of {len(samples)}; export it again")
    peak = float(np.abs(samples).max())
    if peak > _LOUDEST:
        raise AudioError(name, f"has samples up to {peak:g}, full scale is 1; divide by the range of its integers")
    waveform = resample(samples, rate, SAMPLE_RATE)
    if audio_token_count(len(waveform), length_convention) == 0:
        raise AudioError(name, f"is too short: {len(samples)} samples at {rate} Hz give no audio token; remove it")
    return waveform


def _read(path: str) -> bytes:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                return file.read()
    except FileNotFoundError:
        finding = recognize_file(path, "sound")  # a link to nothing
        raise AudioError(_shown(path), str(finding or "does not exist; correct the path")) from None
    except OSError as error:
        raise AudioError(_shown(path), f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise AudioError(_shown(path), f"is not a path that can exist ({error}); correct it") from None
    reason = "is a folder; name a file in it" if stat.S_ISDIR(mode) else "is not a regular file; name a sound file"
    raise AudioError(_shown(path), reason)


def _decode(name: str, content: bytes) -> tuple[NDArray[np.float32], int]:
    """The first channel and its sample rate."""
    stream = mpeg.scan(content)
    reason = completeness.defect(content) if stream is None else mpeg.defect(content, stream)
    if reason is not None:
        raise AudioError(name, f"{reason}; {_COPY_AGAIN}")
    if stream is not None:
        content = mpeg.with_frame_count(content, stream)
    try:
        file = soundfile.SoundFile(io.BytesIO(content))
    except (soundfile.SoundFileError, TypeError, ValueError):
        finding = recognize(content, len(content), "sound")
        reason = f"({len(content)} bytes); {CONVERT_SOUND}" if finding is None else f"- it {finding}"
        raise AudioError(name, f"is not a sound file that can be decoded {reason}") from None
    with file:
        if file.format not in _FORMATS:
            raise AudioError(name, f"is in the format {file.format}; {CONVERT_SOUND}")
        if not _RATES[0] <= file.samplerate <= _RATES[1]:
            raise AudioError(name, f"says its sample rate is {file.samplerate} Hz; {_RATES[0]} to {_RATES[1]} are allowed")
        if file.frames == _UNKNOWN_FRAMES:
            raise AudioError(name, f"does not say how many samples it has (written to a pipe?); {CONVERT_SOUND}")
        # Block by block, because a header can promise any number of samples.
        blocks, declared = [], file.frames
        try:
            while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                blocks.append(block[:, 0].copy())
        except soundfile.SoundFileError as error:
            raise AudioError(name, f"is cut short or damaged ({_one_line(error)}); {_COPY_AGAIN}") from None
        samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        if file.format == "FLAC" and len(samples) < declared:
            raise AudioError(
                name, f"is cut short: its header says {declared} samples and {len(samples)} are there; {_COPY_AGAIN}"
            )
    if not len(samples):
        raise AudioError(name, "has no samples; remove it")
    return samples, file.samplerate


def _shown(path: str) -> str:
    """The path on one line."""
    return path if path.isprintable() else ascii(path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
