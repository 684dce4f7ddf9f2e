"""Sound that a program holds as an array, as a notebook or a microphone gives it."""

import numbers
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio.waveform import SAMPLE_RATE_RANGE, WaveformStream, check_part, join
from stepaudio_jax.config import AudioChannel, DataConfig, LengthConvention
from stepaudio_jax.errors import AudioError

_BLOCK_FRAMES = 1 << 16
# Full scale and zero of the integer formats, as in a WAV file of the same width.
_INTEGER_SCALES = {"int16": (2.0**15, 0), "int32": (2.0**31, 0), "uint8": (2.0**7, 128)}


@runtime_checkable
class SampledSound(Protocol):
    """Describes a clip that is stored as samples, and not as the bytes of a sound file.

    Attributes:
        values: [samples] or [samples, channels]; floats of full scale -1 to 1, or integers of
            16 bits in any dtype.
        rate: in Hz.
    """

    @property
    def values(self) -> NDArray[Any]: ...

    @property
    def rate(self) -> int: ...


def waveform_from_array(
    samples: Any,
    rate: Any,
    *,
    name: str = "<array>",
    start_s: float | None = None,
    end_s: float | None = None,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
) -> NDArray[np.float32]:
    """Returns the waveform that a model hears of samples in memory, as `load_audio` does of a file.

    Args:
        samples: [samples] or [samples, channels]; floats with full scale -1..1, or int16, int32 or
            uint8 as a WAV file holds them.
        rate: of the samples, in Hz.
        name: what error messages call them.
        start_s, end_s, length_convention, channel: as in `load_audio`.

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
    columns = _to_columns(np.asarray(samples), name)
    if not len(columns):
        raise AudioError(name, "has no samples; remove it")
    part = check_part(name, start_s, end_s)
    if not part.is_all:
        part.within(name, len(columns), hertz)
    stream = WaveformStream(
        name, hertz, part=part, channel=channel, length_convention=length_convention
    )
    return join(_pieces(columns, stream))


def waveform_from_samples(
    source: SampledSound,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
) -> NDArray[np.float32]:
    """Returns the waveform of samples that a container stores as numbers; see `load_audio`.

    Raises:
        AudioError: integers exceed 16 bits, or one of the reasons of `waveform_from_array`.
    """
    values = np.asarray(source.values)
    if values.dtype.kind in "iu" and values.dtype != np.int16:
        # A data set may have widened the 16 bits of its sound to more.
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if not -(1 << 15) <= low <= high < 1 << 15:
            raise AudioError(
                "<samples>", f"has integers from {low} to {high}, which exceed 16 bits"
            )
        values = values.astype(np.int16)
    return waveform_from_array(
        values,
        source.rate,
        name="<samples>",
        start_s=start_s,
        end_s=end_s,
        length_convention=length_convention,
        channel=channel,
    )


def _pieces(columns: NDArray[Any], stream: WaveformStream) -> Iterator[NDArray[np.float32]]:
    for start in range(stream.first_frame, len(columns), _BLOCK_FRAMES):
        yield stream.add(_to_float(columns[start : start + _BLOCK_FRAMES]))
        if stream.is_complete:
            break
    yield stream.finish()


def _to_columns(samples: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns samples of any allowed dtype and shape as [samples, channels]."""
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
    if not np.issubdtype(samples.dtype, np.floating) and samples.dtype.name not in _INTEGER_SCALES:
        raise AudioError(
            name,
            f"has the dtype {samples.dtype}; give floats, {', '.join(_INTEGER_SCALES)}",
        )
    return samples[:, None] if samples.ndim == 1 else samples


def _to_float(columns: NDArray[Any]) -> NDArray[np.float32]:
    """Returns samples of any allowed dtype as f32 of full scale -1 to 1."""
    if np.issubdtype(columns.dtype, np.floating):
        with np.errstate(over="ignore"):  # what becomes infinite is refused afterwards
            return columns.astype(np.float32)
    scale, zero = _INTEGER_SCALES[columns.dtype.name]
    if columns.dtype.itemsize > 2:
        return ((columns.astype(np.float64) - zero) / scale).astype(np.float32)
    # 16 bits fit into a float, and the scale is a power of two: nothing is rounded.
    samples = columns.astype(np.float32)
    samples -= zero
    samples /= scale
    return samples
