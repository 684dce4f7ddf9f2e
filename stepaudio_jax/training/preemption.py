"""Why a run ends before its last step, and how it notices that it must."""

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from stepaudio_jax.config import DataConfig
from stepaudio_jax.errors import EXIT_INTERRUPTED, DataError, InterruptedRunError


def data_error(
    error: DataError | OSError,
    stage: str,
    saved_step: int | None,
    data: DataConfig | None,
    section: str = "data",
) -> DataError:
    """Returns the error of a run that ends because data cannot be used: what is wrong, what is saved, how to go on.

    Args:
        error: what ended it.
        stage: its name.
        saved_step: steps of the stage that are saved; None where nothing is.
        data: the settings that say what is done with such data; None where none does.
        section: of the stage's configuration, where they stand.
    """
    skip = ""
    if isinstance(error, DataError) and data is not None:
        name = f"on_{error.kind}"
        if getattr(data, name) == "error" and f"{name}='skip'" not in str(error):
            skip = f", or skipped by {section}.{name}='skip'"
    saved = (
        "nothing of it is saved yet" if saved_step is None else f"step {saved_step} of it is saved"
    )
    return DataError(
        f"{error}; this ended stage {stage!r}, and {saved}: once that is mended{skip}, the same command goes on"
    )


class PreemptionNotice:
    """Whether SIGTERM or Ctrl-C has come, to this process or, where the run has several, to any of them."""

    def __init__(self) -> None:
        self._received = False
        self._by_keyboard = False
        self._handled = 0  # times that the main thread has come to Ctrl-C

    def should_stop(self, step: int, *, within_step: bool = False) -> bool:
        """Asked after each step, with the same number in every process, greater than before; they then stop at the same step.

        And once before a stage's first step, with that of the last step done: a notice counts from
        the number asked last. Where steps are long, within each of them too, before it has changed
        anything.
        """
        if jax.process_count() > 1:
            # Of the next number after the largest that any process has asked, and of no other, JAX
            # says that it is the one to stop at: none may be left out, by a stage that asks once a
            # step either. Nor may one be -1, which is its "not yet".
            numbers = (2 * step + 1,) if within_step else (2 * step + 1, 2 * step + 2)
            answers = [multihost_utils.reached_preemption_sync_point(number) for number in numbers]
            self._received |= any(answers)
        return self._received

    def interrupted_error(self, stage: str, step: int) -> InterruptedRunError:
        """Returns what a stage raises once it has saved its state after `step` steps."""
        message = f"stopped at step {step} of stage {stage!r}, and saved; the same command goes on"
        return InterruptedRunError(message, by_keyboard=self._by_keyboard)

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Takes SIGTERM and Ctrl-C as a notice for the time being; a second Ctrl-C ends the process at once.

        With several processes JAX's preemption service takes SIGTERM, and Ctrl-C is passed on to
        it. A process that was started with Ctrl-C ignored, as a shell's background jobs are, goes
        on ignoring it. Only the main thread can listen.
        """
        with contextlib.ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                if jax.process_count() == 1:
                    stack.enter_context(_handled(signal.SIGTERM, self._note))
                if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                    stack.enter_context(self._keyboard())
            yield

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True

    @contextlib.contextmanager
    def _keyboard(self) -> Iterator[None]:
        """Takes Ctrl-C, also while the main thread is in native code: compiling, or waiting for a device.

        Python runs handlers between two instructions of the main thread, which may be minutes away.
        The number of a signal is written to a pipe at once, where a thread waits for it.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watcher = threading.Thread(
            target=self._watch, args=(reading,), name="stepaudio-ctrl-c", daemon=True
        )
        watcher.start()
        try:
            with _handled(signal.SIGINT, self._raise_again):
                yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writing)  # which ends the thread
            watcher.join()
            os.close(reading)

    def _raise_again(self, number: int, frame: types.FrameType | None) -> None:
        """Handles the signal in the main thread: where the process is not ended, a second Ctrl-C is an exception."""
        self._handled += 1
        if self._handled > 1:
            raise KeyboardInterrupt

    def _watch(self, reading: int) -> None:
        times = 0
        while numbers := os.read(reading, 64):
            for _ in range(numbers.count(signal.SIGINT)):
                times += 1
                self._on_keyboard(times)

    def _on_keyboard(self, times: int) -> None:
        if times == 1:
            self._by_keyboard = True
            _say("stopping: the step under way is finished and saved; Ctrl-C again ends at once")
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self._received = True
        elif not _is_interactive():
            _say("ended at once; the same command goes on from the last checkpoint")
            os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def _handled(number: int, handler: Callable[[int, types.FrameType | None], None]) -> Iterator[None]:
    """Gives a signal a handler for the time being."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _is_interactive() -> bool:
    """Returns whether this is a notebook or a prompt, whose process is not ours to end: there an exception is raised."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def _say(text: str) -> None:
    """Prints a line below the progress bar; of several processes the first one does."""
    if jax.process_index() == 0:
        print(f"\n{text}", file=sys.stderr, flush=True)
