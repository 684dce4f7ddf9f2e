"""Several channels: reduced to one, and checked for silence where there is sound."""

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import AudioChannel

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
        # Of each channel, and of the reduced one at the end.
        self._low: NDArray[np.float32] | None = None
        self._high: NDArray[np.float32] | None = None

    def reduce(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns one channel [samples] f32 of decoded samples [samples, channels]."""
        if block.shape[1] == 1:
            return block[:, 0]
        # Copied, since NumPy is slow along the first of two dimensions.
        channels = np.ascontiguousarray(block.T)
        if self._channel == "first":
            reduced = channels[0]
        else:
            with np.errstate(invalid="ignore", over="ignore"):  # `WaveformStream` reports them
                reduced = block.mean(axis=1, dtype=np.float32)
        if len(block):
            low = np.append(channels.min(axis=1), reduced.min())
            high = np.append(channels.max(axis=1), reduced.max())
            self._low = low if self._low is None else np.minimum(self._low, low)
            self._high = high if self._high is None else np.maximum(self._high, high)
        return reduced

    def find_silence(self) -> str | None:
        """Returns why the reduced channel is silent though the clip has sound, or None.

        A channel's level is half the difference of its highest and its lowest sample, so that a
        constant offset is silence too. A channel is silent below -80 dB of full scale, or 60 dB
        below the loudest channel.
        """
        if self._low is None or self._high is None:
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            *levels, reduced = (self._high - self._low) / 2
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
        if _is_silent_beside(float(reduced), level / channels):
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
