"""The judge's question: a template filled with a dialogue, two replies and a rubric's criteria.

The material (turns, replies, criteria) may try to pass for a part of the template. So each piece
of it stands behind a mark with a fence: digits of a hash that occur nowhere in the material.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from stepaudio_jax.config import RubricUse
from stepaudio_jax.data import Criterion
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.judge.query import Query
from stepaudio_jax.judge.verdict import comparisons
from stepaudio_jax.storage import PathLike, read_text, to_path
from stepaudio_jax.text import Message, TextPart

MIN_FENCE_DIGITS = 4
_DEFAULT_TEMPLATE = pathlib.Path(__file__).with_name("judge_prompt.txt")
_FENCE = "fence"
_REQUIRED_FIELDS = ("dialogue", "reply_a", "reply_b", "criteria")
_OPTIONAL_FIELDS = ("form", "comparisons")
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclasses.dataclass(frozen=True)
class JudgeQuestion:
    """A question to the judge, and what the parser of its answer needs to know.

    Attributes:
        text: sent to the judge.
        criteria: number of criteria of which the answer says whether each reply meets them.
        code: code that the verdict must carry; None where the template asks for none.
        in_material: comparisons that the material spells out: a verdict with one of these and no
            code may be a quotation.
    """

    text: str
    criteria: int = 0
    code: str | None = None
    in_material: frozenset[str] = frozenset()

    @property
    def query(self) -> Query:
        """Returns what is sent to the judge."""
        return Query(self.text)


class JudgePrompt:
    """The template of a judge's questions.

    Args:
        path: of a text file with the fields {dialogue}, {reply_a}, {reply_b} and {criteria}, each
            once; {form} and {comparisons} may occur once (a judge trained on the template needs
            neither); {fence} stands in every mark: before and after each reply and after the
            dialogue, with no other field between. Braces of the text itself are doubled. None for
            the project's template.
        levels: levels of the scale that the judge may use.
        rubric: what the judge is asked with a rubric: of each criterion whether a reply meets it,
            one comparison in the light of all criteria, or both.

    Raises:
        ConfigError: a field is missing, unknown, repeated or lacks its fence; names the file.
    """

    def __init__(
        self, path: PathLike | None = None, *, levels: int = 7, rubric: RubricUse = "criteria"
    ):
        self._path = _DEFAULT_TEMPLATE if path is None else to_path(path)
        self.template = read_text(self._path)
        self.levels = levels
        self.rubric: RubricUse = rubric
        self._comparisons = tuple(comparisons(levels))
        try:
            fields = [
                name
                for _, name, _, _ in string.Formatter().parse(self.template)
                if name is not None
            ]
        except ValueError as error:
            raise ConfigError(
                f"{self._path}: {error}; write a brace of the text itself twice"
            ) from None
        self._check_fields(fields)
        self._asks_for_code = "form" in fields

    def question(
        self,
        dialogue: Sequence[Message],
        reply_a: str,
        reply_b: str,
        rubric: Sequence[Criterion] = (),
    ) -> JudgeQuestion:
        """Returns the question about two replies; audio is represented by its transcript, if any.

        The material is inserted unaltered, each piece behind a mark with the fence.
        """
        turns = [turn for message in dialogue for turn in _labelled_parts(message)]
        criterion_texts = [criterion.text for criterion in rubric]
        material = [*itertools.chain.from_iterable(turns), reply_a, reply_b, *criterion_texts]
        fence = make_fence(material)
        num_criteria = 0 if self.rubric == "ordinal" else len(rubric)
        text = self.template.format(
            fence=fence,
            dialogue="\n".join(f"{fence} {label}: {text}" for label, text in turns),
            reply_a=reply_a,
            reply_b=reply_b,
            criteria=_criteria_section(fence, rubric, self.rubric),
            form=_answer_form(fence, with_criteria=num_criteria > 0),
            comparisons=", ".join(f'"{comparison}"' for comparison in self._comparisons),
        )
        if not self._asks_for_code:
            return JudgeQuestion(text, num_criteria)
        in_material = comparisons_in_material(material, self._comparisons)
        return JudgeQuestion(text, num_criteria, fence, in_material)

    def _check_fields(self, fields: Sequence[str]) -> None:
        others = [name for name in fields if name != _FENCE]
        allowed = {*_REQUIRED_FIELDS, *_OPTIONAL_FIELDS}
        if len(set(others)) < len(others) or not set(_REQUIRED_FIELDS) <= set(others) <= allowed:
            raise ConfigError(
                f"{self._path}: has the fields {_in_braces(fields)}; it must have each of "
                f"{_in_braces((*_REQUIRED_FIELDS, _FENCE))}, all but {{{_FENCE}}} once, and may "
                f"have {_in_braces(_OPTIONAL_FIELDS)} once"
            )
        neighbours = set(itertools.pairwise(fields))
        for name in ("reply_a", "reply_b"):
            if not {(_FENCE, name), (name, _FENCE)} <= neighbours:
                raise ConfigError(
                    f"{self._path}: {{{name}}} needs a {{{_FENCE}}} before and after it, with no "
                    "other field between: without it a reply could write the template's own "
                    f"marks; for example '{{{_FENCE}}} A: {{reply_a}}' on one line, "
                    f"'{{{_FENCE}}} B: {{reply_b}}' on the next and '{{{_FENCE}}}' on the line "
                    "after them"
                )
        if ("dialogue", _FENCE) not in neighbours:
            raise ConfigError(
                f"{self._path}: {{dialogue}} needs a {{{_FENCE}}} after it, with no other field "
                "between: without it a turn could write the template's own marks"
            )


def make_fence(material: Sequence[str]) -> str:
    """Returns hexadecimal digits of a hash of the material that occur nowhere in it.

    The same material always gives the same digits, so a repeated question is the same text. The
    author of a part of the material cannot write the digits into it, since they depend on that
    part. Digits spelled in capitals, in full-width letters or with other characters between count
    as occurrences. After each occurrence the hash is computed again, one digit longer.
    """
    haystack = _alphanumeric("".join(material))
    encoded = json.dumps(list(material))  # ASCII, even where a text has half a surrogate pair
    for attempt in itertools.count():
        digest = hashlib.sha256(f"{attempt} {encoded}".encode()).hexdigest()
        fence = digest[: MIN_FENCE_DIGITS + attempt]
        if fence not in haystack:
            return fence
    raise AssertionError("unreachable: the count has no end")


def comparisons_in_material(material: Iterable[str], comparisons: Iterable[str]) -> frozenset[str]:
    """Returns the comparisons that a judge could quote from the material, however spelled."""
    text = _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), "\n".join(material))
    plain = _alphanumeric(text)
    if "comparison" not in plain:
        return frozenset()
    return frozenset(comparison for comparison in comparisons if _alphanumeric(comparison) in plain)


def _alphanumeric(text: str) -> str:
    """Returns a text's letters and digits, in lower case and normalized (NFKC)."""
    # Character by character: a long run of combining marks takes quadratic time to normalize.
    forms = {
        ord(char): unicodedata.normalize("NFKC", char).casefold()
        for char in set(text)
        if not char.isascii()
    }
    return _NOT_ALPHANUMERIC.sub("", text.translate(forms).lower() if forms else text.lower())


def _labelled_parts(message: Message) -> Iterator[tuple[str, str]]:
    """Yields (label of the speaker, text) for each part of a turn."""
    for part in message.parts:
        if isinstance(part, TextPart):
            yield message.role, part.text
        elif part.transcript:
            yield f"{message.role}, sound", part.transcript
        else:
            yield f"{message.role}, sound without a transcript", ""


# The texts below are part of what trained judges have learned: they must not change.


def _criteria_section(fence: str, rubric: Sequence[Criterion], use: RubricUse) -> str:
    if not rubric:
        return ""
    asked = "Say besides, of each criterion and for each reply, whether the reply meets it:"
    weighed = (
        "Compare the replies by these criteria; the number in brackets is how much a criterion "
        "counts, below 0 where a reply should not meet it:"
    )
    with_weights = use != "criteria"
    lines = (
        f"{fence} {number}. {f'({criterion.weight:+g}) ' if with_weights else ''}{criterion.text}"
        for number, criterion in enumerate(rubric, 1)
    )
    headings = {"criteria": asked, "ordinal": weighed, "both": f"{weighed}\n{asked}"}
    listed = "\n".join(lines)
    return f"\n{headings[use]}\n{listed}\n{fence} end\n"


def _answer_form(fence: str, *, with_criteria: bool) -> str:
    code = json.dumps(fence)
    if not with_criteria:
        return f'{{"comparison": "..", "code": {code}}}'
    return (
        f'{{"comparison": "..", "criteria": [{{"a": true, "b": false}}, ..], "code": {code}}}, '
        'one entry of "criteria" for each criterion in order,'
    )


def _in_braces(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
