"""Several channels -> the one waveform that a model hears."""

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import AudioChannel

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
