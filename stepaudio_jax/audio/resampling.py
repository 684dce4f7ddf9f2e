"""Resampling by a windowed sinc, torchaudio's default: the released model was trained behind it."""

import functools
import math

import numpy as np
from numpy.typing import NDArray

LOWPASS_FILTER_WIDTH = 6  # zero crossings of the sinc on each side
ROLLOFF = 0.99  # cut-off frequency, as a fraction of the lower of the two Nyquist frequencies


def resample(waveform: NDArray[np.float32], rate_in: int, rate_out: int) -> NDArray[np.float32]:
    """Resamples a waveform, with silence assumed on both sides of it.

    With a = ROLLOFF * min(rate_in, rate_out) and w the Hann window over +-LOWPASS_FILTER_WIDTH,

        y[m] = a / rate_in * sum_n x[n] sinc(a t) w(a t),    t = n / rate_in - m / rate_out,

    which is torchaudio's `sinc_interp_hann`.

    Args:
        waveform: [samples_in].
        rate_in: Hz.
        rate_out: Hz.

    Returns:
        [ceil(samples_in * rate_out / rate_in)] f32, computed in float64.
    """
    if rate_in == rate_out:
        return np.asarray(waveform, np.float32)
    from scipy.signal import resample_poly  # slow to import, and few clips need it

    divisor = math.gcd(rate_in, rate_out)
    up, down = rate_out // divisor, rate_in // divisor
    window = _sinc_filter(up, down) / up  # resample_poly multiplies its window by `up`
    return resample_poly(np.asarray(waveform, np.float64), up, down, window=window).astype(
        np.float32
    )


def resampled_length(samples: int, rate_in: int, rate_out: int) -> int:
    """Returns ceil(samples * rate_out / rate_in): how many samples `resample` returns."""
    return -(-samples * rate_out // rate_in)


@functools.lru_cache(maxsize=8)
def _sinc_filter(up: int, down: int) -> NDArray[np.float64]:
    """Returns the filter at `up` times the input's rate, its centre in the middle: [taps] f64."""
    cutoff = ROLLOFF * min(up, down)
    half = math.ceil(LOWPASS_FILTER_WIDTH / cutoff * up * down)
    crossings = np.clip(
        np.arange(-half, half + 1) / (up * down) * cutoff,
        -LOWPASS_FILTER_WIDTH,
        LOWPASS_FILTER_WIDTH,
    )
    window = np.cos(crossings * (np.pi / LOWPASS_FILTER_WIDTH / 2)) ** 2
    return np.sinc(crossings) * window * (cutoff / down)
