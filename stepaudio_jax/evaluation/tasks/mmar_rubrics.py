"""MMAR-Rubrics: the reasoning behind right answers to MMAR, marked by rubrics."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import find_tables
from stepaudio_jax.evaluation.judge_replies import read_rubric_scores, remove_reasoning
from stepaudio_jax.evaluation.judged_task import judge_part
from stepaudio_jax.evaluation.metrics import (
    Metric,
    Scoring,
    default_metrics,
    grouped,
    mean_metric,
)
from stepaudio_jax.evaluation.multiple_choice import PROMPT_NAME
from stepaudio_jax.evaluation.prompt_files import PromptFile, PromptSet
from stepaudio_jax.evaluation.task import Item, Judged, JudgeUse, ReplyScore, ScoredItem
from stepaudio_jax.evaluation.tasks.mmar import Mmar
from stepaudio_jax.judge.query import Query
from stepaudio_jax.storage import PathLike

NUM_CALLS = 5
MAX_ATTEMPTS = 20  # of each call
_TRIMMED = 1  # of the scores, at either end
_TABLES = ("MMAR-meta.jsonl*", "MMAR-meta.json*", "sample.jsonl", "*.json*")
_FILES = "MMAR-meta.jsonl of the GitHub repository, and the folder of clips beside it"
_SYSTEM, _USER = "judge_system_prompt.txt", "judge_user_prompt_template.txt"
_QUESTION, _ANSWER, _THINKING, _CRITERIA, _FORM = (
    "{question}",
    "{answer}",
    "{thinking}",
    "{criteria}",
    "{form}",
)
_PREDICTED_THINKING, _PREDICTED_ANSWER = "{thinking_prediction}", "{answer_prediction}"


class MmarRubrics(Mmar):
    """MMAR with a rubric of five criteria an item, marked in five calls to the judge.

    An answer that fails the published rule of MMAR scores 0 and is not marked. Otherwise the score
    is the mean of the middle three of five replies' shares of points. A reply that the published
    program rejects is asked for again, up to 20 times; an item with a call that fails for good is
    not counted at all, neither in the score nor in the accuracy beside it.

    The judge's prompt is written in the published program, and not in the data: without a file of
    the user's the project's own stands for it.
    """

    name: ClassVar[str] = "mmar_rubrics"
    version: ClassVar[str] = "MMAR, rubrics and rule of 3bce090"
    title: ClassVar[str] = "MMAR-Rubrics"
    judge: ClassVar[JudgeUse] = "required"
    headline: ClassVar[tuple[Scoring, str] | None] = ("judge", "rubrics")
    benchmark: ClassVar[str | None] = "MMAR-Rubrics"
    notes: ClassVar[Sequence[str]] = (
        "The published judge is gpt-4o-2024-11-20 at temperature 0 with seed 42, with five calls an"
        " item; its prompt is in the program of the benchmark, not in its data.",
        "rubrics: mean score; accuracy of the judge's items: of those evaluated, by MMAR's rule.",
    )

    def __init__(self) -> None:
        places = (_QUESTION, _ANSWER, _THINKING, _CRITERIA, _PREDICTED_THINKING, _PREDICTED_ANSWER)
        self._prompts = PromptSet(
            [
                PromptFile(PROMPT_NAME, PROMPT_NAME, ("{question}", "{options}")),
                PromptFile(_SYSTEM, "mmar_rubrics_judge_system.txt"),
                PromptFile(_USER, "mmar_rubrics_judge_user.txt", places),
            ],
            self.title,
        )

    def items(self, folder: PathLike) -> list[Item]:
        """Reads the questions with their rubrics; see `Task.items`.

        Raises:
            DataError: a row has no rubric, as those of the Hub's copy; names it.
        """
        tables = find_tables(folder, names=_TABLES, what=_FILES)
        items = super().items(tables[0] if len(tables) == 1 else folder)
        for item in items:
            try:
                rubric_of(item.data)
            except DataError as error:
                raise DataError(f"{item.record.origin}: {error}") from None
        return items

    def queries(self, item: Item, reasoning: str, reply: str) -> list[Query]:
        """Asks five times for the points of a right answer's reasoning; a wrong one scores 0."""
        if self.official(item.data, reply) != "correct":
            return []
        return [self._query(item, reasoning, reply, sample) for sample in range(NUM_CALLS)]

    def retry_queries(
        self, item: Item, reasoning: str, reply: str, answers: Sequence[str | None]
    ) -> list[Query]:
        """Asks again for each reply that the published program rejects, up to 20 times in all."""
        open_calls, attempts = _open_calls(answers, rubric_of(item.data))
        if not answers or None in answers or attempts >= MAX_ATTEMPTS:
            return []
        samples = range(len(answers), len(answers) + open_calls)
        return [self._query(item, reasoning, reply, sample) for sample in samples]

    def judged(
        self, item: Item, reasoning: str, reply: str, answers: Sequence[str | None]
    ) -> Judged:
        """Returns the trimmed mean of five replies' scores; see the class."""
        if not answers:
            return Judged(0.0, {"answer_correct": False})
        rubric = rubric_of(item.data)
        points = [read_rubric_scores(answer, rubric) for answer in answers]
        scores = [share_of_points(each, rubric) for each in points if each is not None]
        scores = scores[:NUM_CALLS]
        details: dict[str, Any] = {"answer_correct": True, "scores": scores, "points": points}
        if rejected := len(answers) - len(scores):
            details["rejected_replies"] = rejected
        if len(scores) < NUM_CALLS:
            reason = f"{NUM_CALLS - len(scores)} of {NUM_CALLS} calls have no reply in the form"
            return Judged(None, details, reason)
        return Judged(trimmed_mean(scores), details)

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns the mean score, the accuracy of the items evaluated, and MMAR's accuracies."""
        metrics = grouped(
            items,
            lambda part, group: mean_metric(
                "rubrics", "judge", part, group=group, failures="left_out"
            ),
        )
        metrics += grouped(
            items,
            lambda part, group: mean_metric(
                "accuracy", "judge", part, value=_evaluated_accuracy, group=group
            ),
        )
        others = [metric for metric in default_metrics(items) if metric.scoring != "judge"]
        return metrics + others

    def headline_part(
        self, reply: ReplyScore | None, data: Mapping[str, Any]
    ) -> tuple[float, float] | None:
        """Returns the score and 1; None where it is not counted."""
        del data
        return judge_part(reply)

    def _query(self, item: Item, reasoning: str, reply: str, sample: int) -> Query:
        rubric = rubric_of(item.data)
        values = {
            _QUESTION: str(item.data.get("question", "")),
            _ANSWER: str(item.data.get("answer", "")),
            _THINKING: str(item.data.get("thinking", "")),
            _CRITERIA: render_criteria(rubric),
            _FORM: render_form(rubric),
            _PREDICTED_THINKING: reasoning.strip(),
            _PREDICTED_ANSWER: f"Its answer: {remove_reasoning(reply).strip()}",
        }
        text = self._prompts[_USER].fill(values)
        # As the published program does with its own text.
        text = "\n".join(line.lstrip() for line in text.splitlines())
        return Query(text.strip(), self._prompts[_SYSTEM].text.strip(), sample)


def rubric_of(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the criteria of a row: objects with `name`, `scoring_point` and `choices`.

    Raises:
        DataError: there are none, or one lacks a key or has no numbers to choose from.
    """
    rubric = data.get("rubric")
    if not isinstance(rubric, list) or not rubric:
        raise DataError(
            f"'rubric' must be a list of criteria, got {format_json(rubric)}; take MMAR-meta.jsonl"
            " from the GitHub repository, since the copy on the Hub has no rubrics"
        )
    for criterion in rubric:
        if (
            not isinstance(criterion, Mapping)
            or not isinstance(criterion.get("name"), str)
            or not isinstance(criterion.get("scoring_point"), str)
            or not isinstance(criterion.get("choices"), list)
            or not criterion["choices"]
            or not all(isinstance(choice, int | float) for choice in criterion["choices"])
        ):
            raise DataError(
                "a criterion of 'rubric' must have a name, a scoring_point and a list of choices,"
                f" got {format_json(criterion)}"
            )
    return rubric


def render_criteria(rubric: Sequence[Mapping[str, Any]]) -> str:
    """Returns a block of lines for each criterion: its name, what earns points, its scores."""
    return "\n\n".join(
        f"Criterion {number}: {criterion['name']}\n{criterion['scoring_point']}\n"
        f"Scores: {', '.join(map(json.dumps, criterion['choices']))}"
        for number, criterion in enumerate(rubric, 1)
    )


def render_form(rubric: Sequence[Mapping[str, Any]]) -> str:
    """Returns the JSON list that the judge is asked to fill in."""
    form = [
        {"name": criterion["name"], "score": "...", "justification": "..."} for criterion in rubric
    ]
    return json.dumps(form, ensure_ascii=False)


def share_of_points(points: Sequence[float], rubric: Sequence[Mapping[str, Any]]) -> float:
    """Returns the sum of points over the sum of the greatest possible ones; 0 where that is 0."""
    most = sum(max(criterion["choices"]) for criterion in rubric)
    return sum(points) / most if most else 0.0


def trimmed_mean(scores: Sequence[float]) -> float:
    """Returns the mean of scores without the least and the greatest one."""
    middle = sorted(scores)[_TRIMMED : len(scores) - _TRIMMED]
    return sum(middle) / len(middle)


def _open_calls(
    answers: Sequence[str | None], rubric: Sequence[Mapping[str, Any]]
) -> tuple[int, int]:
    """Returns how many of the five calls have no valid reply yet, and how often each was tried."""
    open_calls, attempts, index = NUM_CALLS, 0, 0
    while index < len(answers) and open_calls:
        batch = answers[index : index + open_calls]
        index += len(batch)
        open_calls -= sum(read_rubric_scores(answer, rubric) is not None for answer in batch)
        attempts += 1
    return open_calls, attempts


def _evaluated_accuracy(item: ScoredItem) -> float | None:
    """Returns the share of right answers among an item's replies that are evaluated."""
    values = [
        float(reply.official == "correct")
        for reply in item.replies
        if reply.judged is not None and reply.judged.score is not None
    ]
    return sum(values) / len(values) if values else None
