"""What a job has done so far, on disk: an interrupted one goes on where it was."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from stepaudio_jax.data import DataError


class Journal:
    """Finished lines of an output file, in the order in which they were finished, in a file beside it.

    Args:
        output: the file that the lines are for; the journal is `OUTPUT.partial`.
        job: what determines the lines, JSON-ready. A journal of another job is not gone on with.

    Raises:
        DataError: there is a journal of another job.
    """

    def __init__(self, output: str | os.PathLike[str], job: dict[str, Any]):
        self._output = pathlib.Path(output).absolute()
        self._path = self._output.with_name(self._output.name + ".partial")
        self._created = [folder for folder in self._output.parents if not folder.exists()]
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._lines: dict[int, dict[str, Any]] = {}
        whole = 0
        if self._path.exists():
            whole = self._read(job)
        self._file: BinaryIO = self._path.open("r+b" if whole else "wb")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._append(job)

    def __contains__(self, index: int) -> bool:
        return index in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def errors(self) -> list[str]:
        """What the lines that report a failure say, in order."""
        return [line["error"] for _, line in sorted(self._lines.items()) if "error" in line]

    def write(self, index: int, line: dict[str, Any]) -> None:
        """Adds the finished line number `index` (from 0)."""
        self._lines[index] = line
        self._append({"index": index, "line": line})

    def finish(self) -> None:
        """Writes all lines in order to the output, which appears at once, and ends the journal."""
        whole = self._path.with_name(self._path.name + ".whole")
        with whole.open("w", encoding="utf-8") as file:
            for index in sorted(self._lines):
                file.write(json.dumps(self._lines[index], ensure_ascii=False) + "\n")
        os.replace(whole, self._output)
        self._file.close()
        self._path.unlink()

    def discard(self) -> None:
        """Leaves nothing behind."""
        self._file.close()
        self._path.unlink()
        for folder in self._created:
            with contextlib.suppress(OSError):  # another program may have put something there meanwhile
                folder.rmdir()

    def close(self) -> None:
        """Stops writing; the journal stays."""
        self._file.close()

    def _append(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _read(self, job: dict[str, Any]) -> int:
        """Takes over the lines of the journal; returns how many bytes of it are whole."""
        whole = 0
        for number, (line, length) in enumerate(_whole_lines(self._path)):
            if number == 0 and line != job:
                raise DataError(
                    f"{self._path}: is of another job (other input, model or settings); delete it to start anew, or write to "
                    "another file"
                )
            if number:
                self._lines[line["index"]] = line["line"]
            whole += length
        return whole


def _whole_lines(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The lines that were written to their end, with their bytes."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield json.loads(line), len(line)
