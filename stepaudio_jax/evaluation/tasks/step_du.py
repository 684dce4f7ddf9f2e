"""Step-Dialogue-Understanding: what a speaker's voice says, in points that a reference lists."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data import Record
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import BenchmarkRow
from stepaudio_jax.evaluation.judge_replies import read_object, read_share, remove_reasoning
from stepaudio_jax.evaluation.judged_task import JudgedTask, row_id
from stepaudio_jax.evaluation.metrics import (
    Metric,
    Scoring,
    groups_of,
    mean_metric,
    scorings_of,
)
from stepaudio_jax.evaluation.prompt_files import PromptFile
from stepaudio_jax.evaluation.task import Item, Judged, JudgeUse, ScoredItem, Strict
from stepaudio_jax.evaluation.voice_points import parse_points, score_points
from stepaudio_jax.judge.query import Query
from stepaudio_jax.text import Message, TextPart
from stepaudio_jax.text.answer_markup import strip_markup, strip_reasoning

_MODEL, _SYSTEM, _USER = (
    "model_user_prompt_template.txt",
    "judge_system_prompt.txt",
    "judge_user_prompt_template.txt",
)
_DIMENSION, _QUESTION, _REFERENCE, _ANSWER = (
    "{secondary_dimension}",
    "{question}",
    "{reference_answer}",
    "{model_answer}",
)
_REFERENCE_KEYS = ("recording_requirement_or_qa_category", "answer")


class StepDialogueUnderstanding(JudgedTask):
    """Questions about how somebody sounds, scored 0, 0.5 or 1 by a judge, or by rule.

    The sound comes before the text. A judge's reply without a score from 0 to 1 leaves the
    denominator and is counted; the figure with such replies as 0 stands beside it.
    """

    name: ClassVar[str] = "step_du"
    version: ClassVar[str] = "Step-Audio-R1.5/step_dialogue_understanding, 87 questions"
    title: ClassVar[str] = "Step-DU"
    table_column: ClassVar[str | None] = "Step-DU"
    judge: ClassVar[JudgeUse] = "optional"
    headline: ClassVar[tuple[Scoring, str]] = ("judge", "score")
    notes: ClassVar[Sequence[str]] = (
        "Mean of points and half points over 87 questions: one question is 1.15 points, and the 95"
        " % interval at 80 % reaches about 8 points to either side.",
        "Not published: the judge, the order of sound and text, and decoding settings.",
    )

    files: ClassVar[str] = "the folder step_dialogue_understanding with metadata.jsonl"
    ships_prompts: ClassVar[bool] = True
    prompt_files: ClassVar[Sequence[PromptFile]] = (
        PromptFile(_MODEL, "question.txt", (_QUESTION,)),
        PromptFile(_SYSTEM, "step_du_judge_system.txt"),
        PromptFile(_USER, "step_du_judge_user.txt", (_DIMENSION, _QUESTION, _REFERENCE, _ANSWER)),
    )

    def strict(self, data: Mapping[str, Any], output: str | None) -> Strict:
        """Scores a reply by the reference's points; see `voice_points.score_points`."""
        visible = strip_reasoning(output or "")
        if visible is None:
            return Strict("unparsed")
        scored = score_points(parse_points(reference_of(data)), strip_markup(visible))
        if scored is None:
            return Strict("unparsed")
        score, read = scored
        return Strict("correct" if score == 1 else "wrong", read, score)

    def queries(self, item: Item, reasoning: str, reply: str) -> list[Query]:
        """Asks for the score of a reply; an empty one scores 0 unasked."""
        visible = remove_reasoning(reply).strip()
        if not visible:
            return []
        values = {
            _DIMENSION: str(item.data.get("secondary_dimension", "")),
            _QUESTION: question_of(item.data),
            _REFERENCE: reference_of(item.data),
            _ANSWER: visible,
        }
        return [Query(self._prompts[_USER].fill(values), self._prompts[_SYSTEM].text.strip())]

    def judged(
        self, item: Item, reasoning: str, reply: str, answers: Sequence[str | None]
    ) -> Judged:
        """Reads the score; the details have the points that the judge lists."""
        if not answers:
            return Judged(0.0, {"empty_reply": True})
        value = read_object(answers[0], "score")
        if value is None:
            return Judged(None, reason="the judge's reply has no JSON object with a score")
        score = read_share(value["score"])
        if score is None:
            return Judged(
                None, reason=f"the score must be from 0 to 1, got {format_json(value['score'])}"
            )
        listed = ("matched_points", "missing_or_incorrect_points", "reason")
        return Judged(score, {key: value[key] for key in listed if key in value})

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns the mean score by rule and by judge, of all questions and by dimension."""
        metrics = [
            mean_metric("score", "strict", part, group=group) for group, part in groups_of(items)
        ]
        if "judge" in scorings_of(items):
            for group, part in groups_of(items):
                metrics += [
                    mean_metric("score", "judge", part, group=group, failures="left_out"),
                    mean_metric("score_failures_0", "judge", part, group=group),
                ]
        return metrics

    def item_of(self, row: BenchmarkRow) -> Item:
        """Returns the question of a row."""
        item_id = row_id(row, "id")
        row.text(_REFERENCE_KEYS[0])
        values = {_QUESTION: row.text("input_question_text")}
        text = self._prompts[_MODEL].fill(values).strip("\r\n")
        parts = (row.clip("audio_path"), TextPart(text))
        return Item(
            id=item_id,
            record=Record(item_id, (Message("user", parts),), self.name, row.origin),
            data=dict(row.value),
            groups=row.groups({"dimension": ("secondary_dimension",)}),
        )


def reference_of(data: Mapping[str, Any]) -> str:
    """Returns the reference of a row, without blanks around it.

    Raises:
        DataError: it has none.
    """
    for key in _REFERENCE_KEYS:
        text = data.get(key)
        if isinstance(text, str) and text.strip():
            return text.strip()
    raise DataError(f"has no reference: a text in {' or '.join(map(repr, _REFERENCE_KEYS))}")


def question_of(data: Mapping[str, Any]) -> str:
    """Returns the question of a row; "" where there is none."""
    texts = (data.get("input_question_text"), data.get("question"))
    return next((text for text in texts if isinstance(text, str) and text), "")
