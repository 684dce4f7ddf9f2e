"""What a run reports of itself: metrics, throughput, progress, profiles, and why it diverged."""

import contextlib
import io
import json
import logging
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import tqdm

from stepaudio_jax.config import DataConfig
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import BucketPath, Path, StepLog, copy_file, open_write, write_text
from stepaudio_jax.training.run_folder import METRICS
from stepaudio_jax.training.tensorboard import TensorBoardWriter

logger = logging.getLogger(__name__)

EVALUATION_LOSS = "evaluation/loss"  # name of the metric
PROFILE, DIAGNOSIS = "profile", "diagnosis"  # folders of a run

# Metrics that are 1 for a step that changed nothing, and say why.
_UNCHANGED = ("skipped_steps", "zero_gradient_steps")
# Waiting for data is worth a warning from so much on.
_MIN_WARNED_SECONDS, _MIN_WARNED_FRACTION = 10.0, 0.05
# Metrics that are summed over steps, not averaged.
_COUNTS = ("tokens", "loss_tokens", "audio_seconds", *_UNCHANGED)


class MetricsWriter:
    """Writes a line of metrics.jsonl and TensorBoard points for each logged step.

    A run that resumes drops the lines after the step it resumes from, so that each step has one
    line, in order. Of several processes only the first writes.

    Args:
        run_dir: the run's folder.
        stage: its name.
        resume_step: the steps of the stage that are done.
    """

    def __init__(self, run_dir: Path, *, stage: str, resume_step: int):
        self._is_writer = jax.process_index() == 0
        if not self._is_writer:
            return
        self._log = StepLog(run_dir / METRICS, stage, resume_step)
        self._tensorboard = TensorBoardWriter(run_dir, stage, resume_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a step of this stage."""
        if not self._is_writer:
            return
        values = {name: float(value) for name, value in metrics.items()}
        self._log.append(step, values)
        self._tensorboard.write(step, values)

    def is_missing(self, step: int, metric: str) -> bool:
        """Returns whether no line of this step has the metric; the same in every process."""
        missing = self._log.find(step, metric) is None if self._is_writer else None
        return broadcast_json(missing)

    def add_to_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics to the line of a step that was the last one logged."""
        if not self._is_writer:
            return
        line = self._log.find(step) or {}
        self._log.drop_after(step - 1)
        logged = {name: value for name, value in line.items() if name not in ("stage", "step")}
        self.write(step, logged | dict(metrics))

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._is_writer:
            self._tensorboard.close()


def progress_bar(stage: str, steps: int, steps_done: int) -> "tqdm.tqdm[None]":
    """Returns a progress bar of a stage's steps on standard error; only process 0 shows it."""
    return tqdm.tqdm(
        total=steps,
        initial=steps_done,
        desc=stage,
        unit="step",
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=jax.process_index() != 0,
    )


def progress_bar_metrics(metrics: Mapping[str, float]) -> dict[str, str]:
    """Returns the few metrics that the progress bar shows, formatted."""
    return {
        "loss": f"{metrics['loss']:.3f}",
        "tok/s": f"{metrics['tokens_per_second']:.0f}",
        "audio-s/s": f"{metrics['audio_seconds_per_second']:.1f}",
        "data-wait": f"{100 * metrics['data_wait_fraction']:.0f}%,"
        f" {metrics['data_wait_seconds']:.0f}s in all",
    }


class ThroughputMeter:
    """Collects the metrics of steps without waiting for their computation; `summary` waits once.

    Args:
        flops_per_step: floating-point operations of the whole job, by formula.
        peak_flops: the peak of one device; None: unknown, and no utilization is reported.

    Attributes:
        history: the metrics of each step of the last `summary`.
        data_wait_seconds: in which no step was computed for want of a batch, until the last
            `summary`.
        seconds: of all steps until then, and of what they waited for.
    """

    def __init__(self, flops_per_step: float, peak_flops: float | None) -> None:
        self.history: list[dict[str, float]] = []
        self.data_wait_seconds = 0.0
        self.seconds = 0.0
        self._flops_per_step, self._peak_flops = flops_per_step, peak_flops
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="stepaudio-meter")
        self._last_step_done_at: Future[float] | None = None
        self._created_at = time.perf_counter()
        self._useful_seconds = 0.0  # spent on steps that changed something, since creation
        self._compile_seconds = 0.0
        self._restart()

    def _restart(self) -> None:
        self._metrics: list[Mapping[str, jax.Array]] = []
        self._start = time.perf_counter()
        self._data_wait_seconds = 0.0
        self._checkpoint_wait_seconds = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts as waiting for data the time inside during which no step was being computed."""
        start = time.perf_counter()
        yield
        last = self._last_step_done_at
        if last is None or last.done():
            idle_since = start if last is None else max(start, last.result())
            self._data_wait_seconds += time.perf_counter() - idle_since

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Leaves the first call of a step, which compiles it, out of the throughput."""
        start = time.perf_counter()
        yield
        self._compile_seconds += time.perf_counter() - start
        self._start += time.perf_counter() - start

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Counts the time inside as waiting for a checkpoint."""
        jax.block_until_ready(self._metrics)
        start = time.perf_counter()
        yield
        self._checkpoint_wait_seconds += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the throughput."""
        jax.block_until_ready(self._metrics)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Adds one step's metrics, which may still be being computed."""
        self._metrics.append(metrics)
        self._last_step_done_at = self._executor.submit(_wait_for, metrics)

    def summary(self) -> dict[str, float]:
        """Returns the metrics of the steps since the last call, and starts anew.

        Metrics are averaged over the steps that changed something; skipped_steps and
        zero_gradient_steps count the others. Rates are per second, of the job and of a device;
        data_wait_fraction and checkpoint_wait_fraction are shares of the time; data_wait_seconds
        is the sum since the process began the stage.
        model_flops_utilization is the share of the devices' peak. goodput is the share of the
        process's time since the stage began that went into steps that changed something: the rest
        is compilation, evaluation, checkpoints and waiting for data.
        """
        steps = [
            {name: float(value) for name, value in step.items()}
            for step in jax.device_get(self._metrics)
        ]
        now = time.perf_counter()
        elapsed, devices = now - self._start, jax.device_count()
        unchanged = {name: sum(step[name] for step in steps) for name in _UNCHANGED}
        changed = [step for step in steps if not any(step[name] for name in _UNCHANGED)]
        averaged = changed or steps
        self.seconds += elapsed
        self.data_wait_seconds += self._data_wait_seconds
        waited = self._data_wait_seconds + self._checkpoint_wait_seconds
        changed_fraction = 1 - sum(unchanged.values()) / len(steps)
        self._useful_seconds += (elapsed - waited) * changed_fraction
        metrics = {
            name: sum(step[name] for step in averaged) / len(averaged)
            for name in averaged[0]
            if name not in _COUNTS
        }
        for name in ("tokens", "audio_seconds"):
            rate = sum(step[name] for step in steps) / elapsed
            metrics |= {f"{name}_per_second": rate, f"{name}_per_second_per_device": rate / devices}
        metrics |= {
            **unchanged,
            "steps_per_second": len(steps) / elapsed,
            "data_wait_fraction": self._data_wait_seconds / elapsed,
            "data_wait_seconds": self.data_wait_seconds,
            "checkpoint_wait_fraction": self._checkpoint_wait_seconds / elapsed,
            "compile_seconds": self._compile_seconds,
            "goodput": self._useful_seconds / (now - self._created_at),
        }
        if self._peak_flops is not None:
            metrics["model_flops_utilization"] = (
                self._flops_per_step * len(steps) / elapsed / (devices * self._peak_flops)
            )
        memory = jax.local_devices()[0].memory_stats()
        if memory and "peak_bytes_in_use" in memory:
            metrics["device_memory_peak_bytes"] = memory["peak_bytes_in_use"]
        self.history = steps
        self._restart()
        return metrics


def _wait_for(metrics: Mapping[str, jax.Array]) -> float:
    """Waits until a step's metrics are computed; returns `time.perf_counter()` then."""
    jax.block_until_ready(metrics)
    return time.perf_counter()


class DataWaitWarning:
    """Warns, once a stage, where this process waits for its data for a notable part of the time.

    Args:
        stage: its name.
        data: what it reads.
    """

    def __init__(self, stage: str, data: DataConfig):
        self._stage, self._data = stage, data
        self._has_warned = False

    def update(self, meter: ThroughputMeter) -> None:
        """Warns if it is time to; call it after each summary of the meter."""
        waited, fraction = meter.data_wait_seconds, meter.data_wait_seconds / meter.seconds
        if self._has_warned or waited < _MIN_WARNED_SECONDS or fraction < _MIN_WARNED_FRACTION:
            return
        self._has_warned = True
        logger.warning(
            "stage %r has waited %.0f s for its data, %.0f %% of the time. Raise data.threads (now"
            " %d) or data.workers (now %d) while processors are idle (this host has %d), or store"
            " the data in its fastest form: launch.data convert --container=array_record, on a"
            " disk of this host",
            self._stage,
            waited,
            100 * fraction,
            self._data.threads,
            self._data.workers,
            os.cpu_count() or 1,
        )


class StepProfile:
    """Profiles the configured steps into `RUN_DIR/profile`, for TensorBoard and XProf.

    Args:
        run_dir: the run's folder.
        steps: first and last step, counted over all stages; None: none.
    """

    def __init__(self, run_dir: Path, steps: tuple[int, int] | None):
        self._folder = run_dir / PROFILE
        self._local: tempfile.TemporaryDirectory[str] | None = None  # for a folder in a bucket
        self._steps = steps
        self._is_running = False

    def before(self, step: int) -> None:
        """Starts the profile if this is its first step."""
        if self._steps is not None and step == self._steps[0]:
            if isinstance(self._folder, BucketPath):
                self._local = tempfile.TemporaryDirectory(prefix="stepaudio-profile-")
            jax.profiler.start_trace(str(self._folder) if self._local is None else self._local.name)
            self._is_running = True

    def after(self, step: int, outputs: Any) -> None:
        """Ends the profile if this was its last step, when the step's `outputs` are computed."""
        if self._steps is not None and step == self._steps[1] and self._is_running:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends the profile if it is still running."""
        if self._is_running:
            jax.profiler.stop_trace()
            self._is_running = False
        if self._local is not None:
            for file in pathlib.Path(self._local.name).rglob("*"):
                if file.is_file():
                    place = file.relative_to(self._local.name).as_posix()
                    copy_file(file, self._folder / place)
            self._local.cleanup()
            self._local = None


def write_diagnosis(
    run_dir: Path,
    stage: str,
    step: int,
    history: list[dict[str, float]],
    batch: Any,
    data_state: dict[str, Any],
) -> Path:
    """Writes what helps to find out why a run diverged.

    Every process calls this; the first writes the metrics and the data state, each its own rows of
    the batch.

    Args:
        run_dir, stage: the run's folder, and the name of its stage.
        step: the last one.
        history: the metrics of the last steps.
        batch: the arrays that the last step was computed from: a tree, sharded by rows.
        data_state: the state of the data iterator after it, or what a checkpoint has in its place.

    Returns:
        The folder, `<run_dir>/diagnosis/<stage>_<step>`.
    """
    folder = run_dir / DIAGNOSIS / f"{stage}_{step}"
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_text(folder / "steps.json", json.dumps(history, indent=2) + "\n")
        write_text(folder / "data_state.json", json.dumps(data_state, indent=2) + "\n")
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="."): _local_rows(leaf)
        for path, leaf in leaves
    }
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    with open_write(folder / f"batch_{jax.process_index()}.npz") as file:
        file.write(content.getvalue())
    return folder


def _local_rows(array: jax.Array) -> np.ndarray:
    """Returns the rows of an array that this process holds, each once."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
