"""Builds HTML and SVG elements that escape their content."""

import html

_WITHOUT_CONTENT = frozenset({"br", "hr", "img", "meta"})
# Characters that HTML forbids become their visible pictures (U+2400 and on).
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


class Html(str):
    """Markup, as opposed to text that is still to be escaped."""

    __slots__ = ()


def escaped(text: str) -> Html:
    """Escapes a text for use within an element or within an attribute's quotes."""
    return text if isinstance(text, Html) else Html(html.escape(text.translate(_PICTURES)))


def element(tag: str, /, *children: str | None, **attributes: str | float | bool | None) -> Html:
    """Returns an element of HTML or SVG.

    Args:
        tag: its name.
        children: text, which is escaped, or markup; None adds nothing.
        attributes: `class_` is written `class`, `aria_label` `aria-label`; True has no value, None
            and False leave it out.
    """
    start = "".join(
        f" {_attribute(name, value)}"
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _WITHOUT_CONTENT:
        return Html(f"<{tag}{start}>")
    return Html(f"<{tag}{start}>{joined(*children)}</{tag}>")


def joined(*children: str | None) -> Html:
    """Concatenates children; text among them is escaped."""
    return Html("".join(escaped(child) for child in children if child is not None))


def _attribute(name: str, value: str | float | bool) -> str:
    written = name.removesuffix("_").replace("_", "-")
    return written if value is True else f'{written}="{escaped(str(value))}"'
