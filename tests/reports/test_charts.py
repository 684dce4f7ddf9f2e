"""Axes, and how curves are drawn."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from stepaudio_jax.reports.axis import Axis, format_number
from stepaudio_jax.reports.charts import Chart, Series, draw
from stepaudio_jax.reports.logged_run import StageSpan, read_run
from stepaudio_jax.reports.run_charts import chart_groups
from tests.reports.run_folder import write_run

SPAN = (StageSpan("sft", 0, 100),)


def chart(*segments, scale="around", spans=SPAN):
    return Chart("Loss", "nats", scale, (Series("loss", "training", segments),), spans)


def drawn(figure):
    """The chart's SVG, parsed, and its figcaption's text."""
    tree = ElementTree.fromstring(figure)
    return tree.find("svg"), tree.findtext("figcaption")


def lines(svg):
    """The points of each line."""
    return [
        np.array([place.split(",") for place in line.get("points").split()], float)
        for line in svg.iter("polyline")
    ]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (0, 70),
        (0.2, 0.9),
        (5, 5),
        (0, 0),
        (-3, 2),
        (1e-9, 2e-9),
        (3e6, 9e6),
        (1000.1, 1000.4),
    ],
)
def test_a_linear_axis_holds_its_values_and_its_ticks_read_differently(low, high):
    axis = Axis.linear(low, high, 100, 500)
    assert 100 <= axis(low) <= axis(high) <= 500
    assert 2 <= len(axis.ticks) <= 7
    assert all(100 - 1e-9 <= axis(tick) <= 500 + 1e-9 for tick in axis.ticks)
    labels = [axis.label(tick) for tick in axis.ticks]
    assert len(set(labels)) == len(labels)
    for tick, label in zip(axis.ticks, labels, strict=True):
        assert float(label.replace(",", "")) == pytest.approx(tick, rel=5e-3, abs=1e-12)


@pytest.mark.parametrize(
    ("low", "high"), [(0.02, 5.3), (1e-8, 1e7), (0.9, 1.1), (2.0, 19.0), (1.0, 1000.0)]
)
def test_a_logarithmic_axis_places_by_ratio(low, high):
    axis = Axis.logarithmic(low, high, 500, 100)
    assert axis(low) == pytest.approx(500)
    assert axis(high) == pytest.approx(100)
    assert axis(math.sqrt(low * high)) == pytest.approx(300)
    assert 1 <= len(axis.ticks) <= 8
    assert all(low <= tick <= high for tick in axis.ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.023927, "0.0239"),
        (5.2575, "5.26"),
        (16188.4, "16,188"),
        (3e-5, "3e-05"),
        (0, "0"),
        (2.5e9, "2.5e+09"),
    ],
)
def test_numbers_are_readable(value, text):
    assert format_number(value) == text


def test_points_lie_where_their_values_say():
    svg, caption = drawn(draw(chart(((0, 4.0), (50, 2.0), (100, 0.0)), scale="from zero")))
    ((first, middle, last),) = lines(svg)
    np.testing.assert_allclose(middle, (first + last) / 2, atol=0.11)
    assert first[0] < last[0]
    assert first[1] < last[1]  # down is up in SVG
    bottom = max(float(line.get("y1")) for line in svg.iter("line"))
    assert last[1] == bottom  # zero is the lowest grid line
    assert caption == "training: 0 at step 100, from 4 at step 0."
    assert svg.get("aria-label") == f"Loss, nats. {caption}"


def test_a_wide_spread_of_losses_is_drawn_on_a_logarithmic_axis_and_says_so():
    points = ((0, 10.0), (50, 1.0), (100, 0.1))
    svg, _ = drawn(draw(chart(points, scale="log")))
    ((first, middle, last),) = lines(svg)
    np.testing.assert_allclose(middle, (first + last) / 2, atol=0.11)
    assert "log scale" in [text.text for text in svg.iter("text")]
    for narrow in (((0, 2.0), (100, 1.0)), ((0, 10.0), (100, 0.0))):
        svg, _ = drawn(draw(chart(narrow, scale="log")))
        assert "log scale" not in [text.text for text in svg.iter("text")]


def test_values_that_are_not_finite_break_the_line_and_are_counted():
    points = [(step, 1.0 + step) for step in range(10)]
    points[4] = (4, math.nan)
    points[7] = (7, math.inf)
    svg, caption = drawn(draw(chart(tuple(points))))
    assert [len(line) for line in lines(svg)] == [4, 2, 2]
    assert caption == "training: 10 at step 9, from 1 at step 0; 2 of 10 values are not finite."
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode")


def test_a_curve_of_nothing_finite_is_said_in_words():
    tree = ElementTree.fromstring(draw(chart(((1, math.nan), (2, math.nan)))))
    assert tree.find("svg") is None
    assert tree.findtext("figcaption") == "training: none of 2 values is finite."


def test_many_points_are_drawn_as_means_and_the_caption_says_so():
    points = tuple((step, float(step)) for step in range(100_000))
    svg, caption = drawn(draw(chart(points, spans=(StageSpan("sft", 0, 100_000),))))
    (line,) = lines(svg)
    assert len(line) == 400
    np.testing.assert_allclose(line[0] - line[1], line[-2] - line[-1], atol=0.21)
    assert "mean of up to 250 logged ones" in caption
    assert not list(svg.iter("circle"))


def test_a_curve_is_not_drawn_across_stages(tmp_path):
    write_run(
        tmp_path,
        [
            ("mid", 10, {"loss": 3.0}),
            ("mid", 20, {"loss": 2.0}),
            ("sft", 5, {"loss": 1.5}),
            ("sft", 10, {"loss": 1.0}),
        ],
    )
    (group,) = chart_groups(read_run(tmp_path))
    (loss,) = group.charts
    assert loss.series[0].segments == (((10, 3.0), (20, 2.0)), ((25, 1.5), (30, 1.0)))
    svg, _ = drawn(draw(loss))
    assert [len(line) for line in lines(svg)] == [2, 2]
    assert {"mid", "sft"} <= {text.text for text in svg.iter("text")}


def test_names_from_a_run_are_escaped(tmp_path):
    write_run(tmp_path, [("<s>", 5, {"<script>": 1.0}), ("<s>", 100, {"<script>": 2.0})])
    ((group,),) = [chart_groups(read_run(tmp_path))]
    figure = draw(group.charts[0])
    assert "<script>" not in figure
    assert "<s>" not in figure
    assert re.findall(r"&lt;s&gt;", figure)
