"""Users' mistakes become one line on standard error and exit code 2; anything else keeps its traceback."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator

from stepaudio_jax.config import ConfigError
from stepaudio_jax.errors import StepAudioError
from stepaudio_jax.storage import OutputError, shorten_words

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended
EXIT_RESUMABLE = 75  # EX_TEMPFAIL: start the same command again
EXIT_DIVERGED = 3


def user_errors() -> tuple[type[Exception], ...]:
    """Returns the errors that are a user's mistake.

    Their modules are imported here, and not with the program: some take seconds, and mistakes in
    the command line need none.
    """
    from stepaudio_jax.audio import AudioError
    from stepaudio_jax.data import DataError
    from stepaudio_jax.generation import GenerationError
    from stepaudio_jax.hub import CheckpointError
    from stepaudio_jax.parallel import ShardingError
    from stepaudio_jax.reports import ReportError
    from stepaudio_jax.text import TextError

    return (
        *(
            AudioError,
            ConfigError,
            StepAudioError,
            DataError,
            CheckpointError,
            GenerationError,
            OutputError,
            ReportError,
        ),
        *(ShardingError, TextError),
        # it names the file that the system refused, and why: a full disk, a folder that may not be
        # written
        OSError,
    )


@contextlib.contextmanager
def exit_on_error(on_interrupt: str | Callable[[], str] = "") -> Iterator[None]:
    """Turns what ends a program into one line on standard error and an exit code.

    2 for a user's mistake, 75 for a run that was told to stop and has saved everything, 3 for one
    that diverged or whose judge gave too few verdicts; and 130 for Ctrl-C, also where it let a run
    save first.

    Args:
        on_interrupt: what is said at Ctrl-C, or what says it: what is kept, and how to go on.
            Empty: nothing is said.
    """
    logging.getLogger("absl").setLevel(
        logging.CRITICAL
    )  # Orbax's chatter, and its traces of what it raises
    try:
        yield
    except KeyboardInterrupt:
        if on_interrupt:
            print(
                f"\ninterrupted: {on_interrupt() if callable(on_interrupt) else on_interrupt}",
                file=sys.stderr,
            )
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        mistake = "" if code in (EXIT_RESUMABLE, EXIT_INTERRUPTED) else "error: "
        print(f"{mistake}{shorten_words(' '.join(str(error).splitlines()))}", file=sys.stderr)
        sys.exit(code)


def kept_lines(output: str) -> str:
    """Returns what is said at Ctrl-C of a job whose finished lines are kept in `OUTPUT.partial`."""
    partial = pathlib.Path(f"{output}.partial")
    if not partial.exists():
        return "nothing was written yet; start the same command again"
    return f"finished lines are kept in {partial}; the same command goes on from there"


def _exit_code(error: Exception) -> int | None:
    """Returns the exit code of a program that an error ends; None for one that is no user's doing."""
    if isinstance(error, (ConfigError, OutputError, OSError)):  # whose modules need no JAX
        return EXIT_USER_ERROR
    if isinstance(error, user_errors()):
        return EXIT_USER_ERROR
    from stepaudio_jax.judge.judge import JudgeError
    from stepaudio_jax.training.preemption import DivergedError, InterruptedRunError

    if isinstance(error, InterruptedRunError):
        return EXIT_INTERRUPTED if error.by_keyboard else EXIT_RESUMABLE
    return EXIT_DIVERGED if isinstance(error, DivergedError | JudgeError) else None
