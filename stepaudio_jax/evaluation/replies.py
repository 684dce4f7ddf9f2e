"""Replies that a policy wrote while it learnt, with what they were worth, to read."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.evaluation.axis import format_number
from stepaudio_jax.evaluation.markup import Html, element, joined

SAMPLES = "samples.jsonl"
_STEPS_SHOWN = 6


def replies_table(folder: pathlib.Path) -> Html | None:
    """The samples of some steps from first to last, or None for a run that did not learn from rewards."""
    path = folder / SAMPLES
    if not path.exists():
        return None
    *whole, _ = path.read_bytes().split(b"\n")  # what follows the last line end is not whole
    samples = [json.loads(line) for line in whole]
    moments = list(dict.fromkeys((sample["stage"], sample["step"]) for sample in samples))
    if not moments:
        return None
    count = min(_STEPS_SHOWN, len(moments))
    shown = {
        moments[round(index * (len(moments) - 1) / max(count - 1, 1))] for index in range(count)
    }
    rows = [_row(sample) for sample in samples if (sample["stage"], sample["step"]) in shown]
    columns = ("stage", "step", "source", "reasoning", "reply", "reference", "reward", "made of")
    header = element("tr", *(element("th", column, scope="col") for column in columns))
    table = element("table", element("thead", header), element("tbody", *rows), class_="replies")
    note = f"The first replies of {count} of {len(moments)} steps."
    scroll = element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Replies")
    return joined(element("p", note, class_="muted"), scroll)


def _row(sample: Mapping[str, Any]) -> Html:
    reward = sample["reward"]
    cells: Sequence[str] = (
        sample["stage"],
        str(sample["step"]),
        sample["source"],
        sample["reasoning"],
        sample["reply"],
        sample["reference_reply"] or sample["answer"] or "",
        "no verdict" if reward is None else format_number(reward),
        ", ".join(f"{name} {format_number(value)}" for name, value in sample["parts"].items()),
    )
    return element("tr", *(element("td", cell) for cell in cells))
