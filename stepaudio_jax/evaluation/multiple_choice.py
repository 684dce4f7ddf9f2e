"""Questions with lettered options: how they are asked, and how a reply to them is read."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data import Record
from stepaudio_jax.data.sources.json_values import format_json, parse_literal
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import BenchmarkRow
from stepaudio_jax.evaluation.prompt_files import PromptFile, PromptSet
from stepaudio_jax.evaluation.task import Strict, Task
from stepaudio_jax.generation import Sampling
from stepaudio_jax.storage import PathLike
from stepaudio_jax.text import AudioPart, Message, TextPart
from stepaudio_jax.text.answer_markup import strip_question, strip_reasoning
from stepaudio_jax.text.answers import normalize_answer, read_choice

MAX_CHOICES = len(string.ascii_uppercase)
PROMPT_NAME = "multiple_choice.txt"
_LETTER_BEFORE = re.compile(r"\s*\(([A-Z])\)\s*")

Choices = Sequence[str | None]


class ChoiceTask(Task):
    """A task of questions with lettered options, asked as in StepFun's protocol.

    The text comes first and then the clip: the question, an instruction to choose, and a line for
    each option, in the order of StepFun's prompt and in words of this project. A derived class says
    where a row has its choices and its answer.

    StepFun stops at token 151665, which is the end of the model's own turn (`<|EOT|>`): generation
    stops there for every model, whatever the number of this token.
    """

    notes: ClassVar[Sequence[str]] = (
        "The prompt has the form of StepFun's in words of this project, unless prompts are given.",
    )
    sampling: ClassVar[Sampling] = Sampling(temperature=0.7, top_p=1.0, max_new_tokens=32_000)

    def __init__(self) -> None:
        self._prompts = PromptSet(
            [PromptFile(PROMPT_NAME, PROMPT_NAME, ("{question}", "{options}"))], self.title
        )

    def choices(self, data: Mapping[str, Any]) -> Choices:
        """Returns the options of a row, in the order of their letters, as the benchmark ships them.

        Raises:
            DataError: the row has none.
        """
        return choices_of(data)

    def answer(self, data: Mapping[str, Any]) -> str | None:
        """Returns the right option of a row, its text or its letter; None where it is withheld.

        Raises:
            DataError: it is no text.
        """
        return answer_of(data)

    def strict(self, data: Mapping[str, Any], output: str | None) -> Strict | None:
        """Reads which option a reply chooses, by its letter or its text; see `text.read_choice`."""
        answer = self.answer(data)
        if answer is None:
            return None
        question = data.get("question")
        return strict_choice(
            output,
            self.choices(data),
            answer,
            question=question if isinstance(question, str) else "",
        )

    def use_prompts(self, folder: PathLike | None) -> None:
        """Reads the prompt from `multiple_choice.txt` of a folder, or from that file.

        Raises:
            DataError: there is no such file, or it lacks `{question}` or `{options}`.
        """
        self._prompts.use(folder)

    @property
    def prompt_sources(self) -> Mapping[str, str]:
        """Returns the text of the prompt."""
        return self._prompts.sources

    def record(
        self, row: BenchmarkRow, item_id: str, question: str, choices: Choices, clip: AudioPart
    ) -> Record:
        """Returns the prompt of an item: the text, and then the clip."""
        options = option_lines(without_letters(choices))
        text = self._prompts[PROMPT_NAME].fill({"{question}": question, "{options}": options})
        message = Message("user", (TextPart(text), clip))
        return Record(id=item_id, messages=(message,), source=self.name, origin=row.origin)


def letter_of(index: int) -> str:
    """Returns the letter of the option at an index: 0 is A."""
    return string.ascii_uppercase[index]


def option_lines(choices: Choices) -> str:
    """Returns a line `A. TEXT` for each option, each with its line end.

    Options that are null or blank have no line, and keep their letter.
    """
    return "".join(
        f"{letter_of(index)}. {choice.strip()}\n"
        for index, choice in enumerate(choices)
        if choice and choice.strip()
    )


def without_letters(choices: Choices) -> Choices:
    """Returns options without the letters that some benchmarks ship in them: `(A) Man` is `Man`.

    Nothing changes unless every option begins with its own letter.
    """
    matches = [_LETTER_BEFORE.match(choice or "") for choice in choices]
    if any(
        match is None or match[1] != letter_of(index)
        for index, match in enumerate(matches)
        if (choices[index] or "").strip()
    ):
        return choices
    return [
        choice[match.end() :] if choice and match else choice
        for choice, match in zip(choices, matches, strict=True)
    ]


def strict_choice(
    output: str | None, choices: Choices, answer: str, *, question: str = ""
) -> Strict:
    """Returns what a reply chooses, and whether that is right; see `text.read_choice`.

    Args:
        output: the model's text, with its reasoning; None for none.
        choices: as the benchmark ships them.
        answer: the right option's text, or its letter.
        question: which a reply may repeat before it answers.

    Raises:
        DataError: the answer is none of the choices.
    """
    right = right_letters(answer, choices)
    letter = chosen_letter(output or "", choices, question)
    if letter is None:
        return Strict("unparsed")
    return Strict("correct" if letter in right else "wrong", letter)


def chosen_letter(output: str, choices: Choices, question: str = "") -> str | None:
    """Returns the letter that a reply chooses after the question, if it repeats that; or None."""
    reply = strip_reasoning(output)
    return None if reply is None else read_choice(strip_question(reply, question), choices)


def right_letters(answer: str, choices: Choices) -> frozenset[str]:
    """Returns the letters that are right: several where options have the same text.

    Args:
        answer: the right option's text, as `choices` has it up to what `normalize_answer` ignores;
            or its letter, where no option has that text.
        choices: as the benchmark ships them.

    Raises:
        DataError: the answer is none of the choices.
    """
    letters = _letters_of(answer, choices)
    if not letters:
        raise DataError(
            f"the answer {format_json(answer)} is none of the choices {format_json(list(choices))}"
        )
    return letters


def is_answer(answer: str, choices: Choices) -> bool:
    """Returns whether a text is one of the choices, or the letter of one."""
    return bool(_letters_of(answer, choices))


def choices_of(data: Mapping[str, Any]) -> Choices:
    """Returns the options of a row with a list of `choices`, which may be written as a text.

    Raises:
        DataError: there is no such list, or it has no option or too many.
    """
    value = parse_literal(data.get("choices"))
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(choice is None or isinstance(choice, str) for choice in value)
    ):
        raise DataError(
            f"'choices' must be a list of texts, got {format_json(data.get('choices'))}"
        )
    return check_choices(value)


def check_choices(choices: Choices) -> Choices:
    """Returns the options where there are some that letters can name.

    Raises:
        DataError: there is none, or more than there are letters.
    """
    if not any(choice and choice.strip() for choice in choices):
        raise DataError("has no option to choose from")
    if len(choices) > MAX_CHOICES:
        raise DataError(f"has {len(choices)} options; there are letters for {MAX_CHOICES}")
    return choices


def answer_of(data: Mapping[str, Any], key: str = "answer") -> str | None:
    """Returns the answer of a row; None where it is withheld: missing, null or blank.

    Raises:
        DataError: it is no text.
    """
    answer = data.get(key)
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        return None
    if not isinstance(answer, str):
        raise DataError(f"{key!r} must be a text, got {format_json(answer)}")
    return answer


def _letters_of(answer: str, choices: Choices) -> frozenset[str]:
    texts = [normalize_answer(choice or "") for choice in choices]
    wanted = normalize_answer(answer)
    letters = [
        letter_of(index)
        for index, (choice, text) in enumerate(zip(choices, texts, strict=True))
        if choice and (choice == answer or (text and text == wanted))
    ]
    if not letters and len(wanted) == 1 and wanted.isascii() and wanted.isalpha():
        index = ord(wanted) - ord("a")
        if index < len(choices) and (choices[index] or "").strip():
            return _letters_of(str(choices[index]), choices)
    return frozenset(letters)
