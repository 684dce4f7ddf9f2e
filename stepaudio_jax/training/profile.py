"""A profile of a few steps of a run, for TensorBoard and XProf."""

import pathlib
from typing import Any

import jax

PROFILE = "profile"


class StepProfile:
    """Profiles the steps that the configuration asks for, into `RUN_DIR/profile`.

    Args:
        run_dir: of the run.
        steps: first and last step, counted over all stages; None profiles nothing.
    """

    def __init__(self, run_dir: pathlib.Path, steps: tuple[int, int] | None):
        self._folder = run_dir / PROFILE
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        """Starts the profile if this is its first step."""
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, outputs: Any) -> None:
        """Ends the profile if this was its last step, once `outputs` of the step are there."""
        if self._steps is not None and step == self._steps[1] and self._running:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends a profile that is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
