"""MMAU: sound, music and speech, four options a question (Sakshi et al. 2024, arXiv 2410.19168).

Test-mini has 1,000 questions with answers. The 9,000 of the test are answered for the leaderboard:
their answers are withheld.
"""

import abc
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.evaluation.benchmark_rows import (
    BenchmarkRow,
    check_has_rows,
    check_unique,
    find_tables,
    read_rows,
)
from stepaudio_jax.evaluation.metrics import Metric
from stepaudio_jax.evaluation.multiple_choice import (
    ChoiceTask,
    chosen_letter,
    is_answer,
    right_letters,
    without_letters,
)
from stepaudio_jax.evaluation.task import Item, OfficialOutcome, ScoredItem, Submission
from stepaudio_jax.evaluation.word_sets import matches_by_words
from stepaudio_jax.storage import PathLike, parse_json
from stepaudio_jax.text.answer_markup import strip_reasoning

_MINI = re.compile(r"mini", re.IGNORECASE)
_GROUPS = {
    "task": ("task",),
    "difficulty": ("difficulty",),
    "category": ("category",),
    "sub-category": ("sub-category", "sub_category", "subcategory"),
}
_ATTRIBUTES = "other_attributes"


class _MmauTask(ChoiceTask):
    """What both parts of MMAU have in common: their files, their prompt, and the scoring rule.

    The files are those of GitHub (a JSON list beside a folder of clips) or of the Hugging Face Hub
    (Parquet tables). In the latter, options carry their letters, `(A) Man`, and the other columns
    are a JSON text; the prompt has each letter once, and the published rule sees the options as
    they are.
    """

    version: ClassVar[str] = "MMAU-v05.15.25"

    def items(self, folder: PathLike) -> list[Item]:
        """Reads the questions of a folder or file; see `Task.items`."""
        items, origins = [], dict[str, str]()
        for row in read_rows(self._tables(folder)):
            data = self._checked_data(row)
            named = BenchmarkRow(data, row.origin, row.folder)
            item_id = named.text("id")
            check_unique(origins, item_id, row.origin)
            clip = row.clip("context", "audio", "audio_id")
            items.append(
                Item(
                    id=item_id,
                    record=self.record(row, item_id, data["question"], data["choices"], clip),
                    data=data,
                    groups=named.groups(_GROUPS),
                    cluster=named.optional_text("audio_id") or item_id,
                )
            )
        check_has_rows(items, folder)
        return items

    def official(self, data: Mapping[str, Any], output: str | None) -> OfficialOutcome | None:
        """Scores a reply as MMAU's `evaluation.py` does, by sets of words.

        A row without a prediction leaves the denominator; None where the answer is withheld.
        """
        answer = self.answer(data)
        if answer is None:
            return None
        if output is None:
            return "dropped"
        choices = [choice or "" for choice in self.choices(data)]
        return "correct" if matches_by_words(output, answer, choices) else "wrong"

    def _checked_data(self, row: BenchmarkRow) -> dict[str, Any]:
        """Returns a row without its sound, as `score` knows it, once it can be asked and scored."""
        data = row.without_sound("context", "audio", "instruction", _ATTRIBUTES)
        attributes = row.value.get(_ATTRIBUTES)
        if isinstance(attributes, str):
            attributes = parse_json(attributes)
        if attributes is not None:
            if not isinstance(attributes, Mapping):
                raise row.error(
                    f"{_ATTRIBUTES!r} must be an object written as JSON, got"
                    f" {format_json(row.value[_ATTRIBUTES])}"
                )
            data = {**attributes, **data}
        data["question"] = row.text("question", "instruction")
        with row.error_context():
            data["choices"] = choices = list(self.choices(data))
            answer = self.answer(data)
            if answer is not None:
                right_letters(answer, choices)
        if without_letters(choices) != choices:
            data["form"] = "hf_parquet"
        self._check_part(row, data, answer)
        return data

    @abc.abstractmethod
    def _tables(self, folder: PathLike) -> list[str]: ...

    @abc.abstractmethod
    def _check_part(self, row: BenchmarkRow, data: Mapping[str, Any], answer: str | None) -> None:
        """Checks that a row belongs to this part of MMAU."""


class MmauMini(_MmauTask):
    """MMAU test-mini: the published rule, and option letters and texts read strictly."""

    name: ClassVar[str] = "mmau_mini"
    benchmark: ClassVar[str] = "MMAU"
    title: ClassVar[str] = "MMAU (test-mini)"
    table_column: ClassVar[str | None] = "MMAU"
    notes: ClassVar[Sequence[str]] = (
        *ChoiceTask.notes,
        "Which scorer gave the paper's figure is not published.",
    )

    def _tables(self, folder: PathLike) -> list[str]:
        tables = find_tables(
            folder,
            names=("mmau*mini*.json*", "*mini*.json*", "*.json*"),
            what="mmau-test-mini.json and its clips, or the Parquet files of MMAU-test-mini",
        )
        return [path for path in tables if _is_mini(path, folder)] or tables

    def _check_part(self, row: BenchmarkRow, data: Mapping[str, Any], answer: str | None) -> None:
        if answer is None:
            raise row.error(
                "has no answer, as the rows of MMAU's test; name that the task 'mmau', which is"
                " answered and not scored, or give the files of test-mini"
            )


class Mmau(_MmauTask):
    """MMAU test: answered for the leaderboard, which alone has the answers."""

    name: ClassVar[str] = "mmau"
    title: ClassVar[str] = "MMAU (test)"
    headline = None

    def answer(self, data: Mapping[str, Any]) -> str | None:
        """Returns the right option, where a row has it; what is none of the options stands for it.

        See `ChoiceTask.answer`.
        """
        answer = super().answer(data)
        is_option = answer is not None and is_answer(answer, self.choices(data))
        return answer if is_option else None

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns nothing: nobody but the leaderboard knows what is right."""
        del items
        return []

    def submission(self, replies: Sequence[tuple[Item, str | None]]) -> Submission | None:
        """Returns the rows of the test with the predictions, as the leaderboard reads them.

        The published rule compares words and never reads letters, so a prediction is the text of
        the option that the reply chooses (see `text.read_choice`), or the reply as it is where none
        is clear. It stands under the key that the README names, and the one that the program reads.
        A question without a reply has neither key.
        """
        rows = []
        for item, output in replies:
            predicted = {} if output is None else self._prediction(item, output)
            rows.append({**item.data, **predicted})
        return Submission("mmau_test_predictions.json", rows)

    def _prediction(self, item: Item, output: str) -> dict[str, str]:
        choices = self.choices(item.data)
        letter = chosen_letter(output, choices, item.data["question"])
        chosen = None if letter is None else choices[ord(letter) - ord("A")]
        text = chosen or strip_reasoning(output) or ""
        return dict.fromkeys(("model_output", "model_prediction"), text.strip())

    def _tables(self, folder: PathLike) -> list[str]:
        tables = find_tables(
            folder,
            names=("mmau-test.json*", "mmau*test*.json*", "*.json*"),
            what="mmau-test.json and its clips, or the Parquet files of MMAU-test",
        )
        return [path for path in tables if not _is_mini(path, folder)] or tables

    def _check_part(self, row: BenchmarkRow, data: Mapping[str, Any], answer: str | None) -> None:
        split = data.get("split")
        if isinstance(split, str) and _MINI.search(split):
            raise row.error(f"is of the split {split!r}; name these files the task 'mmau_mini'")


def _is_mini(path: str, folder: PathLike) -> bool:
    """Returns whether the name of a table, below the folder that the user names, says mini."""
    return _MINI.search(path.removeprefix(os.fspath(folder))) is not None
