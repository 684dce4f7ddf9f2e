"""Scores the replies to a task's items: by rule, by the published program, by a judge."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import tqdm

from stepaudio_jax.data import Record
from stepaudio_jax.errors import ConfigError, JudgeError
from stepaudio_jax.evaluation.metrics import Metric
from stepaudio_jax.evaluation.model_under_test import Failure, ModelReply, Replies
from stepaudio_jax.evaluation.results import JudgeExchange, ModelIdentity
from stepaudio_jax.evaluation.runner import AnsweredTask, RunSettings
from stepaudio_jax.evaluation.statistics import RepeatedRuns, repeated_runs
from stepaudio_jax.evaluation.task import Item, ReplyScore, ScoredItem, Task
from stepaudio_jax.generation import Sampling
from stepaudio_jax.judge.judge import AnswerSource
from stepaudio_jax.judge.query import JudgeAnswer, Query

# Tells the questions of one run of a judge from those of the next; no task asks as many of a reply.
_MAX_QUERIES_OF_RUN = 1000


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
        judge_runs: how far its verdicts vary; None where it was asked once.
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
    judge_runs: RepeatedRuns | None = None

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
    *,
    num_judge_runs: int = 1,
) -> TaskRun:
    """Scores the replies to a task's items, and computes its figures.

    Args:
        answered: the replies.
        judge: answers the questions of tasks that a judge scores; None for no judge.
        judge_identity: which judge that is.
        num_judge_runs: how often the judge is asked everything. The first run's verdicts make the
            figures; all of them say how far the judge's verdicts vary.

    Raises:
        ConfigError: the task needs a judge, and there is none.
        JudgeError: too many replies have no verdict; the answers that can be read are kept.
    """
    task = answered.task
    check_judge(task, has_judge=judge is not None)
    uses_judge = judge is not None and task.judge != "none"
    queries: list[list[list[Query]]] = [
        [] if isinstance(replies, Failure) else [[] for _ in replies]
        for replies in answered.replies
    ]
    answers = None
    if judge is not None and uses_judge:
        queries, answers = ask_judge(task, answered.items, answered.replies, judge)
    items = tuple(
        _score_item(answered, index, queries[index], None if answers is None else answers[index])
        for index in range(len(answered.items))
    )
    runs = None
    if judge is not None and uses_judge:
        pairs = map(_pairs, items, queries)
        check_abstentions(list(itertools.chain.from_iterable(pairs)), judge)
        if num_judge_runs > 1:
            runs = _repeat_judge(answered, items, judge, num_judge_runs)
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
        judge_runs=runs,
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
        reply: of the model; rules see the reply alone, a judge's task its reasoning too.
        answers: of the judge to the task's queries about it; None without a judge.
    """
    return ReplyScore(
        strict=task.strict(item.data, reply.reply),
        official=task.official(item.data, reply.reply),
        judged=None
        if answers is None
        else task.judged(item, reply.reasoning, reply.reply, answers),
    )


def ask_judge(
    task: Task,
    items: Sequence[Item],
    replies: Sequence[Replies],
    judge: AnswerSource,
    *,
    run: int = 0,
) -> tuple[list[list[list[Query]]], list[list[list[str | None]]]]:
    """Asks the judge, and again where the protocol asks again about what it cannot read.

    Args:
        task: of the items.
        items, replies: what was asked and answered.
        judge: answers the questions.
        run: number of the repetition; questions of another run are asked anew.

    Returns:
        All queries of each item and reply, and the judge's text for each; None for no answer.

    Raises:
        JudgeError: no question has an answer; the error of the first says why, such as a server
            that cannot be reached.
    """

    def of_run(queries: Sequence[Query]) -> list[Query]:
        shift = run * _MAX_QUERIES_OF_RUN
        return [dataclasses.replace(query, sample=query.sample + shift) for query in queries]

    queries: list[list[list[Query]]] = [
        []
        if isinstance(of_item, Failure)
        else [of_run(of_reply) for of_reply in judge_queries(task, item, of_item)]
        for item, of_item in zip(items, replies, strict=True)
    ]
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
            of_replies = replies[index]
            for number, of_reply in enumerate(of_item):
                all_queries[index][number] += of_reply
                all_texts[index][number] += [_text(next(answers)) for _ in of_reply]
                if of_reply and not isinstance(of_replies, Failure):
                    of_item[number] = of_run(
                        task.retry_queries(
                            items[index],
                            of_replies[number].reasoning,
                            of_replies[number].reply,
                            all_texts[index][number],
                        )
                    )
    return all_queries, all_texts


def check_abstentions(
    scores: Sequence[tuple[Sequence[Query], ReplyScore]], judge: AnswerSource
) -> None:
    """Checks that not too many replies lack a verdict.

    Args:
        scores: what the judge was asked about each reply, and the verdicts.
        judge: which forgets the answers that cannot be read, so that it is asked again.

    Raises:
        JudgeError: too many do.
    """
    reasons: dict[Query, str] = {}
    abstained = total = 0
    for queries, score in scores:
        total += score.judged is not None
        if score.judged is not None and score.judged.score is None:
            abstained += 1
            reasons |= dict.fromkeys(queries, score.judged.reason)
    judge.check_abstentions(reasons, abstained=abstained, total=total, unit="replies")


def _repeat_judge(
    answered: AnsweredTask, items: Sequence[AnsweredItem], judge: AnswerSource, num_runs: int
) -> RepeatedRuns | None:
    """Asks the judge everything again; returns how far its verdicts vary.

    None where no reply has a verdict in every run.
    """
    task = answered.task
    runs: list[list[float | None]] = [
        [_judged_score(score) for item in items for score in item.scored.replies]
    ]
    for run in range(1, num_runs):
        queries, texts = ask_judge(task, answered.items, answered.replies, judge, run=run)
        verdicts = [
            (of_reply, score_reply(task, item.item, reply, of_texts))
            for item, of_item, texts_of_item in zip(items, queries, texts, strict=True)
            for reply, of_reply, of_texts in zip(item.replies, of_item, texts_of_item, strict=True)
        ]
        check_abstentions(verdicts, judge)
        runs.append([_judged_score(score) for _, score in verdicts])
    if not any(None not in of_reply for of_reply in zip(*runs, strict=True)):
        return None
    return repeated_runs(runs)


def _judged_score(score: ReplyScore) -> float | None:
    return None if score.judged is None else score.judged.score


def _pairs(
    item: AnsweredItem, queries: Sequence[Sequence[Query]]
) -> Iterator[tuple[Sequence[Query], ReplyScore]]:
    """Returns what was asked about each reply to an item, with its verdicts."""
    return zip(queries, item.scored.replies, strict=True)


def _text(answer: JudgeAnswer | JudgeError) -> str | None:
    return answer.text if isinstance(answer, JudgeAnswer) else None


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
