"""What a judge is asked: a template that the user can replace, filled with a dialogue, two replies and the criteria."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from stepaudio_jax.data import Criterion
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.judge.verdict import comparisons
from stepaudio_jax.text import Message, TextPart

# A code that occurs nowhere in the material a judge is shown, and what of the material could be quoted as a verdict.

MIN_FENCE_DIGITS = 4
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


def make_fence(material: Sequence[str]) -> str:
    """Returns hexadecimal digits of a hash of the material that occur nowhere in it, whatever it holds.

    The same material always gives the same digits, so a question that is asked again is the same
    question. Who writes a part of the material cannot write the digits into it: they depend on that
    part. Spelling them in capitals, in full-width letters or with something in between does not
    make them another code. After each hit the hash is made anew and one digit longer.
    """
    haystack = _alphanumeric("".join(material))
    encoded = json.dumps(list(material))  # ASCII, also where a text has half a surrogate pair
    for attempt in itertools.count():
        digest = hashlib.sha256(f"{attempt} {encoded}".encode()).hexdigest()
        fence = digest[: MIN_FENCE_DIGITS + attempt]
        if fence not in haystack:
            return fence
    raise AssertionError("unreachable: the count has no end")


def comparisons_in_material(material: Iterable[str], comparisons: Iterable[str]) -> frozenset[str]:
    """Returns those comparisons that a judge could quote as a verdict from the material, in whatever spelling."""
    text = _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), "\n".join(material))
    plain = _alphanumeric(text)
    if "comparison" not in plain:
        return frozenset()
    return frozenset(comparison for comparison in comparisons if _alphanumeric(comparison) in plain)


def _alphanumeric(text: str) -> str:
    """Returns the text's letters and digits alone, in lower case and without their compatibility forms (NFKC)."""
    # Character by character: normalizing a long run of combining marks as one takes quadratic time.
    forms = {
        ord(char): unicodedata.normalize("NFKC", char).casefold()
        for char in set(text)
        if not char.isascii()
    }
    return _NOT_ALPHANUMERIC.sub("", text.translate(forms).lower() if forms else text.lower())


_NEEDED = ("dialogue", "reply_a", "reply_b", "criteria")
_OPTIONAL = ("form", "comparisons")
_FENCE = "fence"
_DEFAULT = pathlib.Path(__file__).with_name("judge_prompt.txt")


@dataclasses.dataclass(frozen=True)
class JudgeQuestion:
    """One question to a judge, and what its answer is read with.

    Attributes:
        text: what the judge is asked.
        criteria: number of the rubric's criteria.
        code: that the verdict is asked to carry; None where the template does not ask for it.
        in_material: comparisons that the material itself spells out: a verdict of these that lacks
            the code may be a quotation.
    """

    text: str
    criteria: int = 0
    code: str | None = None
    in_material: frozenset[str] = frozenset()


class JudgePrompt:
    """A judge's template.

    Args:
        path: of a text file with the fields {dialogue}, {reply_a}, {reply_b} and {criteria}, each
            once; {form} and {comparisons} may each occur once, and a judge trained on the template
            needs neither; {fence} stands in every mark: before and behind each reply and behind the
            dialogue, with no other field between. A brace of the text itself is written twice. None
            for the template that comes with the project.
        levels: of the scale that the judge is offered.

    Raises:
        ConfigError: naming the file and the field that is missing, unknown, there twice or without
            its fence.
    """

    def __init__(self, path: str | pathlib.Path | None = None, *, levels: int = 7):
        self._path = _DEFAULT if path is None else pathlib.Path(path)
        self.template = self._path.read_text(encoding="utf-8")
        self.levels = levels
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

    def _check_fields(self, fields: Sequence[str]) -> None:
        others = [name for name in fields if name != _FENCE]
        if len(set(others)) < len(others) or not set(_NEEDED) <= set(others) <= {
            *_NEEDED,
            *_OPTIONAL,
        }:
            present, needed, optional = (
                _listed(names) for names in (fields, (*_NEEDED, _FENCE), _OPTIONAL)
            )
            raise ConfigError(
                f"{self._path}: has the fields {present}; it must have each of {needed}, all but "
                f"{{{_FENCE}}} once, and may have {optional} once"
            )
        pairs = set(itertools.pairwise(fields))
        for name in ("reply_a", "reply_b"):
            if (_FENCE, name) not in pairs or (name, _FENCE) not in pairs:
                raise ConfigError(
                    f"{self._path}: {{{name}}} needs a {{{_FENCE}}} before and behind it, with no other "
                    "field between: without it a reply could write the template's own marks; for example "
                    f"'{{{_FENCE}}} A: {{reply_a}}' on one line, '{{{_FENCE}}} B: {{reply_b}}' on the next "
                    f"and '{{{_FENCE}}}' on the line behind them"
                )
        if ("dialogue", _FENCE) not in pairs:
            raise ConfigError(
                f"{self._path}: {{dialogue}} needs a {{{_FENCE}}} behind it, with no other field "
                "between: without it a turn could write the template's own marks"
            )

    def fill(
        self,
        dialogue: Sequence[Message],
        reply_a: str,
        reply_b: str,
        rubric: Sequence[Criterion] = (),
    ) -> str:
        """Returns the text of the question to the judge (see `question`)."""
        return self.question(dialogue, reply_a, reply_b, rubric).text

    def question(
        self,
        dialogue: Sequence[Message],
        reply_a: str,
        reply_b: str,
        rubric: Sequence[Criterion] = (),
    ) -> JudgeQuestion:
        """Returns the question to the judge. Sound is told by its transcript, where there is one.

        Every turn, every reply and every criterion, the material, stands unaltered behind a mark
        with the fence: digits of a hash of the material that do not occur in it (`make_fence`). So
        nothing in the material can be taken for a mark, whatever it holds.
        """
        spoken = [(label, text) for message in dialogue for label, text in _spoken(message)]
        listed_criteria = [criterion.text for criterion in rubric]
        material = [*itertools.chain.from_iterable(spoken), reply_a, reply_b, *listed_criteria]
        fence = make_fence(material)
        criteria = ""
        if rubric:
            listed = "\n".join(
                f"{fence} {number}. {criterion.text}" for number, criterion in enumerate(rubric, 1)
            )
            heading = (
                "Say besides, of each criterion and for each reply, whether the reply meets it:"
            )
            criteria = f"\n{heading}\n{listed}\n{fence} end\n"
        text = self.template.format(
            fence=fence,
            dialogue="\n".join(f"{fence} {label}: {text}" for label, text in spoken),
            reply_a=reply_a,
            reply_b=reply_b,
            criteria=criteria,
            form=_form(fence, with_criteria=bool(rubric)),
            comparisons=", ".join(f'"{comparison}"' for comparison in self._comparisons),
        )
        if not self._asks_for_code:
            return JudgeQuestion(text, len(rubric))
        return JudgeQuestion(
            text, len(rubric), fence, comparisons_in_material(material, self._comparisons)
        )


def _form(fence: str, *, with_criteria: bool) -> str:
    code = json.dumps(fence)
    if not with_criteria:
        return f'{{"comparison": "..", "code": {code}}}'
    return (
        f'{{"comparison": "..", "criteria": [{{"a": true, "b": false}}, ..], "code": {code}}}, '
        'one entry of "criteria" for each criterion in order,'
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def _spoken(message: Message) -> Iterator[tuple[str, str]]:
    """Yields (who speaks, what is said) of each part of a turn."""
    for part in message.parts:
        if isinstance(part, TextPart):
            yield message.role, part.text
        elif part.transcript:
            yield f"{message.role}, sound", part.transcript
        else:
            yield f"{message.role}, sound without a transcript", ""
