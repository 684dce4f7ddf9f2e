"""Sound that a program holds as an array, as a notebook or a microphone gives it."""

import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio.decoding import SAMPLE_RATE_RANGE, ChannelReducer, check_and_resample
from stepaudio_jax.config import AudioChannel, DataConfig, LengthConvention
from stepaudio_jax.errors import AudioError

# Full scale and zero of the integer formats, as in a WAV file of the same width.
_INTEGER_SCALES = {"int16": (2.0**15, 0), "int32": (2.0**31, 0), "uint8": (2.0**7, 128)}


def waveform_from_array(
    samples: Any,
    rate: Any,
    *,
    name: str = "<array>",
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
) -> NDArray[np.float32]:
    """Returns the waveform that a model hears of samples in memory, as `load_audio` does of a file.

    Args:
        samples: [samples] or [samples, channels]; floats with full scale -1..1, or int16, int32 or
            uint8 as a WAV file holds them.
        rate: of the samples, in Hz.
        name: what error messages call them.
        length_convention, channel: as in `load_audio`.

    Returns:
        [samples] f32 at 16 kHz, full scale -1..1: the same as of a WAV file with these samples.

    Raises:
        AudioError: the array is no sound or holds no samples, the rate is out of range, or one of
            the reasons that `load_audio` has for decoded samples.
    """
    lowest, highest = SAMPLE_RATE_RANGE
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or float(rate) % 1:
        raise AudioError(name, f"has the sample rate {rate!r}; it must be a whole number of Hz")
    hertz = int(float(rate))
    if not lowest <= hertz <= highest:
        raise AudioError(name, f"has the sample rate {hertz} Hz; {lowest} to {highest} are allowed")
    columns = _to_float(np.asarray(samples), name)
    if not len(columns):
        raise AudioError(name, "has no samples; remove it")
    reducer = ChannelReducer(channel)
    reducer.add(columns)
    if (reason := reducer.find_silence()) is not None:
        raise AudioError(name, reason)
    return check_and_resample(name, reducer.samples(), hertz, length_convention)


def _to_float(samples: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Returns samples of any allowed dtype and shape as [samples, channels] f32."""
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not samples.shape[1]):
        raise AudioError(
            name, f"has the shape {samples.shape}; give [samples] or [samples, channels]"
        )
    if samples.ndim == 2 and samples.shape[1] > samples.shape[0] > 0:
        raise AudioError(
            name,
            f"has {samples.shape[0]} samples of {samples.shape[1]} channels; it is laid out as "
            "[channels, samples]: transpose it",
        )
    columns = samples[:, None] if samples.ndim == 1 else samples
    if np.issubdtype(columns.dtype, np.floating):
        with np.errstate(over="ignore"):  # what becomes infinite is refused afterwards
            return columns.astype(np.float32)
    if columns.dtype.name not in _INTEGER_SCALES:
        raise AudioError(
            name,
            f"has the dtype {columns.dtype}; give floats, {', '.join(_INTEGER_SCALES)}",
        )
    scale, zero = _INTEGER_SCALES[columns.dtype.name]
    return ((columns.astype(np.float64) - zero) / scale).astype(np.float32)
