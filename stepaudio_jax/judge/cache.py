"""What a judge has answered, kept for the runs to come."""

import dataclasses
import json
import logging
import os
import pathlib
import threading
from typing import BinaryIO

import jax

from stepaudio_jax.parallel import broadcast_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class JudgeAnswer:
    """What a judge wrote, and whether it was cut at its limit of length."""

    text: str
    truncated: bool = False


class AnswerCache:
    """Answers by the hash of what was asked; in a file, one JSON object a line, which is only ever added to.

    Of several processes the first reads and writes the file, and tells the others what it held
    where they answer by it too.

    Args:
        path: the file; None keeps the answers in memory only.
        shared: whether every process needs what the file held.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, shared: bool):
        self._answers: dict[str, JudgeAnswer] = {}
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        if path is None:
            return
        if jax.process_index() == 0:
            self._open(pathlib.Path(path))
        if shared:
            held = broadcast_json(
                {key: dataclasses.asdict(answer) for key, answer in self._answers.items()}
            )
            self._answers = {key: JudgeAnswer(**answer) for key, answer in held.items()}

    def _open(self, file: pathlib.Path) -> None:
        """Reads the file's answers, and opens it behind the last of them.

        A line that is no answer is left where it is, with a warning: the judge is asked again.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if file.exists():
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.endswith(b"\n"):
                        break  # it was being written when the process died
                    whole += len(line)
                    try:
                        key, answer = _read_line(line)
                    except ValueError as error:
                        logger.warning(
                            "%s:%d: not an answer of a judge, who is asked again: %s",
                            file,
                            number,
                            error,
                        )
                        continue
                    if answer is None:
                        self._answers.pop(key, None)
                    else:
                        self._answers[key] = answer
        opened = file.open("r+b" if file.exists() else "wb")
        opened.truncate(whole)
        opened.seek(whole)
        self._file = opened

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> JudgeAnswer:
        return self._answers[key]

    def add(self, key: str, answer: JudgeAnswer) -> None:
        """Keeps an answer; it is on disk when this returns."""
        with self._lock:
            self._answers[key] = answer
            self._write({"key": key, **dataclasses.asdict(answer)})

    def discard(self, key: str) -> None:
        """Keeps an answer no longer, if there is one: the judge will be asked again."""
        with self._lock:
            if self._answers.pop(key, None) is not None:
                self._write({"key": key, "text": None})

    def _write(self, line: dict[str, object]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()


def _read_line(line: bytes) -> tuple[str, JudgeAnswer | None]:
    """Returns the key and the answer of a line of the file; None for an answer that is kept no longer.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(line, parse_int=float)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    match value:
        case {"key": str(key), "text": None}:
            return key, None
        case {"key": str(key), "text": str(text), "truncated": bool(truncated)}:
            return key, JudgeAnswer(text, truncated)
    raise ValueError(f"{line[:80]!r} lacks 'key', 'text' or 'truncated'")
