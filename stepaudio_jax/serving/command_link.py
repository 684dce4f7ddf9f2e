"""Lets the processes of a pod slice run the same engines: the first says what all of them do.

The engine's programs run on the devices of all processes, so each process must make the same calls
in the same order. Before every step the first process, which has the web server, sends the others
what it is about to do.
"""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import RepetitionDetectionConfig
from stepaudio_jax.generation import Prompt, Sampling
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.serving.jobs import Command, Job, Work


class CommandLink:
    """Sends commands from the first process to the others, and makes them there."""

    def __init__(self) -> None:
        self._numbers: dict[Job, int] = {}
        self._jobs: dict[int, Job] = {}
        self._next_number = 0

    @property
    def is_leader(self) -> bool:
        """Whether this process has the web server."""
        return jax.process_index() == 0

    def exchange(self, commands: Sequence[Command]) -> list[Command]:
        """Returns the commands of the first process, on every process.

        Args:
            commands: of this process; those of another than the first are ignored.
        """
        if self.is_leader:
            broadcast_json([self._encode(command) for command in commands])
            return list(commands)
        return [self._decode(value) for value in broadcast_json(None)]

    def forget(self, job: Job) -> None:
        """Forgets a job that has ended, on the process that calls it."""
        number = self._numbers.pop(job, None)
        if number is not None:
            self._jobs.pop(number, None)

    def _encode(self, command: Command) -> dict[str, Any]:
        value: dict[str, Any] = {"kind": command.kind}
        if command.job is None:
            return value
        if command.kind == "submit":
            self._add(command.job, self._next_number)
            self._next_number += 1
            value["work"] = encode_work(command.job.work)
        return {**value, "job": self._numbers.get(command.job)}

    def _decode(self, value: Mapping[str, Any]) -> Command:
        if value["kind"] == "submit":
            job = Job(decode_work(value["work"]))
            self._add(job, value["job"])
            return Command("submit", job)
        # A job that has ended is known to no process any more.
        return Command(value["kind"], self._jobs.get(value.get("job", -1)))

    def _add(self, job: Job, number: int) -> None:
        self._numbers[job], self._jobs[number] = number, job


def encode_work(work: Work) -> dict[str, Any]:
    """Returns work as a JSON value."""
    prompt = work.prompt
    return {
        **{
            name: getattr(work, name) for name in ("model", "client", "num_top_logprobs", "grammar")
        },
        "samplings": [dataclasses.asdict(sampling) for sampling in work.samplings],
        "tokens": _encode_array(prompt.tokens),
        "is_audio": _encode_array(prompt.is_audio),
        "chunks": [_encode_array(chunk) for chunk in prompt.chunks],
        "chunk_tokens": list(prompt.chunk_tokens),
    }


def decode_work(value: Mapping[str, Any]) -> Work:
    """Returns the work of `encode_work`."""
    tokens, is_audio = _decode_array(value["tokens"]), _decode_array(value["is_audio"])
    prompt = Prompt(
        tokens,
        is_audio,
        np.zeros(tokens.shape, bool),
        tuple(_decode_array(chunk) for chunk in value["chunks"]),
        tuple(value["chunk_tokens"]),
    )
    return Work(
        value["model"],
        value["client"],
        prompt,
        tuple(_decode_sampling(item) for item in value["samplings"]),
        num_top_logprobs=value["num_top_logprobs"],
        grammar=value["grammar"],
    )


def _decode_sampling(value: Mapping[str, Any]) -> Sampling:
    tuples = {name: tuple(value[name]) for name in ("stop_tokens", "stop_strings")}
    detection = RepetitionDetectionConfig(**value["repetition_detection"])
    return Sampling(**{**value, **tuples, "repetition_detection": detection})


def _encode_array(array: NDArray[Any]) -> list[Any]:
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return [array.dtype.str, list(array.shape), content]


def _decode_array(value: Sequence[Any]) -> NDArray[Any]:
    dtype, shape, content = value
    return np.frombuffer(base64.b64decode(content), np.dtype(dtype)).reshape(shape)
