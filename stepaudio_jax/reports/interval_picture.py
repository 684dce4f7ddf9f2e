"""Draws a share with its interval on a line from 0 to 1, small enough for a cell of a table."""

from collections.abc import Iterable

from stepaudio_jax.evaluation.statistics import Interval
from stepaudio_jax.reports.html import Html, element

_WIDTH, _HEIGHT, _MARGIN = 180, 20, 6


def interval_picture(
    value: float | None,
    interval: Interval | None,
    *,
    ticks: Iterable[float] = (),
    ring: float | None = None,
) -> Html:
    """Returns a dot at a value, a bar over its interval, ticks, and a ring at a second value.

    The cells beside it have the same numbers, so it is hidden from screen readers. What lies beyond
    0 and 1 is drawn at the end.
    """
    middle = _HEIGHT / 2
    return element(
        "svg",
        element("line", x1=_place(0), x2=_place(1), y1=middle, y2=middle, class_="grid"),
        *(
            element("line", x1=_place(t), x2=_place(t), y1=3, y2=_HEIGHT - 3, class_="chance")
            for t in ticks
        ),
        None
        if interval is None
        else element(
            "line",
            x1=_place(interval.low),
            x2=_place(interval.high),
            y1=middle,
            y2=middle,
            class_="interval",
        ),
        None
        if ring is None
        else element("circle", cx=_place(ring), cy=middle, r=3.6, class_="ring"),
        None
        if value is None
        else element("circle", cx=_place(value), cy=middle, r=3.6, class_="dot"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        width=_WIDTH,
        height=_HEIGHT,
        aria_hidden="true",
    )


def _place(share: float) -> float:
    return round(_MARGIN + min(max(share, 0.0), 1.0) * (_WIDTH - 2 * _MARGIN), 1)
