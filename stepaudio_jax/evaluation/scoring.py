"""Scores the replies to a task's items: by rule, by the published program, by a judge."""

import dataclasses
from collections.abc import Sequence

import tqdm

from stepaudio_jax.data import Record
from stepaudio_jax.errors import ConfigError, JudgeError
from stepaudio_jax.evaluation.metrics import Metric
from stepaudio_jax.evaluation.model_under_test import Failure, ModelReply
from stepaudio_jax.evaluation.results import JudgeExchange, ModelIdentity
from stepaudio_jax.evaluation.runner import AnsweredTask, RunSettings
from stepaudio_jax.evaluation.task import Item, ReplyScore, ScoredItem, Task
from stepaudio_jax.generation import Sampling
from stepaudio_jax.judge.judge import AnswerSource
from stepaudio_jax.judge.query import JudgeAnswer, Query


@dataclasses.dataclass(frozen=True)
class AnsweredItem:
    """Holds an item with all that became of it.

    Attributes:
        item: the item.
        record: the prompt as it was asked, with the sound or its transcript.
        replies: of the model; empty where there are none.
        exchanges: for each reply, what the judge was asked and wrote.
        scored: the verdicts.
    """

    item: Item
    record: Record
    replies: tuple[ModelReply, ...]
    exchanges: tuple[tuple[JudgeExchange, ...], ...]
    scored: ScoredItem


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """Holds the outcome of a task.

    Attributes:
        task: the task.
        settings: how it was run.
        sampling: the decoding settings that were used.
        total_items: of the task; more than `items` where a limit was set.
        items: what became of each, in the task's order.
        metrics: the figures.
        data_hash, prompt_hash: of the rows, and of the texts that the model was given.
        judge: which judge was asked; None where none was.
    """

    task: Task
    settings: RunSettings
    sampling: Sampling
    total_items: int
    items: tuple[AnsweredItem, ...]
    metrics: tuple[Metric, ...]
    data_hash: str
    prompt_hash: str
    judge: ModelIdentity | None

    @property
    def errors(self) -> dict[str, str]:
        """Returns {id of an item without replies: why}."""
        return {
            answered.item.id: answered.scored.error
            for answered in self.items
            if not answered.replies
        }


def judge_queries(task: Task, item: Item, replies: Sequence[ModelReply]) -> list[list[Query]]:
    """Returns the questions to a judge about each reply to an item."""
    return [task.queries(item, reply.reasoning, reply.reply) for reply in replies]


def check_judge(task: Task, *, has_judge: bool) -> None:
    """Checks that a task that only a judge can score has one.

    Raises:
        ConfigError: it has none.
    """
    if task.judge == "required" and not has_judge:
        raise ConfigError(
            f"the task {task.name} is scored by a judge: give --judge-url and --judge-model, or"
            " --judge-folder"
        )


def score_task(
    answered: AnsweredTask,
    judge: AnswerSource | None,
    judge_identity: ModelIdentity | None = None,
) -> TaskRun:
    """Scores the replies to a task's items, and computes its figures.

    Args:
        answered: the replies.
        judge: answers the questions of tasks that a judge scores; None for no judge.
        judge_identity: which judge that is.

    Raises:
        ConfigError: the task needs a judge, and there is none.
        JudgeError: too many replies have no verdict; the answers that can be read are kept.
    """
    task = answered.task
    check_judge(task, has_judge=judge is not None)
    uses_judge = judge is not None and task.judge != "none"
    queries = [
        [] if isinstance(replies, Failure) else judge_queries(task, item, replies)
        for item, replies in zip(answered.items, answered.replies, strict=True)
    ]
    answers = None
    if judge is not None and uses_judge:
        queries, answers = _ask_judge(answered, queries, judge)
    items = tuple(
        _score_item(answered, index, queries[index], None if answers is None else answers[index])
        for index in range(len(answered.items))
    )
    if judge is not None and uses_judge:
        _check_abstentions(items, queries, judge)
    return TaskRun(
        task=task,
        settings=answered.settings,
        sampling=answered.sampling,
        total_items=answered.total_items,
        items=items,
        metrics=tuple(task.metrics([item.scored for item in items])),
        data_hash=answered.data_hash,
        prompt_hash=answered.prompt_hash,
        judge=judge_identity if uses_judge else None,
    )


def score_reply(
    task: Task,
    item: Item,
    reply: ModelReply,
    answers: Sequence[str | None] | None,
) -> ReplyScore:
    """Returns every verdict on a reply.

    Args:
        task, item: what was asked.
        reply: of the model; its reasoning is not part of what is scored.
        answers: of the judge to the task's queries about it; None without a judge.
    """
    return ReplyScore(
        strict=task.strict(item.data, reply.reply),
        official=task.official(item.data, reply.reply),
        judged=None
        if answers is None
        else task.judged(item, reply.reasoning, reply.reply, answers),
    )


def _ask_judge(
    answered: AnsweredTask, queries: list[list[list[Query]]], judge: AnswerSource
) -> tuple[list[list[list[Query]]], list[list[list[str | None]]]]:
    """Asks the judge, and again where the protocol asks again about what it cannot read.

    Args:
        answered: the replies.
        queries: to begin with, for each item and reply.
        judge: answers them.

    Returns:
        All queries of each item and reply, and the judge's text for each; None for no answer.

    Raises:
        JudgeError: no question has an answer; the error of the first says why, such as a server
            that cannot be reached.
    """
    task = answered.task
    all_queries: list[list[list[Query]]] = [[[] for _ in of_item] for of_item in queries]
    all_texts: list[list[list[str | None]]] = [[[] for _ in of_item] for of_item in queries]
    while flat := [query for of_item in queries for of_reply in of_item for query in of_reply]:
        with tqdm.tqdm(
            total=len(flat), desc=f"{task.name}, judge", unit="question", disable=None
        ) as bar:
            given = judge.answers(flat, on_answer=bar.update)
        if isinstance(given[0], JudgeError) and all(
            isinstance(answer, JudgeError) for answer in given
        ):
            raise JudgeError(f"{task.name}: the judge has no answer to any question: {given[0]}")
        answers = iter(given)
        for index, of_item in enumerate(queries):
            replies = answered.replies[index]
            for number, of_reply in enumerate(of_item):
                all_queries[index][number] += of_reply
                all_texts[index][number] += [_text(next(answers)) for _ in of_reply]
                if of_reply and not isinstance(replies, Failure):
                    of_item[number] = task.retry_queries(
                        answered.items[index],
                        replies[number].reasoning,
                        replies[number].reply,
                        all_texts[index][number],
                    )
    return all_queries, all_texts


def _text(answer: JudgeAnswer | JudgeError) -> str | None:
    return answer.text if isinstance(answer, JudgeAnswer) else None


def _check_abstentions(
    items: Sequence[AnsweredItem],
    queries: Sequence[Sequence[Sequence[Query]]],
    judge: AnswerSource,
) -> None:
    """Checks that not too many replies lack a verdict.

    Raises:
        JudgeError: too many do.
    """
    reasons: dict[Query, str] = {}
    abstained = total = 0
    for item, of_item in zip(items, queries, strict=True):
        for score, of_reply in zip(item.scored.replies, of_item, strict=True):
            total += score.judged is not None
            if score.judged is not None and score.judged.score is None:
                abstained += 1
                reasons |= dict.fromkeys(of_reply, score.judged.reason)
    judge.check_abstentions(reasons, abstained=abstained, total=total, unit="replies")


def _score_item(
    answered: AnsweredTask,
    index: int,
    queries: Sequence[Sequence[Query]],
    answers: Sequence[Sequence[str | None]] | None,
) -> AnsweredItem:
    item, replies = answered.items[index], answered.replies[index]
    error = replies.reason if isinstance(replies, Failure) else ""
    of_item = () if isinstance(replies, Failure) else replies
    scores = tuple(
        score_reply(answered.task, item, reply, None if answers is None else answers[number])
        for number, reply in enumerate(of_item)
    )
    scored = ScoredItem(
        id=item.id,
        groups=item.groups,
        cluster=item.cluster,
        replies=scores,
        error=error,
        data=item.data,
    )
    exchanges = (
        tuple(
            tuple(
                JudgeExchange(query.text, answer, query.system)
                for query, answer in zip(of_reply, texts, strict=True)
            )
            for of_reply, texts in zip(queries, answers, strict=True)
        )
        if answers is not None
        else ((),) * len(of_item)
    )
    return AnsweredItem(item, answered.records[index], of_item, exchanges, scored)
