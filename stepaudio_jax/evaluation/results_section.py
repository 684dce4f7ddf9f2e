"""The table of an evaluation in HTML, each task with a picture of its interval."""

from stepaudio_jax.evaluation.grading import TaskScore
from stepaudio_jax.evaluation.markup import Html, element, joined
from stepaudio_jax.evaluation.table import Results, tabulate

_WIDTH, _HEIGHT, _MARGIN = 180, 20, 6


def results_table(results: Results) -> Html:
    """The table with its notes."""
    table = tabulate(results)
    header = element(
        "tr",
        *(element("th", cell, scope="col") for cell in table.header),
        element("th", "0 to 100 %", scope="col", class_="picture"),
    )
    rows = []
    for (task, *figures), score in zip(table.rows, results.after.values(), strict=True):
        silenced = (results.silenced or {}).get(score.task)
        cells = [element("td", figure) for figure in figures]
        picture = element("td", _picture(score, silenced), class_="picture")
        rows.append(element("tr", element("th", task, scope="row"), *cells, picture))
    ring = ", the ring after with the audio silenced" if results.silenced is not None else ""
    explanation = (
        f"In the picture the dot is after, the bar its 95 % interval, the tick chance{ring}."
    )
    body = element("table", element("thead", header), element("tbody", *rows), class_="results")
    notes = (element("p", note, class_="muted") for note in (explanation, *table.notes))
    return joined(
        element(
            "div", body, class_="scroll", tabindex=0, role="region", aria_label="Results by task"
        ),
        *notes,
    )


def _picture(score: TaskScore, silenced: TaskScore | None) -> Html:
    """Where accuracy, interval, chance and silenced accuracy lie; the cells beside it say the same in figures."""
    middle = _HEIGHT / 2
    ring = None
    if silenced is not None:
        ring = element("circle", cx=_place(silenced.accuracy), cy=middle, r=3.6, class_="ring")
    return element(
        "svg",
        element("line", x1=_place(0), x2=_place(1), y1=middle, y2=middle, class_="grid"),
        element(
            "line",
            x1=_place(score.chance),
            x2=_place(score.chance),
            y1=3,
            y2=_HEIGHT - 3,
            class_="chance",
        ),
        element(
            "line",
            x1=_place(score.interval.low),
            x2=_place(score.interval.high),
            y1=middle,
            y2=middle,
            class_="interval",
        ),
        ring,
        element("circle", cx=_place(score.accuracy), cy=middle, r=3.6, class_="dot"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        width=_WIDTH,
        height=_HEIGHT,
        aria_hidden="true",
    )


def _place(share: float) -> float:
    return round(_MARGIN + share * (_WIDTH - 2 * _MARGIN), 1)
