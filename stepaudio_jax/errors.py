"""Defines the errors that users meet; messages name the key, file or line, and what to do.

A `StepAudioError` is a mistake that the user can correct; programs print it on one line and end
with exit code 2. A `RunError` ends a run that was well configured; its exit code says how to go on.
"""

from typing import ClassVar, Literal

EXIT_USER_ERROR = 2
EXIT_RUN_ERROR = 3
EXIT_RESUMABLE = 75  # EX_TEMPFAIL: start the same command again
EXIT_INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended
EXIT_BROKEN_PIPE = 141  # what a shell reports of a program whose output nobody reads any more

DataErrorKind = Literal["bad_record", "bad_audio", "too_long", "reward", "equal_pair", "no_verdict"]


class StepAudioError(ValueError):
    """A user's mistake: programs print it on one line and end with exit code 2."""

    exit_code: ClassVar[int] = EXIT_USER_ERROR


class ConfigError(StepAudioError):
    """A configuration key is unknown, missing, or has a value of the wrong type or range.

    Or settings contradict each other, or the mesh.
    """


class DataError(StepAudioError):
    """A file, one of its lines, or a clip in it cannot be used; the message names file and line.

    Attributes:
        kind: what is wrong with a record, as metrics count it; `data.on_KIND` says whether such
            records are skipped. "reward": a verifier failed, or the reward is not finite; no
            setting skips that. "equal_pair" and "no_verdict": a pair that does not say which reply
            is better, which objective=preference always leaves out.
    """

    def __init__(self, message: str, *, kind: DataErrorKind = "bad_record"):
        super().__init__(message)
        self.kind: DataErrorKind = kind


class ConsentError(DataError):
    """An annotator has not agreed to the text of a study."""


class ConflictError(DataError):
    """What is sent contradicts what is kept: another verdict has this id or this assignment."""


class AudioError(StepAudioError):
    """A clip cannot be used; the message names the file, the reason, and what to do.

    Attributes:
        source: the file's path, or a name in angle brackets (`<bytes>` for a clip in memory).
        reason: the rest of the message.
    """

    def __init__(self, source: str, reason: str):
        # Both are kept in `args`, so that the error survives pickling out of a worker process.
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"audio {self.source}: {self.reason}"


class TextError(StepAudioError):
    """A tokenizer's files, a dialogue or a string cannot be used.

    The message names the file, or the dialogue's message by its number, from 1.
    """


class CheckpointError(StepAudioError):
    """A folder of weights is incomplete, malformed, or does not fit what was asked of it."""


class StorageError(StepAudioError, OSError):
    """A bucket cannot be used: it is not there, access is refused, or it does not answer.

    It is an OSError too, as what a local file system refuses; a missing object is an ordinary
    FileNotFoundError.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.strerror = message


class WorkerError(StepAudioError, ChildProcessError):
    """A process that prepares data has ended before its work was done, as for want of memory.

    It is an OSError too: what the run has learnt can be saved, and it can go on from there.
    """


class OutputError(StepAudioError):
    """An output cannot be written, or would replace what another program wrote."""


class LockHeldError(OutputError):
    """Another process holds the file, or this one does and must not open it again.

    Attributes:
        by_this_process: whether this process holds it.
    """

    def __init__(self, message: str, *, by_this_process: bool = False):
        super().__init__(message)
        self.by_this_process = by_this_process


class GenerationError(StepAudioError):
    """A request cannot be answered."""


class PlanError(StepAudioError):
    """A compiled program's text is not what the planner can read."""


class RunError(RuntimeError):
    """A run ends before its last step; programs print the message on one line."""

    @property
    def exit_code(self) -> int:
        """Returns the exit code of the program whose run ended so."""
        return EXIT_RUN_ERROR


class EndpointError(RunError):
    """A server refuses a question, or has no answer after all retries."""


class JudgeError(RunError):
    """A judge could not be asked, after all retries; or too many of its answers are of no use."""


class SimulatedUserError(RunError):
    """A simulated user could not be asked, or too many of its words did not come."""


class DivergedError(RunError):
    """Loss or gradient were not finite for too many steps in a row; the diagnosis is saved."""


class InterruptedRunError(RunError):
    """The run was told to stop: everything is saved, and the same command continues it.

    Attributes:
        by_keyboard: whether Ctrl-C stopped this process, and not a machine about to be taken away.
    """

    def __init__(self, message: str, *, by_keyboard: bool = False):
        super().__init__(message)
        self.by_keyboard = by_keyboard

    @property
    def exit_code(self) -> int:
        """Returns 130 after Ctrl-C, and 75 (start the same command again) otherwise."""
        return EXIT_INTERRUPTED if self.by_keyboard else EXIT_RESUMABLE


class ApiError(Exception):
    """A request to a server is refused.

    Attributes:
        status: the HTTP status.
        message: one line for the person who sent it.
        param: the key of the body that is to blame; None for none.
        code: a word that programs compare; None for none.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}


class ClientGoneError(Exception):
    """A server's client has closed its connection."""
