"""Keeps the finished lines of a job on disk, so that an interrupted one can be resumed."""

import os
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.config import ModelConfig
from stepaudio_jax.errors import DataError, LockHeldError, OutputError
from stepaudio_jax.storage import (
    JsonLine,
    JsonLinesFile,
    Path,
    PathLike,
    check_not_same_file,
    expand_home,
    fingerprint_folder,
    finished_output,
    format_json_line,
    hash_file,
    remove_empty_folders,
    to_path,
)


def partial_path(output: PathLike) -> Path:
    """Returns the path of an output's journal: `OUTPUT.partial`."""
    path = to_path(output).absolute()
    return path.with_name(path.name + ".partial")


def check_output_paths(output: PathLike, input_path: PathLike) -> None:
    """Checks that neither an output nor its journal is the input, and that neither is a folder.

    Raises:
        OutputError: one is.
    """
    partial = partial_path(output)
    check_not_same_file(output, input_path)
    for path in (to_path(output), partial):
        if path.is_dir():
            raise OutputError(
                f"--output={os.fspath(output)!r}: {os.fspath(path)!r} is a folder; name another"
                " file"
            )
    try:
        check_not_same_file(partial, input_path)
    except OutputError:
        raise OutputError(
            f"--output={os.fspath(output)!r}: its unfinished lines would go to"
            f" {os.fspath(partial)!r}, which is the input; name another file"
        ) from None


class Journal:
    """Finished lines of an output file, in the order in which they were finished.

    They are in a file beside it, which this process holds until it is closed: another job with the
    same output is refused.

    Args:
        output: the file that the lines are for; the journal is `OUTPUT.partial`.
        job: what determines the lines, JSON-ready.
        count: number of lines that the output will have.

    Raises:
        DataError: there is a journal of a different job, or a damaged one.
        OutputError: another job is writing it.
    """

    def __init__(self, output: PathLike, job: Mapping[str, Any], count: int):
        self._output = to_path(output).absolute()
        self._path = partial_path(output)
        self._job, self._count = dict(job), count
        self._created: list[Path] = [
            folder for folder in self._output.parents if not folder.exists()
        ]
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._lines: dict[int, dict[str, Any]] = {}
        try:
            self._file = JsonLinesFile(self._path, lock=True)
        except LockHeldError:
            raise OutputError(
                f"{self._path}: another job is writing it; wait for that job or stop it, or write"
                " to another file"
            ) from None
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        if not self._file.lines:
            self._file.append(self._job)

    def __contains__(self, index: int) -> bool:
        return index in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def errors(self) -> list[str]:
        """Returns the messages of the lines that report a failure, in order."""
        return [line["error"] for _, line in sorted(self._lines.items()) if "error" in line]

    def write(self, index: int, line: dict[str, Any]) -> None:
        """Adds the finished line number `index` (from 0)."""
        self._lines[index] = line
        self._file.append({"index": index, "line": line})

    def finish(self) -> None:
        """Writes all lines in order to the output, atomically, and removes the journal."""
        with finished_output(self._output, self._job) as file:
            for index in sorted(self._lines):
                file.write(format_json_line(self._lines[index]))
        self._file.remove()

    def discard(self) -> None:
        """Removes the journal, and the folders that were made for it."""
        self._file.remove()
        remove_empty_folders(self._created)

    def close(self) -> None:
        """Releases the journal, which stays on disk."""
        self._file.close()

    def _read(self) -> None:
        """Reads the finished lines of the journal."""
        if not self._file.lines:
            expected = format_json_line(self._job).encode()
            if not expected.startswith(self._file.unfinished):
                self._check_job(None)  # another program's file
            return
        header, *lines = self._file.lines
        self._check_job(header.value)
        for line in lines:
            index, value = self._parse(line)
            self._lines[index] = value

    def _check_job(self, job: Any) -> None:
        if not isinstance(job, dict):
            raise DataError(
                f"{self._path}:1: does not say which job it is of, so it is damaged or another"
                " program's file; delete it to start anew, or write to another file"
            )
        if job != self._job:
            raise DataError(
                f"{self._path}: is of another job (other input, model or settings); delete it to"
                " start anew, or write to another file"
            )

    def _parse(self, line: JsonLine) -> tuple[int, dict[str, Any]]:
        entry = line.value
        if isinstance(entry, dict) and entry.keys() == {"index", "line"}:
            index, value = entry["index"], entry["line"]
            known = type(index) is int and 0 <= index < self._count and isinstance(value, dict)
            if known and isinstance(value.get("error", ""), str):
                return index, value
        raise DataError(
            f"{self._path}:{line.number}: is damaged; delete that line, and the same command makes"
            " it again, or delete the file to start anew"
        )


def describe_job(
    program: str, input_path: PathLike, folder: PathLike, config: ModelConfig, **settings: Any
) -> dict[str, Any]:
    """Returns what determines the output of a program, JSON-ready.

    Args:
        program: its name.
        input_path: the file of dialogues; its content counts, not its name.
        folder: the model's folder.
        config: the model's shape.
        settings: whatever else changes what is written.
    """
    return {
        "program": program,
        "input": hash_file(expand_home(os.fspath(input_path))),
        "model": [os.fspath(folder), fingerprint_folder(folder), str(config)],
        "settings": settings,
    }
