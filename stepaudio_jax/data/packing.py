"""Packing: a stream of examples -> rows of at most T tokens and C audio chunks.

A packer keeps a few rows open. An example goes into the fullest open row that has room for it;
where none has, a new row is opened, or, once as many are open as are allowed, the fullest row is
finished. Fullness is the larger share of tokens or chunks used.

A packer's state is small: which examples lie in the open rows, by their place in the stream.
Restoring reads those again, so that a resumed run goes on with exactly the rows it would have had.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import grain

from stepaudio_jax.data.record import Example, Visit
from stepaudio_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class PreparedRecord:
    """What became of one record: its examples, or why it was skipped (`skipped`: in one word, `message`: in full)."""

    visit: Visit
    examples: tuple[Example, ...]
    skipped: str = ""
    message: str = ""


class Lookahead:
    """Reads a stream in order, some records ahead, on an executor's threads. Which thread is faster changes nothing."""

    def __init__(
        self,
        stream: grain.MapDataset[Visit],
        prepare: Callable[[Visit], PreparedRecord],
        executor: Executor,
        *,
        depth: int,
    ):
        self._stream = stream
        self._prepare = prepare
        self._executor = executor
        self._depth = depth
        self._ahead: collections.deque[Future[PreparedRecord]] = collections.deque()
        self.index = 0

    def peek(self) -> PreparedRecord | None:
        """The record at `index`; None at the end of the stream."""
        while len(self._ahead) < self._depth and self.index + len(self._ahead) < len(self._stream):
            self._ahead.append(self.submit(self.index + len(self._ahead)))
        return self._ahead[0].result() if self._ahead else None

    def advance(self) -> None:
        """Goes on to the next record."""
        self._ahead.popleft()
        self.index += 1

    def seek(self, index: int) -> None:
        """Goes to any place of the stream."""
        while self._ahead:
            self._ahead.popleft().cancel()
        self.index = index

    def submit(self, index: int) -> Future[PreparedRecord]:
        """Starts to read the record at any place of the stream."""
        return self._executor.submit(self._prepare, self._stream[index])


@dataclasses.dataclass(eq=False)
class OpenRow:
    """A row being filled. `stream_positions` says where in the stream its examples come from: (index, which example of that record)."""

    examples: list[Example] = dataclasses.field(default_factory=list)
    stream_positions: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    tokens: int = 0
    chunks: int = 0

    def add(self, example: Example, place: tuple[int, int]) -> None:
        """Puts an example at the end of the row."""
        self.examples.append(example)
        self.stream_positions.append(place)
        self.tokens += example.tokens.size
        self.chunks += len(example.chunks)


class RowPacker:
    """Packs one row's stream.

    Args:
        records: the stream.
        tokens: T, and `chunks`: C, that a row holds. No example may be larger.
        open_rows: rows kept open at most.
        on_record: told of every record once it is used up, in order.
        max_skipped_records: how many records in a row may be skipped before that is an error.
    """

    def __init__(
        self,
        records: Lookahead,
        *,
        tokens: int,
        chunks: int,
        open_rows: int,
        on_record: Callable[[PreparedRecord], None],
        max_skipped_records: int,
    ):
        self._records = records
        self._limits = (tokens, chunks)
        self._open_rows = open_rows
        self._on_record = on_record
        self._max_skipped_records = max_skipped_records
        self._skipped_records_in_sequence = 0
        self._open: list[OpenRow] = []
        self._next_example = 0  # of the record that the stream is at

    def next_row(self) -> Sequence[Example]:
        """The examples of the next row; empty once the stream is over and every row has been given."""
        while (record := self._records.peek()) is not None:
            for which in range(self._next_example, len(record.examples)):
                example = record.examples[which]
                row = self._row_for(example)
                if row is None:
                    return self._finish(max(self._open, key=self._fullness))
                row.add(example, (self._records.index, which))
                self._next_example = which + 1
            self._next_example = 0
            self._records.advance()
            self._track_skips(record)
        return self._finish(self._open[0]) if self._open else ()

    def get_state(self) -> dict[str, Any]:
        """Where the packer stands: plain numbers and lists."""
        return {
            "index": self._records.index,
            "example": self._next_example,
            "skipped_records_in_sequence": self._skipped_records_in_sequence,
            "open": [[list(place) for place in row.stream_positions] for row in self._open],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called, reading the examples of the open rows again.

        Raises:
            DataError: one of them cannot be used any more.
        """
        self._records.seek(state["index"])
        self._next_example = state["example"]
        self._skipped_records_in_sequence = state["skipped_records_in_sequence"]
        reading = {
            index: self._records.submit(index)
            for stream_positions in state["open"]
            for index, _ in stream_positions
        }
        self._open = []
        for stream_positions in state["open"]:
            row = OpenRow()
            for index, which in stream_positions:
                record = reading[index].result()
                if which >= len(record.examples):
                    raise DataError(
                        f"cannot resume: a record that was used can no longer be: {record.message}"
                    )
                row.add(record.examples[which], (index, which))
            self._open.append(row)

    def _row_for(self, example: Example) -> OpenRow | None:
        tokens, chunks = self._limits
        fitting = [
            row
            for row in self._open
            if row.tokens + example.tokens.size <= tokens
            and row.chunks + len(example.chunks) <= chunks
        ]
        if fitting:
            return max(fitting, key=self._fullness)
        if len(self._open) == self._open_rows:
            return None
        self._open.append(OpenRow())
        return self._open[-1]

    def _fullness(self, row: OpenRow) -> float:
        tokens, chunks = self._limits
        return max(row.tokens / tokens, row.chunks / chunks if chunks else 0.0)

    def _finish(self, row: OpenRow) -> Sequence[Example]:
        self._open.remove(row)
        return row.examples

    def _track_skips(self, record: PreparedRecord) -> None:
        self._on_record(record)
        self._skipped_records_in_sequence = (
            self._skipped_records_in_sequence + 1 if record.skipped else 0
        )
        if self._skipped_records_in_sequence >= self._max_skipped_records:
            raise DataError(
                f"the last {self._max_skipped_records} records were all skipped; of the last one: {record.message}"
            )
