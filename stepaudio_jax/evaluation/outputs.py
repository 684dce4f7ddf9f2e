"""Scores outputs that somebody has already, from a file of JSON Lines."""

import collections
import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stepaudio_jax.data import Record
from stepaudio_jax.data.containers.jsonl import JsonlRows
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.task import (
    Item,
    OfficialOutcome,
    ReplyScore,
    StrictOutcome,
    Task,
)
from stepaudio_jax.judge.query import Query
from stepaudio_jax.storage import (
    PathLike,
    atomic_text_writer,
    check_not_same_file,
    did_you_mean,
    expand_home,
    first_few,
    format_json_line,
    format_path,
)
from stepaudio_jax.text import Message, TextPart

if TYPE_CHECKING:
    from stepaudio_jax.judge.judge import AnswerSource

_KEYS = ("item", "output", "form", "benchmark")
_LINES_OF_PART = 256
_LETTERS_ONLY = re.compile(r"[\W_]+")


@dataclasses.dataclass(frozen=True)
class OutputScores:
    """Counts the verdicts on the outputs of a file.

    Attributes:
        scored: lines that were scored, and written.
        left: lines of other benchmarks, {name: how many}, which were not.
        official: verdicts of the published rule; none where the benchmark has none.
        strict: verdicts of this project's reading.
        judge: sum of the judge's scores, how many replies have one, and how many have none; None
            without a judge.
    """

    scored: int
    left: Mapping[str, int]
    official: Mapping[OfficialOutcome, int]
    strict: Mapping[StrictOutcome, int]
    judge: tuple[float, int, int] | None = None

    def __str__(self) -> str:
        parts = [f"{self.scored} outputs scored"]
        for name, counts in (("strict", self.strict), ("official", self.official)):
            if counts:
                told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
                parts.append(f"{name}: {told}")
        if self.judge is not None:
            total, count, failed = self.judge
            told = f"{total:g} points on {count} outputs"
            parts.append(f"judge: {told}" + (f", {failed} without a verdict" if failed else ""))
        if self.left:
            told = ", ".join(f"{count} of {name}" for name, count in self.left.items())
            parts.append(f"left out: {told}")
        return "; ".join(parts)


def score_outputs(
    task: Task, input_path: PathLike, output_path: PathLike, judge: "AnswerSource | None" = None
) -> OutputScores:
    """Scores the outputs of a file by a task's rules, and writes a line for each, in order.

    A line of the input is an object with `item` (the row of the benchmark, with its answer) and
    `output` (the model's text; null where it gave none). It may name its `benchmark`: lines of
    another one are left out, and counted. A line of the output has the line's own keys and
    `official` ("correct", "wrong", "dropped"; null where there is no published program), `strict`
    ("correct", "wrong", "unparsed"; null where the task has no rule of its own) and `answer` (what
    was read as the answer; null for nothing). With a judge it has `judge` too: `score` between 0
    and 1, null with a `reason` where there is no verdict, and `details`. Verdicts that the input
    has under these names are replaced. The file is read in parts, and may be larger than memory.

    Args:
        task: whose rules score.
        input_path: JSON Lines, also compressed with gzip.
        output_path: appears when all lines are scored, and replaces what was there.
        judge: of a task that a judge scores; None for the rules alone.

    Raises:
        DataError: a line cannot be scored, or none is of the benchmark; names file and line.
        JudgeError: the judge does not answer, or too many replies have no verdict; the answers that
            can be read are in its cache, and the same call goes on.
        OutputError: the output is the input.
    """
    input_path = expand_home(os.fspath(input_path))
    check_not_same_file(output_path, input_path)
    rows = JsonlRows(input_path)
    left: collections.Counter[str] = collections.Counter()
    official: collections.Counter[OfficialOutcome] = collections.Counter()
    strict: collections.Counter[StrictOutcome] = collections.Counter()
    scored, judged = 0, list[tuple[list[Query], ReplyScore]]()
    with atomic_text_writer(output_path) as file:
        for part in _parts(_lines_of(task, rows, left)):
            verdicts = [_score(task, line, origin, judge is not None) for line, origin in part]
            if judge is not None:
                of_part = _judge(task, part, judge)
                for verdict, (_, score) in zip(verdicts, of_part, strict=True):
                    verdict["judge"] = score.judged and dataclasses.asdict(score.judged)
                judged += of_part
            for (line, _), verdict in zip(part, verdicts, strict=True):
                official.update(filter(None, [verdict["official"]]))
                strict.update(filter(None, [verdict["strict"]]))
                scored += 1
                file.write(format_json_line({**line, **verdict}))
        if not scored:
            raise _nothing_to_score(task, input_path, left)
        if judge is not None:
            from stepaudio_jax.evaluation.scoring import check_abstentions

            check_abstentions(judged, judge)
    scores = [score.judged.score for _, score in judged if score.judged is not None]
    points = [score for score in scores if score is not None]
    of_judge = (sum(points), len(points), len(scores) - len(points))
    return OutputScores(
        scored, dict(left), dict(official), dict(strict), None if judge is None else of_judge
    )


def is_of_benchmark(task: Task, benchmark: str) -> bool:
    """Returns whether a line's `benchmark` is a task's, by name or title, however it is spelled."""
    names = (task.name, task.title, task.benchmark or task.name)
    return _spelling(benchmark) in map(_spelling, names)


def _lines_of(
    task: Task, rows: JsonlRows, left: collections.Counter[str]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the lines of a task's benchmark with their places; counts the others in `left`."""
    for index in range(len(rows)):
        row = rows.row(index)
        if not isinstance(row.value, dict):
            raise DataError(
                f"{row.origin}: must be an object with 'item' and 'output', got"
                f" {format_json(row.value)}"
            )
        benchmark = row.value.get("benchmark")
        if benchmark is not None and not isinstance(benchmark, str):
            raise DataError(
                f"{row.origin}: 'benchmark' must be a text, got {format_json(benchmark)}"
            )
        if benchmark is not None and not is_of_benchmark(task, benchmark):
            left[benchmark] += 1
        else:
            yield row.value, row.origin


def _parts(
    lines: Iterator[tuple[dict[str, Any], str]],
) -> Iterator[list[tuple[dict[str, Any], str]]]:
    """Yields lines in lists of `_LINES_OF_PART`: a judge is asked about them together."""
    while part := list(itertools.islice(lines, _LINES_OF_PART)):
        yield part


def _judge(
    task: Task, lines: Sequence[tuple[dict[str, Any], str]], judge: "AnswerSource"
) -> list[tuple[list[Query], ReplyScore]]:
    """Returns what a judge is asked about each line where it gives no verdict, and its verdicts."""
    from stepaudio_jax.evaluation.model_under_test import ModelReply, split_reasoning
    from stepaudio_jax.evaluation.scoring import ask_judge

    items, replies = [], []
    for line, origin in lines:
        record = Record(origin, (Message("user", (TextPart(""),)),), task.name, origin)
        item = Item(origin, record, line["item"])
        reasoning, reply, _ = split_reasoning(line["output"] or "")
        try:
            task.queries(item, reasoning, reply)
        except DataError as error:
            raise DataError(f"{origin}: 'item' cannot be judged: {error}") from None
        items.append(item)
        replies.append((ModelReply(reasoning, reply, "unknown"),))
    queries, texts = ask_judge(task, items, replies, judge)
    verdicts = []
    for item, (model_reply,), (asked,), (answers,) in zip(
        items, replies, queries, texts, strict=True
    ):
        judged = task.judged(item, model_reply.reasoning, model_reply.reply, answers)
        has_verdict = judged is None or judged.score is not None
        verdicts.append(([] if has_verdict else asked, ReplyScore(judged=judged)))
    return verdicts


def _score(task: Task, line: Mapping[str, Any], origin: str, has_judge: bool) -> dict[str, Any]:
    for key in ("item", "output"):
        if key not in line:
            near = did_you_mean(key, [name for name in line if name not in _KEYS])
            advice = "write null where the model gave none" if key == "output" else "write the row"
            raise DataError(
                f"{origin}: has no {key!r}{near}; {advice}"
                f" (it has {first_few(list(line), limit=8) or 'nothing'})"
            )
    item, output = line["item"], line["output"]
    if not isinstance(item, Mapping):
        raise DataError(f"{origin}: 'item' must be an object, got {format_json(item)}")
    if output is not None and not isinstance(output, str):
        raise DataError(f"{origin}: 'output' must be a text or null, got {format_json(output)}")
    try:
        official, strict = task.official(item, output), task.strict(item, output)
    except DataError as error:
        raise DataError(f"{origin}: 'item' cannot be scored: {error}") from None
    if official is None and strict is None and not has_judge:
        if task.judge == "required":
            raise DataError(
                f"{origin}: {task.name} is scored by a judge alone; give --judge-url and"
                " --judge-model, or --judge-folder"
            )
        raise DataError(
            f"{origin}: 'item' has no answer to compare with, or one that is none of the choices"
        )
    return {
        "official": official,
        "strict": None if strict is None else strict.outcome,
        "answer": None if strict is None else strict.answer,
    }


def _nothing_to_score(task: Task, input_path: str, left: Mapping[str, int]) -> DataError:
    held = ", ".join(f"{count} of {name}" for name, count in left.items()) or "no line at all"
    return DataError(
        f"{format_path(input_path)}: has no outputs of {task.title}: it has {held}; name the task"
        " that they are of, or leave out the key 'benchmark'"
    )


def _spelling(name: str) -> str:
    return _LETTERS_ONLY.sub("", name).casefold()
