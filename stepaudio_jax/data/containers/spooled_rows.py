"""Rows that are joined from several files, kept in a temporary file without a name."""

import array
import json
from typing import Any

from stepaudio_jax.data.containers.text_files import Spool
from stepaudio_jax.errors import DataError


class SpooledRows:
    """Takes rows one after the other, and then reads them in any order.

    Held in memory are an offset and a line number a row.
    """

    def __init__(self) -> None:
        self._spool = Spool()
        self._starts = array.array("q")
        self._line_numbers = array.array("q")

    def __len__(self) -> int:
        return len(self._line_numbers)

    def append(self, value: Any, line_number: int) -> None:
        """Appends a row.

        Args:
            value: as JSON would hold it.
            line_number: of the line that the row is named after, from 1.
        """
        self._write([value], line_number)

    def append_error(self, message: str, line_number: int) -> None:
        """Appends a row that cannot be read, so that reading it raises a DataError."""
        self._write([None, message], line_number)

    def finish(self) -> None:
        """Makes the rows readable; none is appended after this."""
        self._starts.append(self._spool.size)
        self._spool.flush()

    def line_number(self, index: int) -> int:
        """Returns the line number of the row at `index`."""
        return self._line_numbers[index]

    def read(self, index: int) -> Any:
        """Returns the row at `index`.

        Raises:
            DataError: the row was appended as an error.
        """
        content = self._spool.read(self._starts[index], self._starts[index + 1])
        value, *error = json.loads(content)
        if error:
            raise DataError(error[0])
        return value

    def _write(self, content: list[Any], line_number: int) -> None:
        self._starts.append(self._spool.size)
        self._line_numbers.append(line_number)
        self._spool.write(json.dumps(content).encode())
