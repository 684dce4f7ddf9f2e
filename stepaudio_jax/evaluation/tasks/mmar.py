"""MMAR: reasoning over speech, sound, music and mixtures (Ma et al. 2025, arXiv 2505.13032)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import (
    check_has_rows,
    check_unique,
    find_tables,
    read_rows,
)
from stepaudio_jax.evaluation.multiple_choice import ChoiceTask, right_letters
from stepaudio_jax.evaluation.task import Item, OfficialOutcome
from stepaudio_jax.evaluation.word_sets import matches_by_words
from stepaudio_jax.generation import Sampling
from stepaudio_jax.storage import PathLike

_GROUPS = {
    "modality": ("modality",),
    "category": ("category",),
    "sub-category": ("sub-category", "sub_category", "subcategory"),
}


class Mmar(ChoiceTask):
    """MMAR: the published rule, and option letters and texts read strictly.

    Items of one recording are one cluster: they share speakers and the room, if not the very clip.
    """

    name: ClassVar[str] = "mmar"
    version: ClassVar[str] = "MMAR, rule of 3bce090"
    title: ClassVar[str] = "MMAR"
    sampling: ClassVar[Sampling] = Sampling(
        temperature=0.7, top_p=1.0, repetition_penalty=1.07, max_new_tokens=32_000
    )

    def items(self, folder: PathLike) -> list[Item]:
        """Reads the questions of a folder or file; see `Task.items`."""
        tables = find_tables(
            folder,
            names=("MMAR-meta.jsonl*", "MMAR-meta.json*", "*.json*"),
            what="MMAR-meta.jsonl or MMAR-meta.json, and the folder of clips beside it",
        )
        items, origins = [], dict[str, str]()
        for row in read_rows(tables):
            item_id, question = row.text("id"), row.text("question")
            check_unique(origins, item_id, row.origin)
            data = row.without_sound("audio")
            with row.error_context():
                choices, answer = self.choices(data), self.answer(data)
                if answer is None:
                    raise DataError("has no 'answer'")
                right_letters(answer, choices)
            clip = row.clip("audio_path", "audio")
            items.append(
                Item(
                    id=item_id,
                    record=self.record(row, item_id, question, choices, clip),
                    data={**data, "choices": list(choices)},
                    groups=row.groups(_GROUPS),
                    cluster=row.optional_text("url", "audio_path") or item_id,
                )
            )
        check_has_rows(items, folder)
        return items

    def official(self, data: Mapping[str, Any], output: str | None) -> OfficialOutcome | None:
        """Scores a reply as MMAR's `evaluation.py` does: by MMAU's sets of words.

        A row without a prediction leaves the denominator.
        """
        answer = self.answer(data)
        if answer is None:
            return None
        choices = [choice or "" for choice in self.choices(data)]
        if output is None:
            return "dropped"
        return "correct" if matches_by_words(output, answer, choices) else "wrong"
