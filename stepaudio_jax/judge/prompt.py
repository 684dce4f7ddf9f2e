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
from collections.abc import Callable, Iterable, Iterator, Sequence

from stepaudio_jax.config import JudgeInputs, RubricUse
from stepaudio_jax.data import Criterion
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.judge.pairs import Continuation
from stepaudio_jax.judge.query import Clip, Query
from stepaudio_jax.judge.verdict import comparisons
from stepaudio_jax.storage import PathLike, read_text, to_path
from stepaudio_jax.text import AudioPart, Message, Part, TextPart

MIN_FENCE_DIGITS = 4
_DEFAULT_TEMPLATE = pathlib.Path(__file__).with_name("judge_prompt.txt")
_DEFAULT_DIALOGUE_TEMPLATE = pathlib.Path(__file__).with_name("judge_dialogue_prompt.txt")
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
        clips: (index in the text before which it stands, clip) of each clip whose sound is sent.
        inputs: what stands in the question for the dialogue's clips.
        criteria: number of criteria of which the answer says whether each reply meets them.
        code: code that the verdict must carry; None where the template asks for none.
        in_material: comparisons that the material spells out: a verdict with one of these and no
            code may be a quotation.
    """

    text: str
    criteria: int = 0
    code: str | None = None
    in_material: frozenset[str] = frozenset()
    clips: tuple[tuple[int, AudioPart], ...] = ()
    inputs: JudgeInputs = "transcripts"

    def query(self, read: Callable[[AudioPart], Clip]) -> Query:
        """Returns what is sent to the judge, with the sound of its clips."""
        clips = tuple((index, read(part)) for index, part in self.clips)
        return Query(self.text, clips=clips, inputs=self.inputs)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Returns what is sent to the judge as the parts of a turn."""
        parts: list[Part] = []
        start = 0
        for index, clip in self.clips:
            parts += [TextPart(self.text[start:index]), clip]
            start = index
        parts.append(TextPart(self.text[start:]))
        return tuple(part for part in parts if part != TextPart(""))


class JudgePrompt:
    """The template of a judge's questions.

    Args:
        path: of a text file with the fields {dialogue}, {reply_a}, {reply_b} and {criteria}, each
            once; {form} and {comparisons} may occur once (a judge trained on the template needs
            neither); {fence} stands in every mark: before and after each reply and after the
            dialogue, with no other field between. Braces of the text itself are doubled. None for
            the project's templates, of which two dialogues have one of their own; a template of the
            user's is for both.
        levels: levels of the scale that the judge may use.
        rubric: what the judge is asked with a rubric: of each criterion whether a reply meets it,
            one comparison in the light of all criteria, or both.
        inputs: what stands in a question for a clip: its transcript, its sound, or both.

    Raises:
        ConfigError: a field is missing, unknown, repeated or lacks its fence; names the file.
    """

    def __init__(
        self,
        path: PathLike | None = None,
        *,
        levels: int = 7,
        rubric: RubricUse = "criteria",
        inputs: JudgeInputs = "transcripts",
    ):
        self._path = _DEFAULT_TEMPLATE if path is None else to_path(path)
        self.template = read_text(self._path)
        self._dialogue_template = self.template
        if path is None:
            self._dialogue_template = read_text(_DEFAULT_DIALOGUE_TEMPLATE)
        self.levels = levels
        self.rubric: RubricUse = rubric
        self.inputs: JudgeInputs = inputs
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
        reply_a: str | Continuation,
        reply_b: str | Continuation,
        rubric: Sequence[Criterion] = (),
    ) -> JudgeQuestion:
        """Returns the question about two replies, or about two continuations of several turns.

        The material is inserted unaltered, each piece behind a mark with the fence. A continuation
        of one turn is a reply, if the other is one too.
        """
        sides = [_turns(reply) for reply in (reply_a, reply_b)]
        is_of_replies = all(len(turns) == 1 for turns in sides)
        turns = [part for message in dialogue for part in self._labelled_parts(message)]
        turns_of_sides = [
            [part for message in side for part in self._labelled_parts(message)] for side in sides
        ]
        if is_of_replies:  # whose turn it is stands in the template
            turns_of_sides = [[("", side[0].text)] for side in sides]
        criterion_texts = [criterion.text for criterion in rubric]
        material = [
            *_texts(turns),
            *itertools.chain.from_iterable(
                _texts(parts)[1:] if is_of_replies else _texts(parts) for parts in turns_of_sides
            ),
            *criterion_texts,
        ]
        fence = make_fence(material)
        clips: list[AudioPart] = []

        def insert(parts: Sequence[tuple[str, str | AudioPart]]) -> str:
            lines = []
            for label, content in parts:
                if isinstance(content, AudioPart):
                    clips.append(content)
                    content = _clip_mark(fence, len(clips) - 1)
                lines.append(f"{fence} {label}: {content}" if label else content)
            return "\n".join(lines)

        num_criteria = 0 if self.rubric == "ordinal" else len(rubric)
        template = self.template if is_of_replies else self._dialogue_template
        marked = template.format(
            fence=fence,
            dialogue=insert(turns),
            reply_a=insert(turns_of_sides[0]),
            reply_b=insert(turns_of_sides[1]),
            criteria=_criteria_section(fence, rubric, self.rubric),
            form=_answer_form(fence, with_criteria=num_criteria > 0),
            comparisons=", ".join(f'"{comparison}"' for comparison in self._comparisons),
        )
        text, places = self._place_clips(marked, fence, clips)
        question = JudgeQuestion(text, num_criteria, clips=places, inputs=self.inputs)
        if not self._asks_for_code:
            return question
        in_material = comparisons_in_material(material, self._comparisons)
        return dataclasses.replace(question, code=fence, in_material=in_material)

    def _labelled_parts(self, message: Message) -> Iterator[tuple[str, str | AudioPart]]:
        """Yields (label of the speaker, text or clip) for each part of a turn."""
        for part in message.parts:
            if isinstance(part, TextPart):
                yield message.role, part.text
            elif self.inputs == "transcripts":
                known = "sound" if part.transcript else "sound without a transcript"
                yield f"{message.role}, {known}", part.transcript or ""
            else:
                yield f"{message.role}, sound", part
                if self.inputs == "both" and part.transcript:
                    yield f"{message.role}, words of the sound", part.transcript

    def _place_clips(
        self, marked: str, fence: str, clips: Sequence[AudioPart]
    ) -> tuple[str, tuple[tuple[int, AudioPart], ...]]:
        """Returns a question without the marks of clips, and the place of each clip in it."""
        text, places = "", []
        pieces = re.split(_clip_mark(fence, r"(\d+)"), marked) if clips else [marked]
        for piece, number in itertools.zip_longest(pieces[::2], pieces[1::2]):
            text += piece
            if number is not None:
                places.append((len(text), clips[int(number)]))
        if len(places) != len(clips):
            raise ConfigError(
                f"{self._path}: a field of a dialogue with sound must stand without a conversion"
                " or a format, as {dialogue}"
            )
        return text, tuple(places)

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


def _turns(reply: str | Continuation) -> tuple[Message, ...]:
    if isinstance(reply, Continuation):
        return reply.turns
    return (Message("assistant", (TextPart(reply),)),)


def _texts(parts: Iterable[tuple[str, str | AudioPart]]) -> list[str]:
    """Returns the labels and the texts of parts."""
    return [text for part in parts for text in part if isinstance(text, str)]


def _clip_mark(fence: str, number: int | str) -> str:
    """Returns what stands for a clip until its place is known; no material has the fence."""
    return f"\0{fence} clip {number}\0"


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
