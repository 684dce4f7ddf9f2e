"""Packing: a stream of examples -> rows of at most T tokens and C audio chunks.

A packer keeps a few rows open. An example goes into the fullest open row that has room for it. If
none has, a new row is opened, or, at the maximum number of open rows, the fullest one is finished.
Fullness is the larger of the used fractions of tokens and of chunks.

A packer's state is small: which examples are in the open rows, by their position in the stream.
Restoring reads those again, so a resumed run continues with exactly the same rows.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import grain

from stepaudio_jax.data.record import Example, PreparedRecord, Visit
from stepaudio_jax.errors import DataError


class Lookahead:
    """Reads a stream in order, some records ahead.

    The result does not depend on how fast each of them is prepared.

    Args:
        stream: the visits of one row of the batch.
        prepare: begins to prepare a record, on another thread or in another process.
        depth: the number of records ahead.
    """

    def __init__(
        self,
        stream: grain.MapDataset[Visit],
        prepare: Callable[[Visit], Future[PreparedRecord]],
        *,
        depth: int,
    ):
        self._stream = stream
        self._prepare = prepare
        self._depth = depth
        self._ahead: collections.deque[Future[PreparedRecord]] = collections.deque()
        self.index = 0

    def peek(self) -> PreparedRecord | None:
        """Returns the record at `index`; None at the end of the stream."""
        while len(self._ahead) < self._depth and self.index + len(self._ahead) < len(self._stream):
            self._ahead.append(self.submit(self.index + len(self._ahead)))
        return self._ahead[0].result() if self._ahead else None

    def advance(self) -> None:
        """Moves to the next record."""
        self._ahead.popleft()
        self.index += 1

    def seek(self, index: int) -> None:
        """Moves to any index of the stream."""
        while self._ahead:
            self._ahead.popleft().cancel()
        self.index = index

    def submit(self, index: int) -> Future[PreparedRecord]:
        """Starts reading the record at any index of the stream."""
        return self._prepare(self._stream[index])


@dataclasses.dataclass(eq=False)
class OpenRow:
    """Holds a row that is being filled.

    Attributes:
        examples: the examples in it, in order.
        stream_positions: where each comes from: (index in the stream, example of that record).
        tokens, chunks: how much of the row is used.
    """

    examples: list[Example] = dataclasses.field(default_factory=list)
    stream_positions: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    tokens: int = 0
    chunks: int = 0

    def add(self, example: Example, stream_position: tuple[int, int]) -> None:
        """Appends an example."""
        self.examples.append(example)
        self.stream_positions.append(stream_position)
        self.tokens += example.row_tokens
        self.chunks += len(example.chunks)


class RowPacker:
    """Packs the stream of one row of the batch.

    Args:
        records: the stream.
        tokens: T, the most tokens of a row. No example may be larger.
        chunks: C, the most audio chunks of a row.
        open_rows: the most rows kept open.
        on_record: called with every record once all its examples are placed, in order.
        max_skipped_records: how many consecutive records may be skipped before it is an error.
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
        self._next_example = 0  # of the record at the stream's index

    def next_row(self) -> Sequence[Example]:
        """Returns the examples of the next row; none once stream and open rows are used up."""
        while (record := self._records.peek()) is not None:
            for number in range(self._next_example, len(record.examples)):
                example = record.examples[number]
                row = self._row_for(example)
                if row is None:
                    return self._finish(max(self._open, key=self._fullness))
                row.add(example, (self._records.index, number))
                self._next_example = number + 1
            self._next_example = 0
            self._records.advance()
            self._track_skips(record)
        return self._finish(self._open[0]) if self._open else ()

    def get_state(self) -> dict[str, Any]:
        """Returns the packer's state, JSON-ready."""
        return {
            "index": self._records.index,
            "example": self._next_example,
            "skipped_records_in_sequence": self._skipped_records_in_sequence,
            "open": [list(map(list, row.stream_positions)) for row in self._open],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state, reading the examples of the open rows again.

        Raises:
            DataError: one of them can no longer be used.
        """
        self._records.seek(state["index"])
        self._next_example = state["example"]
        self._skipped_records_in_sequence = state["skipped_records_in_sequence"]
        futures = {
            index: self._records.submit(index)
            for stream_positions in state["open"]
            for index, _ in stream_positions
        }
        self._open = []
        for stream_positions in state["open"]:
            row = OpenRow()
            for index, number in stream_positions:
                record = futures[index].result()
                if number >= len(record.examples):
                    raise DataError(
                        f"cannot resume: a record that was used can no longer be: {record.message}"
                    )
                row.add(record.examples[number], (index, number))
            self._open.append(row)

    def _row_for(self, example: Example) -> OpenRow | None:
        """Returns the row to put an example into; None if one must be finished first."""
        tokens, chunks = self._limits
        fitting = [
            row
            for row in self._open
            if row.tokens + example.row_tokens <= tokens
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
        """Raises a DataError after too many consecutive skipped records."""
        self._on_record(record)
        self._skipped_records_in_sequence = (
            self._skipped_records_in_sequence + 1 if record.skipped else 0
        )
        if self._skipped_records_in_sequence >= self._max_skipped_records:
            raise DataError(
                f"the last {self._max_skipped_records} records were all skipped;"
                f" of the last one: {record.message}"
            )
