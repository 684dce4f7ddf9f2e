"""The answers of a judge, kept in a file across runs."""

import dataclasses
import logging
import threading

import jax

from stepaudio_jax.judge.query import JudgeAnswer, JudgeInput
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import JsonLine, JsonLinesFile, Path, PathLike, to_path

logger = logging.getLogger(__name__)


class AnswerCache:
    """Answers by the hash of their question, in an append-only file of JSON lines.

    Of several processes only the first reads and writes the file.

    Args:
        path: the file's path; None keeps the answers in memory only.
        replicated: whether the first process sends what the file held to all others.
    """

    def __init__(self, path: PathLike | None, *, replicated: bool):
        self._answers: dict[str, JudgeAnswer] = {}
        self._lock = threading.Lock()
        self._file: JsonLinesFile | None = None
        if path is None:
            return
        if jax.process_index() == 0:
            self._open(to_path(path))
        if replicated:
            answers = broadcast_json(
                {key: dataclasses.asdict(answer) for key, answer in self._answers.items()}
            )
            self._answers = {key: JudgeAnswer(**answer) for key, answer in answers.items()}

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> JudgeAnswer:
        return self._answers[key]

    def add(self, key: str, answer: JudgeAnswer, given: JudgeInput | None = None) -> None:
        """Keeps an answer; it is flushed to the file before this returns. Thread-safe.

        Args:
            key: of its question.
            answer: to be kept.
            given: what the judge was given of a dialogue's clips, for the reader of the file; None
                where there was no dialogue.
        """
        line: dict[str, object] = {"key": key, **dataclasses.asdict(answer)}
        if given is not None:
            line["given"] = dataclasses.asdict(given)
        with self._lock:
            self._answers[key] = answer
            self._write(line)

    def discard(self, key: str) -> None:
        """Removes an answer, if there is one, so that the judge is asked again. Thread-safe."""
        with self._lock:
            if self._answers.pop(key, None) is not None:
                self._write({"key": key, "text": None})

    def flush(self) -> None:
        """Sends what is not yet in a bucket; a local file has all of it."""
        if self._file is not None:
            self._file.flush()

    def _open(self, path: Path) -> None:
        """Reads the file's answers and opens it for appending, without an unfinished last line.

        A damaged line stays in the file, with a warning: its question is asked again.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = JsonLinesFile(path)
        for line in self._file.lines:
            self._read(line, f"{path}:{line.number}")

    def _read(self, line: JsonLine, origin: str) -> None:
        try:
            key, answer = _parse_line(line)
        except ValueError as error:
            logger.warning("%s: not an answer of a judge, who is asked again: %s", origin, error)
            return
        if answer is None:
            self._answers.pop(key, None)
        else:
            self._answers[key] = answer

    def _write(self, line: dict[str, object]) -> None:
        if self._file is not None:
            self._file.append(line)


def _parse_line(line: JsonLine) -> tuple[str, JudgeAnswer | None]:
    """Returns the key and the answer of a line; None for the answer where it was discarded.

    Raises:
        ValueError: the line is of neither form.
    """
    match line.value:
        case {"key": str(key), "text": None}:
            return key, None
        case {"key": str(key), "text": str(text), "truncated": bool(truncated)}:
            return key, JudgeAnswer(text, truncated)
    raise ValueError(f"{line.content[:80]!r} lacks 'key', 'text' or 'truncated'")
