"""Starts, kills and compares runs whose folders are in a bucket."""

import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from stepaudio_jax import hub
from stepaudio_jax.storage import PathLike, read_step_lines, to_path
from tests.end_to_end.runs import start
from tests.storage.gcs_server import GcsServer

_TIMES = re.compile("per_second|wait_fraction|compile_seconds|goodput")


def untimed(run_dir: PathLike) -> list[dict]:
    """Reads the metrics of a run, wherever it lies, without those that depend on time."""
    return [
        {name: value for name, value in line.items() if not _TIMES.search(name)}
        for line in read_step_lines(to_path(run_dir) / "metrics.jsonl")
    ]


def num_logged(server: GcsServer, run_dir: str) -> int:
    """Returns the number of lines that a run in the bucket has logged."""
    if not any(name.startswith(f"{run_dir}/metrics.jsonl") for name in [*server.buckets["bucket"]]):
        return 0
    return len(read_step_lines(f"gs://bucket/{run_dir}/metrics.jsonl"))


def is_saving(server: GcsServer, names_before: set[str]) -> bool:
    """Returns whether a checkpoint is being written that was not there before."""
    names = set(server.buckets["bucket"])
    new = [name for name in names - names_before if "/checkpoints/" in name and "/state/" in name]
    steps = {name.rpartition("/state/")[0] for name in new}
    return any(f"{step}/commit_success.txt" not in names for step in steps)


def kill_when(process: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
    """Kills a program (SIGKILL) once something has happened; fails if it has ended before."""
    while process.poll() is None and not happened():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


def train(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    """Starts `launch.train`."""
    return start("-m", "launch.train", *arguments)


def finish(process: "subprocess.Popen[str]") -> str:
    """Waits for a program to end well; returns what it printed."""
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return printed


def assert_same_model(left: PathLike, right: PathLike) -> None:
    """Checks that two folders hold the same parameters, bit for bit."""
    leaves = [
        [np.asarray(leaf) for leaf in jax.tree.leaves(hub.read_parameters(folder))]
        for folder in (left, right)
    ]
    for first, second in zip(*leaves, strict=True):
        np.testing.assert_array_equal(first.view(np.uint8), second.view(np.uint8))


def upload(folder: pathlib.Path, target: PathLike) -> None:
    """Copies all files of a local folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            copy = to_path(target) / file.relative_to(folder).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
