"""Lets one of TRL's trainers make one step at a time, so that it can take turns with others."""

import threading
from collections.abc import Callable
from typing import Any


class TrainerSteps:
    """Runs a trainer's loop in a thread that waits after each step for the next call.

    Args:
        make_trainer: makes the trainer, given the callbacks that it must be given.
    """

    def __init__(self, make_trainer: Callable[[list[Any]], Any]):
        from transformers import TrainerCallback

        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        steps = self

        class Pause(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                steps._go.acquire()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                steps._done.release()
                steps._go.acquire()

        self._trainer = make_trainer([Pause()])
        threading.Thread(target=self._train, daemon=True).start()

    def __call__(self) -> None:
        """Makes one step.

        Raises:
            BaseException: whatever ended the trainer's loop.
        """
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _train(self) -> None:
        try:
            self._trainer.train()
        except BaseException as error:  # raised where the step is waited for
            self._error = error
            self._done.release()
