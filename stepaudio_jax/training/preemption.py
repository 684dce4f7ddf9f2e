"""How a run notices that it must stop, and what it says when it ends before its last step."""

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


class PreemptionNotice:
    """Tells whether SIGTERM or Ctrl-C has come, to any process of the run."""

    def __init__(self) -> None:
        self._received = False
        self._by_keyboard = False
        self._num_handled = 0  # Ctrl-C signals that the main thread has handled

    def should_stop(self, step: int, *, within_step: bool = False) -> bool:
        """Returns whether the run must stop now; all processes stop at the same step.

        Ask after every step, and once before a stage's first step, with the number of steps of the
        run that are done: a notice counts from the number that was asked last. Where steps are
        long, ask `within_step` too, before the step changes anything.

        Args:
            step: the same number in every process, greater than at the last call.
            within_step: whether the step is still being computed.
        """
        if jax.process_count() > 1:
            # JAX stops at the number after the largest that any process has asked about, and says
            # so for that number only: none may be left out, even by a stage that asks once a step.
            # Nor may a number be -1, by which JAX means "not yet".
            numbers = (2 * step + 1,) if within_step else (2 * step + 1, 2 * step + 2)
            answers = [multihost_utils.reached_preemption_sync_point(number) for number in numbers]
            self._received |= any(answers)
        return self._received

    def interrupted_error(self, stage: str, step: int) -> InterruptedRunError:
        """Returns what a stage raises once it has saved its state after `step` steps."""
        message = (
            f"stopped at step {step} of stage {stage!r}, and saved; the same command continues it"
        )
        return InterruptedRunError(message, by_keyboard=self._by_keyboard)

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Takes SIGTERM and Ctrl-C as a notice inside; a second Ctrl-C ends the process at once.

        With several processes JAX's preemption service handles SIGTERM, and Ctrl-C is passed on to
        it. A process that was started with Ctrl-C ignored, like a shell's background jobs, still
        ignores it. Threads other than the main one cannot handle signals: there this does nothing.
        """
        with contextlib.ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                if jax.process_count() == 1:
                    stack.enter_context(_signal_handler(signal.SIGTERM, self._on_sigterm))
                if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                    stack.enter_context(self._handle_keyboard())
            yield

    def _on_sigterm(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True

    @contextlib.contextmanager
    def _handle_keyboard(self) -> Iterator[None]:
        """Handles Ctrl-C even while the main thread compiles, or waits for a device.

        Python runs signal handlers between two instructions of the main thread, which may take
        minutes. But it writes the signal's number to a pipe at once, which a thread reads.
        """
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        watcher = threading.Thread(
            target=self._watch, args=(read_end,), name="stepaudio-ctrl-c", daemon=True
        )
        watcher.start()
        try:
            with _signal_handler(signal.SIGINT, self._on_sigint):
                yield
        finally:
            signal.set_wakeup_fd(previous)
            os.close(write_end)  # ends the thread
            watcher.join()
            os.close(read_end)

    def _on_sigint(self, number: int, frame: types.FrameType | None) -> None:
        """Raises at a second Ctrl-C, where the watching thread does not end the process."""
        self._num_handled += 1
        if self._num_handled > 1:
            raise KeyboardInterrupt

    def _watch(self, read_end: int) -> None:
        times = 0
        while numbers := os.read(read_end, 64):
            for _ in range(numbers.count(signal.SIGINT)):
                times += 1
                self._on_ctrl_c(times)

    def _on_ctrl_c(self, times: int) -> None:
        if times == 1:
            self._by_keyboard = True
            _print_below_bar(
                "stopping: the step under way is finished and saved; Ctrl-C again ends at once"
            )
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self._received = True
        elif not _is_interactive():
            _print_below_bar("ended at once; the same command continues from the last checkpoint")
            os._exit(EXIT_INTERRUPTED)


def data_error(
    error: DataError | OSError,
    stage: str,
    saved_step: int | None,
    data: DataConfig | None,
    section: str = "data",
) -> DataError:
    """Returns the error of a run that ends because of its data: what is wrong, saved, and to do.

    Args:
        error: what is wrong with the data.
        stage: its name.
        saved_step: the stage's newest saved step; None: none is saved.
        data: whose settings say what to do with such data; None: no setting does.
        section: of the stage's configuration that holds these settings.
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
        f"{error}; this ended stage {stage!r}, and {saved}: once that is fixed{skip}, "
        "the same command continues the run"
    )


@contextlib.contextmanager
def _signal_handler(
    number: int, handler: Callable[[int, types.FrameType | None], None]
) -> Iterator[None]:
    """Sets the handler of a signal inside."""
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


def _is_interactive() -> bool:
    """Returns whether this is a notebook or a prompt: there Ctrl-C must not end the process."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def _print_below_bar(text: str) -> None:
    """Prints a line below the progress bar; only the first process does."""
    if jax.process_index() == 0:
        print(f"\n{text}", file=sys.stderr, flush=True)
