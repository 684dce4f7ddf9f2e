"""Has a model answer the items of a task, and keeps the replies as they come."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm

from stepaudio_jax.data import Record
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.evaluation.model_under_test import (
    Failure,
    ModelReply,
    ModelUnderTest,
    Replies,
    hide_sound,
)
from stepaudio_jax.evaluation.reply_log import ReplyLog
from stepaudio_jax.evaluation.results import Mode
from stepaudio_jax.evaluation.selection import check_unique_ids, choose_items
from stepaudio_jax.evaluation.task import Item, Task
from stepaudio_jax.generation import Sampling
from stepaudio_jax.storage import PathLike, hash_json
from stepaudio_jax.text import AudioPart


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a task is run.

    Attributes:
        sampling: settings that replace the task's own, by name.
        num_samples: replies to each item.
        limit: the number of items, chosen evenly by category; None for all.
        mode: what of the sound the model is given.
        transcripts: {item id: transcripts of its clips, in order}, for benchmarks that have none.
    """

    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_samples: int = 1
    limit: int | None = None
    mode: Mode = "sound"
    transcripts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ConfigError(f"--samples={self.num_samples} must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit={self.limit} must be at least 1")


@dataclasses.dataclass(frozen=True)
class AnsweredTask:
    """Holds the replies to a task's items, before they are scored.

    Attributes:
        task: the task.
        settings: how it is run.
        sampling: the decoding settings that were used.
        total_items: of the task; more than `items` where a limit was set.
        items: those that were chosen, in the task's order.
        records: their prompts as they were asked, with the sound or its transcript.
        replies: of each item, or why it has none.
        data_hash, prompt_hash: of the rows, and of the texts that the model was given.
    """

    task: Task
    settings: RunSettings
    sampling: Sampling
    total_items: int
    items: tuple[Item, ...]
    records: tuple[Record, ...]
    replies: tuple[Replies, ...]
    data_hash: str
    prompt_hash: str


def answer_task(
    task: Task,
    folder: PathLike,
    model: ModelUnderTest,
    log_path: PathLike | None,
    settings: RunSettings,
    *,
    on_replies: Callable[[Item, tuple[ModelReply, ...]], None] = lambda item, replies: None,
) -> AnsweredTask:
    """Has a model answer the items of a task; the same call goes on from an interrupted one.

    Args:
        task: the task.
        folder: the benchmark as it was downloaded.
        model: what is evaluated.
        log_path: the file of the replies, which a later call reads again; None keeps them in
            memory.
        settings: how the task is run.
        on_replies: is told the replies to each item as they come.

    Raises:
        DataError: the folder is not the benchmark's, or transcripts are asked for and missing.
        ConfigError: a setting is out of range.
        OutputError: the log is of another job.
        EndpointError: the server has no answer to many items in a row; what is done is kept.
    """
    items = task.items(folder)
    if not items:
        raise DataError(f"{os.fspath(folder)}: has no items of {task.name}")
    check_unique_ids(items)
    sampling = dataclasses.replace(task.sampling, **settings.sampling)
    records = _records(items, settings)
    chosen = choose_items(items, settings.limit)
    data_hash = hash_json([[item.id, item.data] for item in items])
    prompt_hash = hash_json([_prompt_text(record) for record in records])
    job = {
        "task": task.name,
        "task_version": task.version,
        "data": data_hash,
        "prompts": prompt_hash,
        "model": dataclasses.asdict(model.identity),
        "sampling": dataclasses.asdict(sampling),
        "samples": settings.num_samples,
        "mode": settings.mode,
    }
    by_index: dict[int, Replies] = {}
    with contextlib.closing(ReplyLog(log_path, job)) as log:
        missing = []
        for index in chosen:
            if items[index].id in log:
                by_index[index] = log[items[index].id]
                on_replies(items[index], log[items[index].id])
            else:
                missing.append(index)
        with tqdm.tqdm(
            total=len(chosen),
            initial=len(by_index),
            desc=task.name if settings.mode == "sound" else f"{task.name}, {settings.mode}",
            unit="item",
            disable=None,
        ) as bar:
            for index, replies in model.answer(
                records,
                missing,
                sampling,
                num_samples=settings.num_samples,
                silenced=settings.mode == "silence",
            ):
                by_index[index] = replies
                if not isinstance(replies, Failure):
                    log.add(items[index].id, replies)
                    on_replies(items[index], replies)
                bar.update()
    return AnsweredTask(
        task=task,
        settings=settings,
        sampling=sampling,
        total_items=len(items),
        items=tuple(items[index] for index in chosen),
        records=tuple(records[index] for index in chosen),
        replies=tuple(by_index[index] for index in chosen),
        data_hash=data_hash,
        prompt_hash=prompt_hash,
    )


def _records(items: Sequence[Item], settings: RunSettings) -> list[Record]:
    """Returns the prompts, their sound replaced by its transcripts where that is asked for."""
    if settings.mode != "transcripts":
        return [item.record for item in items]
    records = []
    for item in items:
        transcripts = settings.transcripts.get(item.id)
        record = item.record if transcripts is None else _with_transcripts(item, transcripts)
        records.append(hide_sound(record))
    return records


def _with_transcripts(item: Item, transcripts: Sequence[str]) -> Record:
    clips = [part for message in item.record.messages for part in message.audio]
    if len(clips) != len(transcripts):
        raise DataError(
            f"{item.record.origin}: has {len(clips)} clips, and {len(transcripts)} transcripts are"
            " given for it"
        )
    remaining = iter(transcripts)
    messages = tuple(
        dataclasses.replace(
            message,
            parts=tuple(
                dataclasses.replace(part, transcript=next(remaining))
                if isinstance(part, AudioPart)
                else part
                for part in message.parts
            ),
        )
        for message in item.record.messages
    )
    return dataclasses.replace(item.record, messages=messages)


def _prompt_text(record: Record) -> list[list[str]]:
    """Returns the roles and texts of a prompt, with a mark in the place of each clip."""
    return [
        [
            message.role,
            *("<clip>" if isinstance(part, AudioPart) else part.text for part in message.parts),
        ]
        for message in record.messages
    ]
