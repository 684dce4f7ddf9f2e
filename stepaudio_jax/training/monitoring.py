"""What is kept of a run that diverged, to find out why."""

import contextlib
import json
import logging
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import tqdm

from stepaudio_jax.data import Batch
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import StepLog
from stepaudio_jax.training.run_folder import METRICS
from stepaudio_jax.training.train_step import Metrics

# Where a run's figures go: `metrics.jsonl`, TensorBoard and a progress bar.

logger = logging.getLogger(__name__)


class MetricsWriter:
    """Writes one line of `metrics.jsonl` and one TensorBoard point a logged step; of several processes only the first does.

    A run that resumes from a step drops what was logged after it, so every step stands once, in
    order.
    """

    def __init__(self, run_dir: pathlib.Path, *, stage: str, resume_step: int):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._log = StepLog(run_dir / METRICS, stage, resume_step)
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
        self._log.append(step, {name: float(value) for name, value in figures.items()})
        for name, value in figures.items():
            self._board.add_scalar(name, float(value), step)

    def is_missing(self, step: int, figure: str) -> bool:
        """Whether no line of this step of the stage has the figure; every process is told the same."""
        return broadcast_json(self._log.find(step, figure) is None if self._writes else None)

    def add_to_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs figures of a step that others are logged of already, in the same line."""
        if not self._writes:
            return
        before = self._log.find(step) or {}
        self._log.drop_after(step - 1)
        self.write(
            step,
            {name: value for name, value in before.items() if name not in ("stage", "step")}
            | dict(figures),
        )

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._writes:
            self._board.close()


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


# Throughput and means of the steps since the last log line.

_UNCHANGED = (
    "skipped_steps",
    "zero_gradient_steps",
)  # 1 in the metrics of a step that changed nothing, and why
_COUNTS = ("tokens", "loss_tokens", "audio_seconds", *_UNCHANGED)


class ThroughputMeter:
    """Collects the metrics of steps without waiting for them; `figures` waits once and starts anew.

    Args:
        flops_per_step: of the whole job, by formula.
        peak_flops: of one device; None where it is not known, and nothing is said of utilisation
            then.
    """

    def __init__(self, flops_per_step: float, peak_flops: float | None) -> None:
        self.history: list[dict[str, float]] = []  # every metric of the steps of the last `figures`
        self._flops_per_step, self._peak_flops = flops_per_step, peak_flops
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="stepaudio-meter")
        self._computed: Future[float] | None = None  # when the last step was
        self._born = time.perf_counter()
        self._useful = 0.0  # seconds of steps that count, so far
        self._compiled = 0.0
        self._restart()

    def _restart(self) -> None:
        self._metrics: list[Metrics] = []
        self._start = time.perf_counter()
        self._waited = 0.0
        self._saved = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside in which no step was being computed as waiting for data."""
        start = time.perf_counter()
        yield
        if self._computed is None or self._computed.done():
            idle_since = start if self._computed is None else max(start, self._computed.result())
            self._waited += time.perf_counter() - idle_since

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Leaves the first call of a step, which compiles it, out of the throughput."""
        start = time.perf_counter()
        yield
        self._compiled += time.perf_counter() - start
        self._start += time.perf_counter() - start

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Counts the time inside as waiting for a checkpoint."""
        jax.block_until_ready(self._metrics)
        start = time.perf_counter()
        yield
        self._saved += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the throughput."""
        jax.block_until_ready(self._metrics)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def add(self, metrics: Metrics) -> None:
        """Takes one step's metrics, still being computed."""
        self._metrics.append(metrics)
        self._computed = self._watch.submit(_when_computed, metrics)

    def summary(self) -> dict[str, float]:
        """Of the steps since the last call.

        Means of metrics over the steps that changed something; how many were skipped, and how many
        had nothing to learn; tokens, audio seconds and steps a second, in all and a device; the
        shares of time that data and checkpoints took. `model_flops_utilization` is the share of the
        devices' peak. `goodput` is the share of this process's time, since the stage began, that
        went into steps that changed something: the rest is compilation, evaluation, checkpoints and
        waiting for data.
        """
        steps = [
            {name: float(value) for name, value in step.items()}
            for step in jax.device_get(self._metrics)
        ]
        now = time.perf_counter()
        elapsed, devices = now - self._start, jax.device_count()
        unchanged = {name: sum(step[name] for step in steps) for name in _UNCHANGED}
        taken = [step for step in steps if not any(step[name] for name in _UNCHANGED)] or steps
        self._useful += (elapsed - self._waited - self._saved) * (
            1 - sum(unchanged.values()) / len(steps)
        )
        figures = {
            name: sum(step[name] for step in taken) / len(taken)
            for name in taken[0]
            if name not in _COUNTS
        }
        for name in ("tokens", "audio_seconds"):
            rate = sum(step[name] for step in steps) / elapsed
            figures |= {f"{name}_per_second": rate, f"{name}_per_second_per_device": rate / devices}
        figures |= {
            **unchanged,
            "steps_per_second": len(steps) / elapsed,
            "data_wait_fraction": self._waited / elapsed,
            "checkpoint_wait_fraction": self._saved / elapsed,
            "compile_seconds": self._compiled,
            "goodput": self._useful / (now - self._born),
        }
        if self._peak_flops is not None:
            figures["model_flops_utilization"] = (
                self._flops_per_step * len(steps) / elapsed / (devices * self._peak_flops)
            )
        memory = jax.local_devices()[0].memory_stats()
        if memory and "peak_bytes_in_use" in memory:
            figures["device_memory_peak_bytes"] = memory["peak_bytes_in_use"]
        self.history = steps
        self._restart()
        return figures


def _when_computed(metrics: Metrics) -> float:
    """Waits for a step, on a thread of its own: `time.perf_counter()` then."""
    jax.block_until_ready(metrics)
    return time.perf_counter()


# A profile of a few steps of a run, for TensorBoard and XProf.

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


FOLDER = "diagnosis"


def write_diagnosis(
    run_dir: pathlib.Path,
    stage: str,
    step: int,
    history: list[dict[str, float]],
    batch: Batch,
    data_state: dict[str, Any],
) -> pathlib.Path:
    """Writes the last steps' figures, the state of the data and this process's part of the last batch.

    Every process calls it; what is the same for all, the first one writes.

    Returns:
        The folder, `<run_dir>/diagnosis/<stage>_<step>`.
    """
    folder = run_dir / FOLDER / f"{stage}_{step}"
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        (folder / "steps.json").write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
        (folder / "data_state.json").write_text(
            json.dumps(data_state, indent=2) + "\n", encoding="utf-8"
        )
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    arrays = {jax.tree_util.keystr(path).strip("."): _local_rows(leaf) for path, leaf in leaves}
    np.savez_compressed(folder / f"batch_{jax.process_index()}.npz", allow_pickle=False, **arrays)
    return folder


def _local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array that this process holds, each once."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
