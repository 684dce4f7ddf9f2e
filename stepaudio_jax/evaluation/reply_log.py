"""Keeps the replies of a model on disk as they come, so that an interrupted evaluation goes on."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.errors import DataError, LockHeldError, OutputError
from stepaudio_jax.evaluation.model_under_test import ModelReply
from stepaudio_jax.storage import JsonLine, JsonLinesFile, PathLike, to_path, truncate


class ReplyLog:
    """Replies by the id of their item, in an append-only file of JSON lines.

    Its first line says what the replies depend on. Items without a reply are not in it, so that
    they are asked again. How many items are asked may change from run to run.

    Args:
        path: of the file; None keeps the replies in memory.
        job: what the replies depend on, JSON-ready.

    Raises:
        DataError: a line is damaged; names it.
        OutputError: the file is of another job, or another process is writing it.
    """

    def __init__(self, path: PathLike | None, job: Mapping[str, Any]):
        self._path = to_path(path or "")
        self._job: dict[str, Any] = json.loads(json.dumps(job))  # as it is read again
        self._replies: dict[str, tuple[ModelReply, ...]] = {}
        self._file: JsonLinesFile | None = None
        if path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = JsonLinesFile(self._path, lock=True)
        except LockHeldError:
            raise OutputError(
                f"{self._path}: another evaluation is writing it; wait for it or stop it, or name"
                " another --output"
            ) from None
        try:
            self._read(self._file)
        except BaseException:
            self._file.close()
            raise

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._replies

    def __getitem__(self, item_id: str) -> tuple[ModelReply, ...]:
        return self._replies[item_id]

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, item_id: str, replies: tuple[ModelReply, ...]) -> None:
        """Keeps the replies to an item."""
        self._replies[item_id] = replies
        if self._file is not None:
            self._file.append(
                {"id": item_id, "replies": [dataclasses.asdict(reply) for reply in replies]}
            )

    def close(self) -> None:
        """Releases the file, which stays on disk."""
        if self._file is not None:
            self._file.close()

    def _read(self, file: JsonLinesFile) -> None:
        if not file.lines:
            # What a killed run began to write is the beginning of such a log.
            if not b'{"job"'.startswith(file.unfinished[:6]):
                raise OutputError(f"{self._path} is another program's file; name another --output")
            file.append({"job": self._job})
            return
        header, *lines = file.lines
        if not isinstance(header.value, dict) or header.value.keys() != {"job"}:
            raise self._damaged(header)
        self._check_job(header.value["job"])
        for line in lines:
            item_id, replies = self._parse(line)
            self._replies[item_id] = replies

    def _check_job(self, job: Any) -> None:
        if job == self._job:
            return
        earlier = job if isinstance(job, dict) else {}
        names = sorted({*earlier, *self._job})
        differences = [
            f"{name}: {truncate(repr(then))} then, {truncate(repr(now))} now"
            for name in names
            if (then := earlier.get(name)) != (now := self._job.get(name))
        ]
        raise OutputError(
            f"{self._path}: its replies were made otherwise ({'; '.join(differences)}); name"
            " another --output, or remove the file to ask again"
        )

    def _parse(self, line: JsonLine) -> tuple[str, tuple[ModelReply, ...]]:
        match line.value:
            case {"id": str(item_id), "replies": list(replies)} if replies:
                try:
                    return item_id, tuple(
                        ModelReply(**{**reply, "problems": tuple(reply["problems"])})
                        for reply in replies
                    )
                except (TypeError, KeyError):
                    pass
        raise self._damaged(line)

    def _damaged(self, line: JsonLine) -> DataError:
        return DataError(
            f"{self._path}:{line.number}: is damaged; delete that line, and the same command asks"
            " again, or delete the file to start anew"
        )
