"""Where a run's figures go: `metrics.jsonl`, TensorBoard and a progress bar."""

import json
import logging
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import tqdm

from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import atomic_text_writer
from stepaudio_jax.training.run_folder import METRICS

logger = logging.getLogger(__name__)


class MetricsWriter:
    """Writes one line of `metrics.jsonl` and one TensorBoard point a logged step; of several processes only the first does.

    A run that resumes from a step drops what was logged after it, so every step stands once, in
    order.
    """

    def __init__(self, run_dir: pathlib.Path, *, stage: str, resume_step: int):
        self._stage = stage
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._path = run_dir / METRICS
        if self._path.exists():
            drop_steps_after(self._path, stage, resume_step)
        from tensorboardX import (
            SummaryWriter,  # slow to import where torch is installed, for it brings that along
        )

        self._board = SummaryWriter(
            str(run_dir / "tensorboard" / stage), purge_step=resume_step + 1
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs the figures of a step of this stage."""
        if not self._writes:
            return
        line = {"stage": self._stage, "step": step} | {
            name: float(value) for name, value in figures.items()
        }
        with self._path.open(
            "a", encoding="utf-8"
        ) as file:  # a bucket that is mounted takes a file when it is closed
            file.write(json.dumps(line) + "\n")
        for name, value in figures.items():
            self._board.add_scalar(name, float(value), step)

    def is_missing(self, step: int, figure: str) -> bool:
        """Whether no line of this step of the stage has the figure; every process is told the same."""
        return broadcast_json(self._line_of(step, figure) is None if self._writes else None)

    def add_to_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs figures of a step that others are logged of already, in the same line."""
        if not self._writes:
            return
        before = self._line_of(step) or {}
        drop_steps_after(self._path, self._stage, step - 1)
        self.write(
            step,
            {name: value for name, value in before.items() if name not in ("stage", "step")}
            | dict(figures),
        )

    def _line_of(self, step: int, figure: str = "step") -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        for line in read_step_lines(self._path):
            if (line["stage"], line["step"]) == (self._stage, step) and figure in line:
                return line
        return None

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._writes:
            self._board.close()


def read_step_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of a file that a run writes step by step, each an object with its stage and step.

    A last line that a kill cut short is left out; so is any other line that is damaged, with a
    warning.
    """
    lines = []
    *texts, last = path.read_bytes().split(b"\n")
    for number, text in enumerate([*texts, last] if _is_json(last) else texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if (
            isinstance(line, dict)
            and isinstance(line.get("stage"), str)
            and type(line.get("step")) is int
        ):
            lines.append(line)
        else:
            logger.warning("%s:%d is damaged, and left out", path, number)
    return lines


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def drop_steps_after(path: pathlib.Path, stage: str, step: int) -> None:
    """Rewrites a file that a run writes step by step without lines of `stage` after `step`."""
    kept = [
        line for line in read_step_lines(path) if line["stage"] != stage or line["step"] <= step
    ]
    with atomic_text_writer(path) as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)


def progress_bar(stage: str, steps: int, done: int) -> "tqdm.tqdm[None]":
    """A bar on standard error that counts steps of a stage; of several processes only the first shows it."""
    return tqdm.tqdm(
        total=steps,
        initial=done,
        desc=stage,
        unit="step",
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=jax.process_index() != 0,
    )


def progress_bar_metrics(figures: Mapping[str, float]) -> dict[str, str]:
    """The few figures that the progress bar shows."""
    shown = {
        "loss": f"{figures['loss']:.3f}",
        "tok/s": f"{figures['tokens_per_second']:.0f}",
        "audio-s/s": f"{figures['audio_seconds_per_second']:.1f}",
        "data-wait": f"{100 * figures['data_wait_fraction']:.0f}%",
    }
    return shown
