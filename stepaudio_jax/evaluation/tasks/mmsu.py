"""MMSU: spoken language understanding, 47 kinds of questions (Wang et al. 2025, arXiv 2506.04779).

Not the spoken MMLU that VoiceBench calls by the same name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import (
    check_has_rows,
    check_unique,
    find_tables,
    read_rows,
)
from stepaudio_jax.evaluation.multiple_choice import (
    Choices,
    ChoiceTask,
    answer_of,
    check_choices,
    right_letters,
)
from stepaudio_jax.evaluation.task import Item, OfficialOutcome
from stepaudio_jax.storage import PathLike

_COLUMNS = ("choice_a", "choice_b", "choice_c", "choice_d")
_LETTERS = "ABCD"
_GROUPS = {
    "category": ("category",),
    "sub-category": ("sub-category", "sub_category"),
    "sub-sub-category": ("sub-sub-category", "sub_sub_category"),
    "linguistics sub-discipline": ("linguistics_sub_discipline",),
    "task": ("task_name",),
}


class Mmsu(ChoiceTask):
    """MMSU: the published rule, and option letters and texts read strictly.

    Items with two options have null in the places of C and D, which are not printed here; the
    official prompt shows them as the word None.
    """

    name: ClassVar[str] = "mmsu"
    version: ClassVar[str] = "ddwang2000/MMSU, rule of 217d1d3"
    title: ClassVar[str] = "MMSU"
    table_column: ClassVar[str | None] = "MMSU"
    notes: ClassVar[Sequence[str]] = (
        *ChoiceTask.notes,
        "The paper's figure of Step-Audio-R1.5, 79.03, is no number of 5,000 items: some left the"
        " denominator.",
    )

    def items(self, folder: PathLike) -> list[Item]:
        """Reads the questions of a folder or file; see `Task.items`."""
        tables = find_tables(folder, what="the Parquet files of MMSU")
        items, origins = [], dict[str, str]()
        for row in read_rows(tables):
            item_id, question = row.text("id"), row.text("question")
            check_unique(origins, item_id, row.origin)
            data = row.without_sound("audio")
            with row.error_context():
                choices, answer = self.choices(data), self.answer(data)
                if answer is None:
                    raise DataError("has no answer ('answer_gt' or 'answer')")
                right_letters(answer, choices)
            record = self.record(row, item_id, question, choices, row.clip("audio"))
            items.append(Item(item_id, record, data, row.groups(_GROUPS)))
        check_has_rows(items, folder)
        return items

    def choices(self, data: Mapping[str, Any]) -> Choices:
        """Returns the four options of a row, null where it has fewer; see `ChoiceTask.choices`.

        A list of `choices`, as outputs from elsewhere have it, is filled up with null.
        """
        if not any(column in data for column in _COLUMNS):
            choices = list(super().choices(data))
        else:
            choices = [data.get(column) for column in _COLUMNS]
            for column, choice in zip(_COLUMNS, choices, strict=True):
                if choice is not None and not isinstance(choice, str):
                    raise DataError(f"{column!r} must be a text, got {format_json(choice)}")
        if len(choices) > len(_COLUMNS):
            raise DataError(f"has {len(choices)} options; MMSU's rule knows {len(_COLUMNS)}")
        return check_choices([*choices, *[None] * (len(_COLUMNS) - len(choices))])

    def answer(self, data: Mapping[str, Any]) -> str | None:
        """Returns the right option: `answer_gt`, its text; else `answer`, also as a letter."""
        return answer_of(data, "answer_gt") or answer_of(data)

    def official(self, data: Mapping[str, Any], output: str | None) -> OfficialOutcome | None:
        """Scores a reply as MMSU's `mmsu_evaluation.py` does.

        White space at both ends and all line ends are removed. Then the first character is the
        answer if it is A, B, C or D, or else the last but one; where neither is, the reply leaves
        the denominator. An empty one, and the word None, are wrong. So "Answer: C" is A, and
        "The answer is D" is dropped.
        """
        answer = self.answer(data)
        if answer is None:
            return None
        choices = self.choices(data)
        if output is None:
            return "dropped"
        prediction = output.strip().replace("\n", "")
        if prediction in ("", "None"):
            return "wrong"
        letter = prediction[0]
        if letter not in _LETTERS:
            letter = prediction[-2] if len(prediction) > 1 else ""
        if not letter or letter not in _LETTERS:
            return "dropped"
        return (
            "correct" if choices[_LETTERS.index(letter)] == _text_of(answer, choices) else "wrong"
        )


def _text_of(answer: str, choices: Choices) -> str | None:
    """Returns the right option's text; re-uploads have its letter as the answer."""
    if answer in choices or answer.strip().upper() not in tuple(_LETTERS):
        return answer
    return choices[_LETTERS.index(min(right_letters(answer, choices)))]
