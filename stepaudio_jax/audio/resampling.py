"""Resampling by a windowed sinc: torchaudio's default filter, which the released front end was trained behind."""

import functools
import math

import numpy as np
from numpy.typing import NDArray

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
