"""Assembles the pages of reports: one HTML file that needs neither network nor scripts."""

import re
import string
from collections.abc import Iterable, Mapping
from importlib import resources

from stepaudio_jax.reports.html import Html, element, escaped, joined
from stepaudio_jax.storage import Path, open_read

_PAGE_PREFIX = b"<!doctype html>"
MAX_CHARS = 4_000  # of a text on a page that must stay small
_MAX_UNFOLDED_CHARS = 400
_MAX_SUMMARY_CHARS = 80


def render_page(title: str, subtitle: str, sections: Mapping[str, Html | None]) -> str:
    """Returns the page: its head with links to the sections, and the sections that are not None."""
    present = {name: content for name, content in sections.items() if content is not None}
    template = (
        resources.files("stepaudio_jax.reports").joinpath("report.html").read_text(encoding="utf-8")
    )
    return string.Template(template).substitute(
        title=escaped(title),
        subtitle=escaped(subtitle),
        navigation=joined(*(element("a", name, href=f"#{_anchor(name)}") for name in present)),
        sections=joined(*(_section(name, content) for name, content in present.items())),
    )


def is_page(path: Path) -> bool:
    """Returns whether a file is an HTML page, which a newer report may replace."""
    with open_read(path) as file:
        return file.read(len(_PAGE_PREFIX)).lower() == _PAGE_PREFIX


def written(text: str, *, max_chars: int | None = None) -> Html:
    """Returns a text unchanged, marked off from the page's own words; a long one is folded.

    Args:
        text: of a user or a model.
        max_chars: how much of it is shown; None for all. What is left out is counted.
    """
    if not text.strip():
        return element("span", "(empty)", class_="muted")
    if max_chars is not None and len(text) > max_chars:
        rest = element("span", f" .. {len(text) - max_chars} characters more", class_="muted")
        content = joined(element("span", text[:max_chars], class_="written", dir="auto"), rest)
    else:
        content = element("span", text, class_="written", dir="auto")
    if len(text) <= _MAX_UNFOLDED_CHARS:
        return content
    return folded(f"{text[:_MAX_SUMMARY_CHARS]} .. ({len(text)} characters)", content)


def folded(summary: str, *content: str | None) -> Html:
    """Returns content that a click unfolds."""
    return element("details", element("summary", summary), *content)


def scrolling(content: Html, label: str) -> Html:
    """Returns a wide table in a box that scrolls, also by the keyboard."""
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def table(
    header: Iterable[str | Html],
    rows: Iterable[Iterable[str | Html | None]],
    label: str,
    *,
    words: int = 1,
    class_: str | None = None,
) -> Html:
    """Returns a table in a scrolling box; the first cell of each row is its heading.

    Args:
        header: cells of text or markup.
        rows: as many cells each.
        label: what the table shows, for screen readers.
        words: the number of columns, from the first, that hold words; the others hold numbers.
        class_: of the table, beside "listed".
    """

    def word(column: int) -> str | None:
        return "word" if 0 < column < words else None

    head = element(
        "tr",
        *(
            element("th", cell, scope="col", class_=word(column))
            for column, cell in enumerate(header)
        ),
    )
    body = [
        element(
            "tr",
            *(
                element("th", cell, scope="row")
                if column == 0
                else element("td", cell, class_=word(column))
                for column, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    content = element(
        "table",
        element("thead", head),
        element("tbody", *body),
        class_=" ".join(filter(None, ("listed", class_))),
    )
    return scrolling(content, label)


def muted(*texts: str) -> Html:
    """Returns a paragraph of smaller, paler text for each."""
    return joined(*(element("p", text, class_="muted") for text in texts))


def facts(values: Mapping[str, str | Html]) -> Html:
    """Returns a list of names and values."""
    items = [
        item
        for name, value in values.items()
        for item in (element("dt", name), element("dd", value))
    ]
    return element("dl", *items, class_="facts")


def _section(name: str, content: Html) -> Html:
    heading = f"{_anchor(name)}-heading"
    return element(
        "section",
        element("h2", name, id=heading),
        content,
        id=_anchor(name),
        aria_labelledby=heading,
    )


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
