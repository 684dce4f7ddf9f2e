"""One line chart as inline SVG: no script, its colours from the page's style sheet, its content said in words too."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from stepaudio_jax.reports.html import Html, element
from stepaudio_jax.reports.logged_run import LoggedRun, Point, StageSpan

# An axis: where a value stands, and which values get a tick.

_TICKS = 6
_MAX_DECIMALS = 4
_PADDING = 0.04  # of the spread, left free at both ends of a linear axis


@dataclasses.dataclass(frozen=True)
class Axis:
    """Maps values from low..high to places from start..end (in the units of the drawing; end may be less than start)."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    is_logarithmic: bool = False
    decimals: int | None = None  # that tell neighbouring ticks apart; None where three figures do

    @classmethod
    def linear(cls, low: float, high: float, start: float, end: float) -> Self:
        """An axis on which zero stands at its very end, if it is an end, and other ends have some room."""
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
        """A logarithmic axis, of positive values. Its ticks are powers of ten, and 2 and 5 times those if they are few."""
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
        """A tick as text."""
        return format_number(tick) if self.decimals is None else f"{tick:,.{self.decimals}f}"

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high = self.low, self.high
        if self.is_logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def format_number(value: float) -> str:
    """A number to read: 0.0239, 5.26, 1,640, 16,188, 3e-05."""
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.3g}"


def _round_step(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


# "log": logarithmic where the values are positive and spread widely. "from zero": zero is on the
# axis.
Scale = Literal["log", "from zero", "around"]
Segment = tuple[Point, ...]

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 28, 44
_MIN_LOG_SCALE_RATIO = 20.0
_MAX_POINTS = 400  # of a stage; more are drawn as means of neighbours
_MAX_MARKERS = 60  # of a series; with more, markers would hide the line
_CHAR_WIDTH = 8.5
_DASHES = (None, "7 4", "2 3", "9 3 2 3")
COLOURS = 5  # that the style sheet has


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: a logged metric, its label, and its points stage by stage (a curve is not drawn across stages)."""

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
    """The chart as a figure with a caption that says where each curve starts and ends."""
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
        element("h3", chart.title, element("small", f" {chart.unit}") if chart.unit else None),
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
    """A line where a stage starts, and its name above its span where there is room for it."""
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
    """Lines through neighbouring points; markers where points are few, and where a point has no neighbour."""
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
    """The first and the last value of a curve, in words."""
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
    """At most `_MAX_POINTS` points: means of as many neighbours as that needs. A value that is not finite stays visible."""
    size = _group_size(segment)
    groups = [segment[start : start + size] for start in range(0, len(segment), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _finite_runs(points: Sequence[Point]) -> list[list[Point]]:
    """The points in runs that are not interrupted by a value that is not finite."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


# Which curves a run has.

_NEXT_TOKEN, _TOTAL = "loss/next_token", "loss"
_RECORD_COUNTERS = (
    "records",
    "skipped_bad_audio",
    "skipped_too_long",
    "skipped_bad_record",
)  # running counts, which are no curves
# Of a stage that learns from rewards, each in total and, as "NAME/SOURCE", by source.
_RL_CHARTS: tuple[tuple[str, str, str, Scale], ...] = (
    ("reward", "Reward", "mean", "around"),
    ("win_rate", "Win rate", "against the reference reply", "from zero"),
    ("reward_rubric_score", "Rubric score", "share of its weights", "around"),
    ("reward_verifier", "Verified", "share of replies", "from zero"),
    ("reply_tokens", "Reply", "tokens", "from zero"),
    ("reasoning_tokens", "Reasoning", "tokens", "from zero"),
    ("well_formed", "Well-formed", "share of replies", "from zero"),
    ("truncated", "Truncated", "share of replies", "from zero"),
    ("abstained", "Abstentions of the judge", "share of replies", "from zero"),
    ("distinct_2", "Distinct pairs of tokens", "share", "from zero"),
)


def charts(run: LoggedRun) -> list[Chart]:
    """The curves of a run, loss first: every metric that it logged is in one of them.

    Training and held-out metrics share a chart where they measure the same. A metric that is not
    known here has its own.
    """
    names = [name for name in run.metric_names if not name.startswith(_RECORD_COUNTERS)]
    auxiliary = [name for name in names if name.startswith("loss/") and name != _NEXT_TOKEN]
    rates = [name for name in names if name.startswith("learning_rate")]
    drawn: list[Chart] = []
    if _NEXT_TOKEN in names:
        drawn += _chart(
            run,
            "Loss",
            "nats a token",
            "log",
            {_NEXT_TOKEN: "training", "evaluation/loss": "held out"},
        )
        if auxiliary:
            labels = {_TOTAL: "all terms, weighted"} | {
                name: name.removeprefix("loss/") for name in auxiliary
            }
            drawn += _chart(run, "Auxiliary losses", "mean", "log", labels)
    else:
        drawn += _chart(
            run, "Loss", "mean", "log", {_TOTAL: "training", "evaluation/loss": "held out"}
        )
    labels = {"token_accuracy": "training", "evaluation/token_accuracy": "held out"}
    drawn += _chart(run, "Token accuracy", "share of tokens", "from zero", labels)
    drawn += _chart(run, "Learning rate", "", "from zero", {name: name for name in rates})
    drawn += _chart(run, "Gradient norm", "before clipping", "log", {"gradient_norm": "training"})
    drawn += _chart(run, "Tokens", "a second", "from zero", {"tokens_per_second": "training"})
    drawn += _chart(
        run,
        "Audio",
        "seconds heard a second",
        "from zero",
        {"audio_seconds_per_second": "training"},
    )
    drawn += _chart(run, "Steps", "a second", "from zero", {"steps_per_second": "training"})
    drawn += _chart(
        run,
        "Waiting for data",
        "share of the time",
        "from zero",
        {"data_wait_fraction": "training"},
    )
    for metric, title, unit, scale in _RL_CHARTS:
        by_source = {
            name: name.removeprefix(f"{metric}/") for name in names if name.startswith(f"{metric}/")
        }
        drawn += _chart(run, title, unit, scale, {metric: "all"} | by_source)
    drawn += _chart(
        run, "KL", "nats a reply, to what the stage began with", "from zero", {"reply_kl": "policy"}
    )
    parts = {name: name.removeprefix("seconds/") for name in names if name.startswith("seconds/")}
    drawn += _chart(run, "Time", "seconds a step", "from zero", parts)
    known = {_TOTAL} if _NEXT_TOKEN in names else set()
    known |= {series.metric for chart in drawn for series in chart.series}
    for name in names:
        if name not in known:
            drawn += _chart(run, name, "", "around", {name: name})
    return drawn


def _chart(
    run: LoggedRun, title: str, unit: str, scale: Scale, labels: Mapping[str, str]
) -> Sequence[Chart]:
    """The chart of these metrics (metric -> label), or none where the run logged none of them."""
    series = tuple(
        Series(metric, label, tuple(map(tuple, points.values())))
        for metric, label in labels.items()
        if (points := run.points(metric))
    )
    return [Chart(title, unit, scale, series, run.spans)] if series else []
