"""What a judge is asked: a template that the user can replace, filled with a dialogue, two replies and the criteria."""

import pathlib
import re
import string
from collections.abc import Sequence

from stepaudio_jax.config import ConfigError
from stepaudio_jax.data import Criterion
from stepaudio_jax.rl.verdict import comparisons
from stepaudio_jax.text import Message, TextPart

_NEEDED = {"dialogue", "reply_a", "reply_b", "criteria"}
_OPTIONAL = {"form", "comparisons"}
_DEFAULT = pathlib.Path(__file__).with_name("judge_prompt.txt")
_SOUND = "[sound{transcript}]"
_MARK = re.compile(r"^(?=[ \t]*===)", re.MULTILINE)


class JudgePrompt:
    """A judge's template.

    Args:
        path: of a text file with the fields {dialogue}, {reply_a}, {reply_b} and {criteria}, each once, and {form} and
            {comparisons} at most once: a judge that was trained knows how to answer. A brace of the text itself is written
            twice. None for the one that comes with the project.
        levels: of the scale that the judge is offered.

    Raises:
        ConfigError: naming the file and the field that is missing, unknown or there twice.
    """

    def __init__(self, path: str | pathlib.Path | None = None, *, levels: int = 7):
        self._path = _DEFAULT if path is None else pathlib.Path(path)
        self.template = self._path.read_text(encoding="utf-8")
        self.levels = levels
        self._comparisons = ", ".join(f'"{text}"' for text in comparisons(levels))
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
        except ValueError as error:
            raise ConfigError(f"{self._path}: {error}; write a brace of the text itself twice") from None
        if len(set(fields)) < len(fields) or not _NEEDED <= set(fields) <= _NEEDED | _OPTIONAL:
            wanted, more, given = (", ".join(f"{{{one}}}" for one in sorted(names)) for names in (_NEEDED, _OPTIONAL, fields))
            raise ConfigError(f"{self._path}: has the fields {given}; it must have each of {wanted} once, and may have {more}")

    def fill(self, dialogue: Sequence[Message], reply_a: str, reply_b: str, rubric: Sequence[Criterion] = ()) -> str:
        """The question to the judge. Sound is told by its transcript, where there is one.

        A line of the material that begins as a mark of the template does (`===`) is set in by a space: no reply can end itself,
        or show another one in its own words.
        """
        criteria, form = "", '{"comparison": ".."}'
        if rubric:
            listed = "\n".join(f"{number}. {_material(criterion.text)}" for number, criterion in enumerate(rubric, 1))
            criteria = f"\nSay besides, of each criterion and for each reply, whether the reply meets it:\n{listed}\n"
            form = '{"comparison": "..", "criteria": [{"a": true, "b": false}, ..]}, one entry for each criterion in order,'
        return self.template.format(
            dialogue="\n".join(f"{message.role}: {_material(_spoken(message))}" for message in dialogue),
            reply_a=_material(reply_a),
            reply_b=_material(reply_b),
            criteria=criteria,
            form=form,
            comparisons=self._comparisons,
        )


def _material(text: str) -> str:
    return _MARK.sub(" ", text)


def _spoken(message: Message) -> str:
    said = []
    for part in message.parts:
        if isinstance(part, TextPart):
            said.append(part.text)
        else:
            said.append(_SOUND.format(transcript=f": {part.transcript}" if part.transcript else ""))
    return " ".join(said)
