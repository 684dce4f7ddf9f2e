"""Why a run ends before its last step, and how it notices that it must."""

import contextlib
import signal
import types
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from stepaudio_jax.data import DataError, defect_kind


class InterruptedRunError(RuntimeError):
    """The machine is to be taken away: everything is saved, and the same command goes on from there."""


class DivergedError(RuntimeError):
    """Loss or gradient were not finite for too many steps in a row; the diagnosis is saved."""


def data_error(error: DataError | OSError, stage: str, saved_step: int | None, section: str | None = "data") -> DataError:
    """Returns the error of a run that ends because data cannot be used: what is wrong, what is saved, how to go on.

    Args:
        error: what ended it.
        stage: its name.
        saved_step: steps of the stage that are saved; None where nothing is.
        section: of the stage's configuration, which says what is done with such data; None where no setting does.
    """
    skip = ""
    if isinstance(error, DataError) and section is not None:
        skip = f", or skipped by {section}.on_{defect_kind(error)}='skip'"
    saved = "nothing of it is saved yet" if saved_step is None else f"step {saved_step} of it is saved"
    return DataError(
        f"{error}; this ended stage {stage!r}, and {saved}: once that is mended{skip}, the same command goes on"
    )


class StopSignal:
    """Whether SIGTERM has come, to this process or, where the run has several, to any of them."""

    def __init__(self) -> None:
        self._received = False

    def received(self, step: int, *, within: bool = False) -> bool:
        """Asked after each step, with the same number in every process, greater than before; they then stop at the same step.

        And once before a stage's first step, with that of the last step done: a notice counts from the number asked last. Where
        steps are long, within each of them too, before it has changed anything.
        """
        if jax.process_count() > 1:
            # Of the next number after the largest that any process has asked, and of no other, JAX says that it is the one to
            # stop at: none may be left out, by a stage that asks once a step either. Nor may one be -1, which is its "not yet".
            numbers = (2 * step + 1,) if within else (2 * step + 1, 2 * step + 2)
            answers = [multihost_utils.reached_preemption_sync_point(number) for number in numbers]
            self._received |= any(answers)
        return self._received

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM as a notice for the time being; with several processes JAX's preemption service does."""
        if jax.process_count() > 1:
            yield
            return

        def note(number: int, frame: types.FrameType | None) -> None:
            self._received = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
