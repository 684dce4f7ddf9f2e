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


class BlockResampler:
    """Resamples a waveform block by block: every sample is the same, bit for bit, as of `resample`.

    Memory does not grow with the waveform.

    Args:
        rate_in: Hz.
        rate_out: Hz.
        first_output: index of the first sample that is wanted of `resample`'s result.

    Attributes:
        first_input: index of the first input sample that `first_output` depends on; the first block
            begins there.
    """

    def __init__(self, rate_in: int, rate_out: int, first_output: int = 0):
        divisor = math.gcd(rate_in, rate_out)
        self._up, self._down = rate_out // divisor, rate_in // divisor
        self._is_copy = rate_in == rate_out
        self._lead = 0
        if not self._is_copy:
            # As in scipy's resample_poly: zeros in front of the filter move its centre to a
            # multiple of `down`, and as many outputs are left out.
            taps = _sinc_filter(self._up, self._down)
            taps = taps / self._up * self._up
            half = (len(taps) - 1) // 2
            zeros = self._down - half % self._down
            self._lead = (half + zeros) // self._down
            self._taps = np.concatenate([np.zeros(zeros), taps])
        self._next = first_output + self._lead  # in outputs of the whole filter
        self.first_input = first_output if self._is_copy else self._first_input_of(self._next)
        self._inputs = self.first_input  # how many input samples lie before the next block
        self._history = np.zeros(0)
        self._history_start = self.first_input

    def inputs_needed(self, outputs: int) -> int:
        """Returns how many input samples, from the waveform's start, `outputs` depend on."""
        if self._is_copy:
            return outputs
        return (outputs - 1 + self._lead) * self._down // self._up + 1 if outputs else 0

    def push(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the outputs that the next input samples complete: [outputs] f32."""
        self._inputs += len(block)
        if self._is_copy:
            return np.asarray(block, np.float32)
        self._history = np.concatenate([self._history, np.asarray(block, np.float64)])
        complete = (self._inputs * self._up - 1) // self._down + 1
        return self._outputs_before(complete)

    def finish(self) -> NDArray[np.float32]:
        """Returns the outputs that remain, with silence assumed behind the last block."""
        if self._is_copy:
            return np.zeros(0, np.float32)
        total = -(-self._inputs * self._up // self._down)
        return self._outputs_before(total + self._lead)

    def _first_input_of(self, output: int) -> int:
        return max(0, -((len(self._taps) - 1 - output * self._down) // self._up))

    def _outputs_before(self, end: int) -> NDArray[np.float32]:
        """Returns the outputs from the next one to `end`, and drops the history before them."""
        if end <= self._next:
            return np.zeros(0, np.float32)
        if not len(self._history):
            silence = np.zeros(end - self._next, np.float32)
            self._next = end
            return silence
        from scipy.signal import upfirdn  # slow to import, and few clips need it

        # Zeros before the filter put its first output where the history begins.
        offset = self._history_start * self._up
        zeros = offset % self._down
        outputs = upfirdn(
            np.concatenate([np.zeros(zeros), self._taps]), self._history, self._up, self._down
        )
        start = self._next - offset // self._down
        outputs = outputs[start : start + end - self._next].astype(np.float32)
        outputs = np.pad(outputs, (0, end - self._next - len(outputs)))
        self._next = end
        keep = self._first_input_of(end)
        self._history = self._history[max(keep - self._history_start, 0) :]
        self._history_start = max(keep, self._history_start)
        return outputs


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
