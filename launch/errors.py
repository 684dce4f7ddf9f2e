"""Turns the errors that end a program into one line on standard error and an exit code."""

import contextlib
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator

from stepaudio_jax.errors import (
    EXIT_BROKEN_PIPE,
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
    that diverged or whose judge or simulated user failed too often, and 130 for Ctrl-C, also where
    it let a run save first. Where nobody reads what is printed any more, as behind `| head`, it is
    141 and nothing is said. Any other error keeps its traceback.

    Args:
        on_interrupt: what is printed at Ctrl-C, or a function that returns it: what is kept, and
            how to continue. Nothing is printed where it is empty.
    """
    # Orbax logs tracebacks of the errors that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        yield
        sys.stdout.flush()  # here, where it can still be told that nobody reads it
    except KeyboardInterrupt:
        if on_interrupt:
            advice = on_interrupt() if callable(on_interrupt) else on_interrupt
            print(f"\ninterrupted: {advice}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except (StepAudioError, RunError) as error:
        _exit(error, error.exit_code)
    except OSError as error:  # it names the file that the system refused, and why
        if isinstance(error, BrokenPipeError) and _drop_output():
            sys.exit(EXIT_BROKEN_PIPE)
        _exit(error, EXIT_USER_ERROR)


def describe_partial_output(output: str) -> str:
    """Returns what is printed at Ctrl-C by a job whose finished lines stay in `OUTPUT.partial`."""
    partial = f"{output}.partial"
    if not appended_exists(partial):
        return "nothing was written yet; start the same command again"
    return f"finished lines are kept in {partial}; the same command continues from there"


def _drop_output() -> bool:
    """Returns whether nobody reads standard output, and if so, leads the rest of it to nowhere.

    Otherwise the interpreter would try to write it at its end, and print a traceback.
    """
    try:
        output = sys.stdout.fileno()
    except OSError:  # it is no file, and another pipe is broken
        return False
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True


def _exit(error: Exception, code: int) -> None:
    prefix = "" if code in (EXIT_RESUMABLE, EXIT_INTERRUPTED) else "error: "
    message = " ".join(str(error).splitlines())
    print(f"{prefix}{truncate_words(message)}", file=sys.stderr)
    sys.exit(code)
