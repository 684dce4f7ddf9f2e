"""What tasks that a judge scores have in common: their rows, their prompts, their headline."""

import abc
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import (
    BenchmarkRow,
    check_has_rows,
    check_unique,
    find_tables,
    read_rows,
)
from stepaudio_jax.evaluation.metrics import Scoring, reply_value
from stepaudio_jax.evaluation.prompt_files import PromptFile, PromptSet
from stepaudio_jax.evaluation.task import Item, ReplyScore, Task
from stepaudio_jax.storage import PathLike


class JudgedTask(Task):
    """A task whose rows become items one by one, with prompts in files, scored by a judge.

    Attributes:
        tables: names of the benchmark's table of rows, where it has no Parquet files.
        files: what its folder holds, in words.
        prompt_files: of the model and the judge.
        ships_prompts: whether the benchmark's own folder has them.
    """

    tables: ClassVar[Sequence[str]] = ("metadata.jsonl",)
    files: ClassVar[str]
    prompt_files: ClassVar[Sequence[PromptFile]]
    ships_prompts: ClassVar[bool] = False

    def __init__(self) -> None:
        self._prompts = PromptSet(self.prompt_files, self.title, ships=self.ships_prompts)

    def items(self, folder: PathLike) -> list[Item]:
        """Reads the benchmark's own prompts and its rows; see `Task.items`."""
        tables = find_tables(folder, names=self.tables, what=self.files)
        self.find_prompts(os.path.dirname(tables[0]))
        items, origins = [], dict[str, str]()
        for row in read_rows(tables):
            item = self._checked_item(row)
            check_unique(origins, item.id, row.origin)
            origins[item.id] = row.origin
            items.append(item)
        check_has_rows(items, folder)
        return items

    @abc.abstractmethod
    def item_of(self, row: BenchmarkRow) -> Item:
        """Returns the item of a row.

        Raises:
            DataError: the row cannot be read; its place is the caller's to name.
        """

    def find_prompts(self, folder: PathLike) -> None:
        """Reads the prompts that the benchmark ships in the folder of its table of rows.

        Raises:
            DataError: some of them are missing, or one lacks a placeholder.
        """
        if self.ships_prompts:
            self._prompts.find(folder)

    def headline_part(
        self, reply: ReplyScore | None, data: Mapping[str, Any]
    ) -> tuple[float, float] | None:
        """Returns the judge's score and 1; see `judge_part`."""
        del data
        return judge_part(reply)

    def use_prompts(self, folder: PathLike | None) -> None:
        """Reads prompts, by the names of the task's prompt files, from a folder or a file.

        Raises:
            DataError: there is none of them, or one lacks a placeholder.
        """
        self._prompts.use(folder)

    @property
    def prompt_sources(self) -> Mapping[str, str]:
        """Returns the prompts of the model and of the judge."""
        return self._prompts.sources

    def _checked_item(self, row: BenchmarkRow) -> Item:
        try:
            return self.item_of(row)
        except DataError as error:
            if str(error).startswith(row.origin):
                raise
            raise row.error(str(error)) from None


def judge_part(reply: ReplyScore | None) -> tuple[float, float] | None:
    """Returns a judge's score and 1; without a judge the strict score, None for a failed one."""
    scoring: Scoring = "strict" if reply is not None and reply.judged is None else "judge"
    value = reply_value(scoring, reply, failures="left_out")
    return None if value is None else (value, 1.0)


def row_id(row: BenchmarkRow, key: str) -> str:
    """Returns the id of a row, a text or a whole number.

    Raises:
        DataError: it has none.
    """
    value = row.value.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise DataError(f"{key!r} must be a text or a whole number, got {format_json(value)}")
    return str(value)
