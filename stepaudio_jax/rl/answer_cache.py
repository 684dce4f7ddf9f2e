"""What a judge has answered, kept for the runs to come."""

import dataclasses
import json
import os
import pathlib
import threading
from typing import BinaryIO

import jax

from stepaudio_jax.parallel import told_by_first


@dataclasses.dataclass(frozen=True)
class JudgeAnswer:
    """What a judge wrote, and whether it was cut at its limit of length."""

    text: str
    truncated: bool = False


class AnswerCache:
    """Answers by the hash of what was asked; in a file, one JSON object a line, which is only ever added to.

    Of several processes the first reads and writes the file, and tells the others what it held where they answer by it too.

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
            held = told_by_first({key: dataclasses.asdict(answer) for key, answer in self._answers.items()})
            self._answers = {key: JudgeAnswer(**answer) for key, answer in held.items()}

    def _open(self, file: pathlib.Path) -> None:
        """Reads the file's answers, and opens it behind the last of them."""
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if file.exists():
            with file.open("rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # it was being written when the process died
                    value = json.loads(line)
                    if value["text"] is None:
                        self._answers.pop(value["key"], None)
                    else:
                        self._answers[value["key"]] = JudgeAnswer(value["text"], value["truncated"])
                    whole += len(line)
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

    def forget(self, key: str) -> None:
        """Keeps an answer no longer, if there is one: the judge will be asked again."""
        with self._lock:
            if self._answers.pop(key, None) is not None:
                self._write({"key": key, "text": None})

    def _write(self, line: dict[str, object]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
