"""Strips what only decorates a reply, and unifies characters that read alike."""

import re
import unicodedata

from stepaudio_jax.text.dialogue import THINK_END_TAG, THINK_START_TAG

MAX_BOX_CHARACTERS = 300  # of what is in a box: an answer, and no proof
MAX_CHARACTERS = 8_000  # of a reply that are read
# Compatibility characters that only look different (full-width B, mathematical bold B). A
# superscript or a fraction means something else than its plain characters: 10² is not 102.
_LOOKALIKES = (
    "<wide>",
    "<narrow>",
    "<font>",
    "<noBreak>",
    "<compat>",
    "<circle>",
    "<square>",
    "<small>",
    "<vertical>",
)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")
_WRITTEN_AS_ASCII = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′＇´", "'"),
        **dict.fromkeys("“”„‟″«»「」『』《》", '"'),
        **dict.fromkeys("‐‑‒–—―−﹣", "-"),
        "⁄": "/",
        "【": "[",
        "】": "]",
    }
)
# Around words only: 10**6 and snake_case are none. Chinese words have emphasis right beside them.
_EMPHASIS = re.compile(
    r"(?<![0-9A-Za-zÀ-ɏ*_`])[*_`]+(?=[^\s*_`])|(?<=[^\s*_`])[*_`]+(?![0-9A-Za-zÀ-ɏ*_`])"
)
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]{0,80})?/?>")
_LETTER_IN_ANGLES = re.compile(
    r"<([A-Z])>(?!.{0,200}</\1>)"
)  # <B> alone; with </B> it is bold type
_STRUCK_OUT = re.compile(r"~~[^~\n]{0,200}~~|<(s|del|strike)>[^<]{0,200}</\1>")
_LATEX_STYLE = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|operatorname)\s*\{([^{}]*)\}"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ANY_WORD = re.compile(r"[^\W_]+")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MARKED = re.compile(r"<answer>(.{0,300}?)</answer>", re.DOTALL | re.IGNORECASE)


def unify_characters(text: str) -> str:
    """Returns a text in which characters that read alike are the same character.

    Composed characters (Unicode NFC), ordinary width and font (`Ｂ`, `７`, `𝐁` are B, 7, B), ASCII
    quotes and hyphens (the Unicode minus is a hyphen), nothing invisible. Superscripts and
    fractions stay what they are.
    """
    if not text.isascii():
        plain = (
            unicodedata.normalize("NFKC", char)
            if unicodedata.decomposition(char).startswith(_LOOKALIKES)
            else char
            for char in unicodedata.normalize("NFC", text)
        )
        text = unicodedata.normalize("NFC", _INVISIBLE.sub("", "".join(plain)))
    return text.translate(_WRITTEN_AS_ASCII)


def normalize_answer(text: str) -> str:
    """Returns a text for comparison.

    Unified, in lower case, with single spaces, without emphasis and surrounding punctuation.
    """
    text = _EMPHASIS.sub("", unify_characters(text)).casefold()
    start, end = 0, len(text)
    while start < end and _is_decoration(text[start]):
        start += 1
    while end > start and _is_decoration(text[end - 1]):
        end -= 1
    # A minus, a currency or a decimal point in front belongs to what it stands before; a percent
    # sign to what precedes it.
    if start < end and text[start].isdigit():
        before = text[max(0, start - 2) : start]
        start -= len(before) - len(before.rstrip("-."))
    return " ".join(text[start:end].split())


def strip_reasoning(reply: str) -> str | None:
    """Returns a reply without its reasoning; None if the reasoning has no end, or nothing follows.

    Of a reply of more than `MAX_CHARACTERS` it is the beginning and the end, so that none takes
    long to read.
    """
    after = reply.rpartition(THINK_END_TAG)[2]
    if THINK_START_TAG in after or not after.strip():
        return None
    if len(after) > MAX_CHARACTERS:
        after = f"{after[: MAX_CHARACTERS // 2]}\n\n{after[-MAX_CHARACTERS // 2 :]}"
    return after


def strip_question(text: str, question: str) -> str:
    """Returns a reply without the question that it repeats first, as "Question: .." too.

    Args:
        text: of the reply, without its reasoning.
        question: as the model was asked; white space, punctuation and case do not matter. "" for
            none.
    """
    asked = _words(question)
    if not asked:
        return text
    said = list(_ANY_WORD.finditer(text, 0, 2 * len(question) + MAX_BOX_CHARACTERS))
    first = 1 if said and said[0][0].casefold() in ("question", "q", "问题") else 0
    repeated = [match[0].casefold() for match in said[first : first + len(asked)]]
    return text[said[first + len(asked) - 1].end() :] if repeated == asked else text


def boxed_answers(text: str) -> list[str]:
    r"""Returns the contents of every `\boxed{..}` and `<answer>..</answer>`, in order."""
    contents = [(match.start(), match[1]) for match in _MARKED.finditer(text)]
    for match in _BOX.finditer(text):
        depth, end = 1, match.end()
        while end < min(len(text), match.end() + MAX_BOX_CHARACTERS) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if not depth:
            contents.append((match.start(), text[match.end() : end - 1]))
    return [content for _, content in sorted(contents)]


def strip_markup(text: str) -> str:
    """Returns a unified text without Markdown, LaTeX and HTML markup and struck-out words."""
    text = unify_characters(_STRUCK_OUT.sub(" ", text))
    text = _LETTER_IN_ANGLES.sub(r"(\1)", text)
    text = _LATEX_FRACTION.sub(r" \1/\2 ", text)
    text = _LATEX_STYLE.sub(r"\1", text)
    text = _BOX.sub("{", text)
    text = re.sub(
        r"\\[()\[\]]|\$(?!\s?\d)|^[ \t]*(?:#+|>+|[*•·▪●-])[ \t]+|[{}]|`",
        " ",
        text,
        flags=re.MULTILINE,
    )
    return _EMPHASIS.sub("", _TAG.sub(" ", text))


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _ANY_WORD.findall(text)]


def _is_decoration(char: str) -> bool:
    return (
        char.isspace()
        or (unicodedata.category(char)[0] in "PS" and char not in "%°$€£¥+#&")
        or char == "\ufffd"
    )
