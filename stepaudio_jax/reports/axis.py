"""The axis of a chart: where values stand, and which of them get a tick."""

import dataclasses
import math
from typing import Self

_TICKS = 6
_MAX_DECIMALS = 4
_PADDING = 0.04  # fraction of the range left free at both ends of a linear axis


@dataclasses.dataclass(frozen=True)
class Axis:
    """Maps values in low..high to coordinates in start..end of the drawing (end may be less)."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    is_logarithmic: bool = False
    decimals: int | None = None  # of the labels of ticks; None: three significant digits

    @classmethod
    def linear(cls, low: float, high: float, start: float, end: float) -> Self:
        """Returns a linear axis with some room at its ends, but for an end at zero."""
        if low == high == 0:
            high = 1.0
        spread = high - low or abs(high)
        low = low if low == 0 else low - _PADDING * spread
        high = high if high == 0 else high + _PADDING * spread
        step = _round_step((high - low) / _TICKS)
        first = math.ceil(low / step)
        ticks = tuple(step * number for number in range(first, math.floor(high / step) + 1))
        decimals = max(0, -math.floor(math.log10(step)))
        return cls(
            low, high, start, end, ticks, decimals=decimals if decimals <= _MAX_DECIMALS else None
        )

    @classmethod
    def logarithmic(cls, low: float, high: float, start: float, end: float) -> Self:
        """Returns a logarithmic axis of positive values.

        Ticks are powers of ten, and 2 and 5 times those where there are few.
        """
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        within = [10.0**power for power in range(first, last + 1) if low <= 10.0**power <= high]
        stride = -(-len(within) // _TICKS) or 1
        ticks = within[::stride]
        if len(within) < 3:
            finer = (
                factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)
            )
            ticks = [tick for tick in finer if low <= tick <= high]
        return cls(low, high, start, end, tuple(ticks), is_logarithmic=True)

    def label(self, tick: float) -> str:
        """Returns a tick as text."""
        return format_number(tick) if self.decimals is None else f"{tick:,.{self.decimals}f}"

    def __call__(self, value: float) -> float:
        """Returns the coordinate of a value."""
        low, high = self.low, self.high
        if self.is_logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def format_number(value: float) -> str:
    """Formats a number for readers: 0.0239, 5.26, 1,640, 16,188, 3e-05."""
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.3g}"


def _round_step(step: float) -> float:
    """Returns the smallest of 1, 2 or 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
