"""Items and verdicts for tests: what the runner makes of a model's reply and a judge's answers."""

import json

from stepaudio_jax.data import Record
from stepaudio_jax.evaluation.task import Item, ReplyScore, ScoredItem
from stepaudio_jax.text import Message, TextPart


def make_item(data, item_id="0", groups=None, cluster=""):
    record = Record(item_id, (Message("user", (TextPart("?"),)),), "test", "data.jsonl:1")
    return Item(item_id, record, data, groups or {}, cluster)


def score(task, item, reply, answers=None, reasoning=""):
    """Returns every verdict on a reply; `answers` of the judge, None without a judge."""
    return ReplyScore(
        strict=task.strict(item.data, reply),
        official=task.official(item.data, reply),
        judged=None if answers is None else task.judged(item, reasoning, reply, answers),
    )


def scored(item, *replies, error=""):
    return ScoredItem(item.id, item.groups, item.cluster, replies, error, item.data)


def figure(metrics, scoring, name, group=""):
    (metric,) = [m for m in metrics if (m.scoring, m.name, m.group) == (scoring, name, group)]
    return metric


def headline(task, items):
    return figure(task.metrics(items), *task.headline)


def json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
