"""Draws line charts as inline SVG, without scripts, each with a caption in words."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from stepaudio_jax.reports.axis import Axis, format_number
from stepaudio_jax.reports.html import Html, element
from stepaudio_jax.reports.logged_run import Point, StageSpan

# "log": logarithmic where the values are positive and spread widely. "from zero": with zero.
# "around": from the smallest to the largest value.
Scale = Literal["log", "from zero", "around"]
Segment = tuple[Point, ...]

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 28, 44
_MIN_LOG_SCALE_RATIO = 20.0
_MAX_POINTS = 400  # in a stage; more are drawn as means of neighbours
_MAX_MARKERS = 60  # in a series; more would hide the line
_CHAR_WIDTH = 8.5
_DASHES = (None, "7 4", "2 3", "9 3 2 3")
COLOURS = 5  # of the style sheet


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: a metric, its label, and its points by stage (no line crosses a stage)."""

    metric: str
    label: str
    segments: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves over the steps of a run."""

    title: str
    unit: str
    scale: Scale
    series: tuple[Series, ...]
    spans: tuple[StageSpan, ...]


def draw(chart: Chart) -> Html:
    """Returns a chart as a figure whose caption says where each curve starts and ends."""
    caption = [_summary(series) for series in chart.series]
    if (
        thinned := max(
            _group_size(segment) for series in chart.series for segment in series.segments
        )
        - 1
    ):
        caption.append(f"Each point drawn is the mean of up to {thinned + 1} logged ones.")
    title = f"{chart.title}, {chart.unit}" if chart.unit else chart.title
    legend = None
    if len(chart.series) > 1:
        legend = element(
            "ul",
            *(_legend(index, series.label) for index, series in enumerate(chart.series)),
            class_="legend",
        )
    return element(
        "figure",
        element("h4", chart.title, element("small", f" {chart.unit}") if chart.unit else None),
        legend,
        _svg(chart, f"{title}. {' '.join(caption)}"),
        element("figcaption", " ".join(caption)),
    )


def _svg(chart: Chart, description: str) -> Html:
    drawn = [
        [part for segment in series.segments for part in _finite_runs(_thinned(segment))]
        for series in chart.series
    ]
    values = [y for parts in drawn for part in parts for _, y in part]
    if not values:
        return element("p", "No finite value was logged.", class_="muted")
    x_axis = Axis.linear(0, max(1, chart.spans[-1].end), _LEFT, _WIDTH - _RIGHT)
    y_axis = _y_axis(chart.scale, values)
    curves = [_curve(index, parts, x_axis, y_axis) for index, parts in enumerate(drawn)]
    return element(
        "svg",
        *_grid(x_axis, y_axis),
        *_stages(chart.spans, x_axis),
        *curves,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=description,
    )


def _y_axis(scale: Scale, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    bottom, top = _HEIGHT - _BOTTOM, _TOP
    if scale == "log" and low > 0 and high / low > _MIN_LOG_SCALE_RATIO:
        return Axis.logarithmic(low, high, bottom, top)
    if scale == "from zero":
        low, high = min(low, 0.0), max(high, 0.0)
    return Axis.linear(low, high, bottom, top)


def _grid(x_axis: Axis, y_axis: Axis) -> list[Html]:
    lines = []
    for value in y_axis.ticks:
        y = round(y_axis(value), 1)
        lines.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        lines.append(element("text", y_axis.label(value), x=_LEFT - 7, y=y + 5, text_anchor="end"))
    for value in x_axis.ticks:
        x = round(x_axis(value), 1)
        lines.append(
            element(
                "text", x_axis.label(value), x=x, y=_HEIGHT - _BOTTOM + 19, text_anchor="middle"
            )
        )
    lines.append(
        element(
            "text", "step", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, text_anchor="middle"
        )
    )
    if y_axis.is_logarithmic:
        lines.append(
            element(
                "text",
                "log scale",
                x=_WIDTH - _RIGHT,
                y=_HEIGHT - 6,
                text_anchor="end",
                class_="muted",
            )
        )
    return lines


def _stages(spans: Sequence[StageSpan], x_axis: Axis) -> list[Html]:
    """Returns a line where each stage starts, and its name above its span where there is room."""
    marks = []
    for index, span in enumerate(spans):
        left, right = x_axis(span.start), x_axis(span.end)
        if index:
            x = round(left, 1)
            marks.append(
                element("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="boundary")
            )
        if len(span.name) * _CHAR_WIDTH < right - left:
            marks.append(
                element(
                    "text",
                    span.name,
                    x=round((left + right) / 2, 1),
                    y=_TOP - 10,
                    text_anchor="middle",
                )
            )
    return marks


def _curve(index: int, parts: Sequence[Sequence[Point]], x_axis: Axis, y_axis: Axis) -> Html:
    """Returns lines through neighbouring points, and markers where points are few or isolated."""
    children = []
    few = sum(map(len, parts)) <= _MAX_MARKERS
    for part in parts:
        places = [(round(x_axis(x), 1), round(y_axis(y), 1)) for x, y in part]
        if len(places) > 1:
            points = " ".join(f"{x},{y}" for x, y in places)
            children.append(
                element("polyline", points=points, stroke_dasharray=_DASHES[index % len(_DASHES)])
            )
        if few or len(places) == 1:
            for (x, y), (step, value) in zip(places, part, strict=True):
                said = element("title", f"step {format_number(step)}: {format_number(value)}")
                children.append(element("circle", said, cx=x, cy=y, r=2.6))
    return element("g", *children, class_=f"curve colour-{index % COLOURS}")


def _legend(index: int, label: str) -> Html:
    line = element("line", x1=1, x2=27, y1=5, y2=5, stroke_dasharray=_DASHES[index % len(_DASHES)])
    group = element("g", line, class_=f"curve colour-{index % COLOURS}")
    return element(
        "li",
        element("svg", group, viewBox="0 0 28 10", width=28, height=10, aria_hidden="true"),
        label,
    )


def _summary(series: Series) -> str:
    """Returns the first and the last finite value of a curve in words."""
    points = [point for segment in series.segments for point in segment]
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return f"{series.label}: none of {len(points)} values is finite."
    (first_step, first), (last_step, last) = finite[0], finite[-1]
    text = f"{series.label}: {format_number(last)} at step {format_number(last_step)}"
    if first_step != last_step:
        text += f", from {format_number(first)} at step {format_number(first_step)}"
    lost = len(points) - len(finite)
    return f"{text}; {lost} of {len(points)} values are not finite." if lost else f"{text}."


def _group_size(segment: Segment) -> int:
    return -(-len(segment) // _MAX_POINTS)


def _thinned(segment: Segment) -> list[Point]:
    """Returns at most `_MAX_POINTS` points: means of neighbours (not finite if one of them is)."""
    size = _group_size(segment)
    groups = [segment[start : start + size] for start in range(0, len(segment), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _finite_runs(points: Sequence[Point]) -> list[list[Point]]:
    """Splits points where a value is not finite, and leaves those values out."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
