"""Step-SPQA (StepEval-Audio-Paralinguistic): spoken questions about how and what is heard."""

import posixpath
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data import Record
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import BenchmarkRow
from stepaudio_jax.evaluation.judge_replies import remove_reasoning
from stepaudio_jax.evaluation.judged_task import JudgedTask, row_id
from stepaudio_jax.evaluation.metrics import (
    Metric,
    Scoring,
    default_metrics,
    mean_metric,
    scorings_of,
)
from stepaudio_jax.evaluation.prompt_files import PromptFile, PromptSet
from stepaudio_jax.evaluation.task import Item, Judged, JudgeUse, ScoredItem, Strict
from stepaudio_jax.evaluation.voice_rules import agrees
from stepaudio_jax.judge.query import Query
from stepaudio_jax.storage import PathLike, format_path, read_json, to_path
from stepaudio_jax.text import Message, TextPart
from stepaudio_jax.text.answer_markup import strip_markup, strip_reasoning

TASK_TYPES = (
    *("age", "emotions", "event", "gender", "pitch", "rhythm", "scene", "speed", "vocalsound"),
    *("voice_styles", "voice_tone"),
)
_DEFAULT = "default"
_MODEL = "model_user_prompt_template.txt"
_JUDGE_FOLDER, _MAP = "judge_prompts", "prompt_map.json"
_QUESTION, _REFERENCE, _ANSWER = "{question}", "{text1}", "{text2}"
_REFERENCE_KEYS = ("reference_answer", "answer", "label")
# Paths of the machines on which the data were made, which are no part of anybody's results.
_INTERNAL = ("question_wav", "answer_wav", "input_wav", "original_audio_path")
_NOT_COMPARED = re.compile(r"[\W_]+")


class StepParalinguistic(JudgedTask):
    """Spoken questions in the sound itself, in eleven tasks; the text prompt is empty.

    A reply that equals the reference answer or the label is right; else the judge's prompt of the
    task decides, YES or NO. Equal means: after NFKC, in small letters, without punctuation and
    white space; the published program's own normalization is not defined. A judge that replies
    anything else has failed: the item leaves the denominator and is counted, and the figure with
    such items as wrong stands beside it.

    Items with the same `audio_id` share a recording, and are one cluster.
    """

    name: ClassVar[str] = "step_spqa"
    version: ClassVar[str] = "Step-Audio-R1.5/step_spqa, 550 questions, audio only"
    title: ClassVar[str] = "Step-SPQA"
    table_column: ClassVar[str | None] = "Step-SPQA"
    judge: ClassVar[JudgeUse] = "optional"
    headline: ClassVar[tuple[Scoring, str]] = ("judge", "accuracy")
    notes: ClassVar[Sequence[str]] = (
        "The paper's column has two denominators: Step-Audio-R1's 74.36 is 409 of 550, and the five"
        " other figures fit k of 500 and not of 550. Which 50 questions they lack is not stated;"
        " the released data have 550.",
        "Not published: the judge, the normalization of the exact match, and decoding settings.",
    )

    files: ClassVar[str] = "the folder step_spqa with metadata.jsonl"
    ships_prompts: ClassVar[bool] = True

    def __init__(self) -> None:
        self._files = {task: f"{task}.txt" for task in (_DEFAULT, *TASK_TYPES)}
        self._has_own_map = False
        self._user_folder: PathLike | None = None
        self._prompts = self._prompt_set()

    def strict(self, data: Mapping[str, Any], output: str | None) -> Strict:
        """Compares a reply with the label by the rule of its task; see `voice_rules.agrees`."""
        visible = strip_reasoning(output or "")
        if visible is None:
            return Strict("unparsed")
        plain = strip_markup(visible)
        if is_exact_match(data, plain):
            return Strict("correct", visible.strip())
        label, reference = _text(data, "label"), reference_of(data)
        agreed = agrees(str(data.get("task_type")), label, reference, plain)
        if agreed is None:
            return Strict("unparsed")
        return Strict("correct" if agreed else "wrong", visible.strip())

    def queries(self, item: Item, reasoning: str, reply: str) -> list[Query]:
        """Asks whether a reply agrees; one that is empty or an exact match is not asked about."""
        visible = remove_reasoning(reply).strip()
        if not visible or is_exact_match(item.data, visible):
            return []
        file = self._files.get(str(item.data.get("task_type")), self._files[_DEFAULT])
        prompt = self._prompts[f"{_JUDGE_FOLDER}/{file}"]
        return [Query(prompt.fill({_REFERENCE: reference_of(item.data), _ANSWER: visible}))]

    def judged(
        self, item: Item, reasoning: str, reply: str, answers: Sequence[str | None]
    ) -> Judged:
        """Reads YES or NO, in capitals and alone, as the prompts ask for it."""
        if not answers:
            is_exact = is_exact_match(item.data, remove_reasoning(reply))
            return Judged(float(is_exact), {"exact_match" if is_exact else "empty_reply": True})
        word = remove_reasoning(answers[0] or "").strip()
        if word not in ("YES", "NO"):
            return Judged(None, reason="the judge's reply is not YES or NO")
        return Judged(float(word == "YES"), {"exact_match": False})

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns accuracy by rule and by judge, of all questions and by task."""
        metrics = default_metrics(items, failures="left_out", stratify_by="task_type")
        if "judge" in scorings_of(items):
            metrics.append(mean_metric("accuracy_failures_0", "judge", items))
        return metrics

    def item_of(self, row: BenchmarkRow) -> Item:
        """Returns the question of a row, which is in its sound."""
        item_id = row_id(row, "id")
        reference_of(row.value)
        values = {_QUESTION: row.optional_text("question") or ""}
        text = self._prompts[_MODEL].fill(values).strip()
        clip = row.clip("audio_path")
        parts = (clip, TextPart(text)) if text else (clip,)
        return Item(
            id=item_id,
            record=Record(item_id, (Message("user", parts),), self.name, row.origin),
            data=row.without_sound(*_INTERNAL),
            groups=row.groups({"task_type": ("task_type",)}),
            cluster=row.optional_text("audio_id") or item_id,
        )

    def find_prompts(self, folder: PathLike) -> None:
        """Reads the prompts that the benchmark ships, by its map of task types."""
        if not self._has_own_map:
            self._use_map(folder)
        self._prompts.find(folder)

    def use_prompts(self, folder: PathLike | None) -> None:
        """Reads prompts, named as the benchmark's own, from a folder that the user names.

        Raises:
            DataError: the folder has none of them, or one lacks a placeholder.
        """
        self._user_folder = folder
        self._has_own_map = folder is not None and self._use_map(folder)
        self._prompts.use(folder)

    def _prompt_set(self) -> PromptSet:
        places = (_REFERENCE, _ANSWER)
        files = [PromptFile(_MODEL, "question.txt", (_QUESTION,))]
        files += [
            PromptFile(f"{_JUDGE_FOLDER}/{file}", f"step_spqa/{task}.txt", places)
            for task, file in self._files.items()
        ]
        return PromptSet(files, self.title, ships=True)

    def _use_map(self, folder: PathLike) -> bool:
        """Reads which file has the judge's prompt of which task; returns whether there is a map.

        Raises:
            DataError: it does not map task types to names of files beside it.
        """
        base = to_path(folder)
        paths = (base / _JUDGE_FOLDER / _MAP, base / "prompts" / _JUDGE_FOLDER / _MAP)
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return False
        names = read_json(path, DataError)
        for task, name in names.items():
            if not isinstance(name, str) or not name or posixpath.basename(name) != name:
                raise DataError(
                    f"{format_path(str(path))}: {task!r} must be the name of a file beside it, got"
                    f" {format_json(name)}"
                )
        default = names.get(_DEFAULT, self._files[_DEFAULT])
        self._files = {task: names.get(task, default) for task in (_DEFAULT, *TASK_TYPES)}
        self._prompts = self._prompt_set()
        self._prompts.use(self._user_folder)
        return True


def reference_of(data: Mapping[str, Any]) -> str:
    """Returns the reference answer of a row, without blanks around it; the label if it has none.

    Raises:
        DataError: it has neither.
    """
    for key in _REFERENCE_KEYS:
        if text := _text(data, key):
            return text
    raise DataError(f"has no reference: a text in {' or '.join(map(repr, _REFERENCE_KEYS))}")


def is_exact_match(data: Mapping[str, Any], reply: str) -> bool:
    """Returns whether a reply equals the reference answer or the label, normalized."""
    wanted = {normalize(reference_of(data)), normalize(_text(data, "label"))} - {""}
    return normalize(reply) in wanted


def normalize(text: str) -> str:
    """Returns a text after NFKC, in small letters, without punctuation and white space."""
    return _NOT_COMPARED.sub("", unicodedata.normalize("NFKC", text).casefold())


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value.strip() if isinstance(value, str) else ""
