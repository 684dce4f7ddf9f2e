"""Turns the errors that end a program into one line on standard error and an exit code."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from stepaudio_jax.errors import (
    EXIT_INTERRUPTED,
    EXIT_RESUMABLE,
    EXIT_USER_ERROR,
    RunError,
    StepAudioError,
)
from stepaudio_jax.storage import appended_exists, truncate_words


@contextlib.contextmanager
def exit_on_error(on_interrupt: str | Callable[[], str] = "") -> Iterator[None]:
    """Turns what ends a program into one line on standard error and an exit code.

    2 for a user's mistake, 75 for a run that was told to stop and has saved everything, 3 for one
    that diverged or whose judge gave too few verdicts, and 130 for Ctrl-C, also where it let a run
    save first. Any other error keeps its traceback.

    Args:
        on_interrupt: what is printed at Ctrl-C, or a function that returns it: what is kept, and
            how to continue. Nothing is printed where it is empty.
    """
    # Orbax logs tracebacks of the errors that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        yield
    except KeyboardInterrupt:
        if on_interrupt:
            advice = on_interrupt() if callable(on_interrupt) else on_interrupt
            print(f"\ninterrupted: {advice}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except (StepAudioError, RunError) as error:
        _exit(error, error.exit_code)
    except OSError as error:  # it names the file that the system refused, and why
        _exit(error, EXIT_USER_ERROR)


def describe_partial_output(output: str) -> str:
    """Returns what is printed at Ctrl-C by a job whose finished lines stay in `OUTPUT.partial`."""
    partial = f"{output}.partial"
    if not appended_exists(partial):
        return "nothing was written yet; start the same command again"
    return f"finished lines are kept in {partial}; the same command continues from there"


def _exit(error: Exception, code: int) -> None:
    prefix = "" if code in (EXIT_RESUMABLE, EXIT_INTERRUPTED) else "error: "
    message = " ".join(str(error).splitlines())
    print(f"{prefix}{truncate_words(message)}", file=sys.stderr)
    sys.exit(code)
