"""The results of benchmarks: the model, the settings, every task's figures, and every reply."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from stepaudio_jax.data.sources.serialization import part_times, serialize_record
from stepaudio_jax.evaluation.metrics import Metric, Scoring
from stepaudio_jax.evaluation.statistics import RepeatedRuns
from stepaudio_jax.evaluation.task import Item, ReplyScore, ScoredItem, Task
from stepaudio_jax.storage import is_bucket_path
from stepaudio_jax.text import AudioPart

Mode = Literal["sound", "silence", "transcripts"]
ServedBy = Literal["folder", "endpoint"]


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """Says which model answered or judged.

    Attributes:
        name: for people: the folder, or the name at the server.
        kind: whether it was loaded from a folder or asked at an endpoint.
        identity: what tells it from another of that name: the fingerprint of the folder, or the
            address of the server.
        settings: how it was run, JSON-ready: dtypes, how clips are read, an endpoint's own fields.
    """

    name: str
    kind: ServedBy
    identity: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FailedItem:
    """Says why an item has no reply."""

    id: str
    message: str


@dataclasses.dataclass(frozen=True)
class TaskResults:
    """Holds the figures of one task, and all that they depend on.

    Attributes:
        name, version, title, table_column, headline: of the task.
        sampling: the decoding settings that were used, JSON-ready.
        data_folder: where the items were read.
        data_hash: of the items' content.
        prompt_hashes: {name of a prompt: SHA-256 of its text}.
        items: how many were asked.
        items_total: how many the folder has.
        limit: what `--limit` asked for; None for all items.
        samples: replies to each item.
        errors: the items without a reply.
        metrics: figures, of all items and by group.
        judge: None where nothing was judged.
        judge_runs: how far the judge's verdicts vary; None where it was asked once.
    """

    name: str
    version: str
    title: str
    table_column: str | None
    headline: tuple[Scoring, str] | None
    sampling: Mapping[str, Any]
    data_folder: str
    data_hash: str
    prompt_hashes: Mapping[str, str]
    items: int
    items_total: int
    limit: int | None
    samples: int
    errors: tuple[FailedItem, ...]
    metrics: tuple[Metric, ...]
    judge: ModelIdentity | None = None
    judge_runs: RepeatedRuns | None = None

    @property
    def is_part(self) -> bool:
        """Returns whether some of the folder's items were left out."""
        return self.items < self.items_total

    @property
    def headline_metric(self) -> Metric | None:
        """Returns the figure that stands for the task; None where it could not be computed."""
        if self.headline is None:
            return None
        scoring, name = self.headline
        return next(
            (m for m in self.metrics if (m.scoring, m.name, m.group) == (scoring, name, "")), None
        )


@dataclasses.dataclass(frozen=True)
class BenchmarkResults:
    """Holds the results of a model in one or more tasks.

    Attributes:
        model: that answered.
        mode: what it was given: the sound, as much silence, or the transcripts.
        tasks: in the order in which they were named.
        created: when, as ISO 8601 in UTC.
        program: name and version of what wrote it.
        samples_hash: SHA-256 of `samples.jsonl`; "" before it is written.
    """

    model: ModelIdentity
    mode: Mode
    tasks: tuple[TaskResults, ...]
    created: str
    program: str
    samples_hash: str = ""

    def task(self, name: str) -> TaskResults | None:
        """Returns the results of a task; None where it was not run."""
        return next((task for task in self.tasks if task.name == name), None)


@dataclasses.dataclass(frozen=True)
class JudgeExchange:
    """Holds one question to the judge; `answer` is None where it gave none."""

    query: str
    answer: str | None
    system: str = ""


@dataclasses.dataclass(frozen=True)
class Reply:
    """Holds what the model wrote to one item, once.

    Attributes:
        reply: its text after the reasoning.
        reasoning: its thoughts.
        finish_reason: why it ended ("stop", "length", ..); None where that is not known.
        judge: what the judge was asked about it.
    """

    reply: str
    reasoning: str = ""
    finish_reason: str | None = None
    judge: tuple[JudgeExchange, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sample:
    """Holds one line of `samples.jsonl`: a reply to an item with its verdicts, or why it has none.

    Attributes:
        task, id, groups, cluster, data: of the item.
        sample: number of the reply, from 0.
        messages: the prompt, as data records have it (docs/data.md); clips are named, not stored.
        reasoning, reply, finish_reason, judge: see `Reply`.
        error: why there is no reply; "" where there is one.
        scores: the verdicts.
        headline: what the reply adds to numerator and denominator of the task's headline figure;
            None where it leaves the denominator.
    """

    task: str
    id: str
    sample: int
    groups: Mapping[str, str]
    cluster: str
    messages: tuple[Mapping[str, Any], ...]
    reasoning: str
    reply: str
    finish_reason: str | None
    error: str
    scores: ReplyScore
    headline: tuple[float, float] | None
    judge: tuple[JudgeExchange, ...] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_failed(self) -> bool:
        """Returns whether the item has no reply."""
        return bool(self.error)


def make_samples(
    task: Task, item: Item, scored: ScoredItem, replies: Sequence[Reply]
) -> list[Sample]:
    """Returns the lines of `samples.jsonl` for one item: one for each reply, or one for its error.

    Args:
        task: of the item.
        item: the question.
        scored: its verdicts, as many as there are replies.
        replies: to the item, in order; none where `scored.error` says why.
    """
    row = serialize_record(item.record, _clip_keys)
    empty = Reply("")
    pairs = list(zip(scored.replies, replies, strict=True))
    return [
        Sample(
            task=task.name,
            id=item.id,
            sample=number,
            groups=dict(item.groups),
            cluster=item.cluster,
            messages=tuple(row["messages"]),
            reasoning=reply.reasoning,
            reply=reply.reply,
            finish_reason=reply.finish_reason,
            error="" if score is not None else scored.error or "no reply",
            scores=score or ReplyScore(),
            headline=task.headline_part(score, item.data),
            judge=reply.judge,
            data=dict(item.data),
        )
        for number, (score, reply) in enumerate(pairs or [(None, empty)])
    ]


def scored_items(samples: Iterable[Sample]) -> dict[str, list[ScoredItem]]:
    """Returns the items that samples are of, by task, in order; the inverse of `make_samples`."""
    grouped: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        grouped.setdefault((sample.task, sample.id), []).append(sample)
    items: dict[str, list[ScoredItem]] = {}
    for (task, item_id), of_item in grouped.items():
        first = of_item[0]
        items.setdefault(task, []).append(
            ScoredItem(
                id=item_id,
                groups=first.groups,
                cluster=first.cluster,
                replies=tuple(sample.scores for sample in of_item if not sample.is_failed),
                error=first.error,
                data=first.data,
            )
        )
    return items


def metric_scalars(results: BenchmarkResults) -> dict[str, float]:
    """Returns the figures of all items by name, as TensorBoard and `metrics.jsonl` have them.

    `TASK/SCORING/METRIC` in shares of 1, with `_low` and `_high` for the ends of its interval, and
    `TASK/unparsed`, `TASK/dropped`, `TASK/failed` as counts.
    """
    scalars: dict[str, float] = {}
    for task in results.tasks:
        metrics = [metric for metric in task.metrics if not metric.group]
        for metric in metrics:
            if metric.value is None:
                continue
            name = f"{task.name}/{metric.scoring}/{_scalar_name(metric.name)}"
            scalars[name] = metric.value
            if metric.interval is not None:
                scalars[f"{name}_low"] = metric.interval.low
                scalars[f"{name}_high"] = metric.interval.high
        for count in ("unparsed", "dropped", "failed"):
            scalars[f"{task.name}/{count}"] = max((getattr(m, count) for m in metrics), default=0)
    return scalars


def _scalar_name(metric: str) -> str:
    """Returns a name that TensorBoard takes as it is: "pass_at_4" for "pass@4"."""
    return re.sub(r"[^-.\w]+", "_", metric.replace("@", "_at_"))


def _clip_keys(part: AudioPart) -> dict[str, Any]:
    """Returns where a clip lies, so that it is found from every working directory."""
    path = part.path
    if not (is_bucket_path(path) or ":" in path.split("/", 1)[0]):
        path = os.path.abspath(path)
    return {"audio": path, **part_times(part)}
