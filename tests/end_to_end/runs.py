"""Runs programs in subprocesses and reads the metrics of training runs."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = [*(("mid", step) for step in range(1, 46)), *(("sft", step) for step in range(1, 36))]


def run(*command: str, devices: int = 1) -> "subprocess.CompletedProcess[str]":
    """Runs a Python program to its end, on a number of simulated devices."""
    environment = {**os.environ}
    if devices > 1:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment
    )


def start(*command: str) -> "subprocess.Popen[str]":
    """Starts a Python program and returns while it runs."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    """Returns a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_processes(
    processes: int, devices: int, settings: Sequence[str]
) -> "list[subprocess.Popen[str]]":
    """Starts `launch.train` in several processes with several CPU devices each."""
    port = free_port()
    return [
        start(
            *("-m", "tests.parallel.train_process", str(devices), *settings),
            *([f"--distributed=127.0.0.1:{port},{processes},{index}"] if processes > 1 else []),
        )
        for index in range(processes)
    ]


def read_errors(started: "list[subprocess.Popen[str]]") -> list[str]:
    """Waits until all processes have ended; returns the standard error of each."""
    # All at once: a process whose pipe is full would block the others.
    with ThreadPoolExecutor(len(started)) as readers:
        return list(readers.map(lambda process: process.communicate(timeout=600)[1], started))


def train_in_processes(processes: int, devices: int, settings: Sequence[str]) -> None:
    """Runs `launch.train` to its end in several processes with several CPU devices each."""
    started = start_processes(processes, devices, settings)
    errors = read_errors(started)
    assert [process.returncode for process in started] == [0] * processes, "".join(
        text[-3000:] for text in errors
    )


def arguments(folder: pathlib.Path, name: str) -> list[str]:
    """Returns the arguments of `launch.train` for a run in the folder of the `folder` fixture."""
    return [f"--config={folder / 'config.py'}", f"--config.run_dir={folder / name}"]


def wait_for(process: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
    """Waits until something has happened or the program has ended."""
    while process.poll() is None and not happened():
        time.sleep(0.002)


def num_logged_lines(run_dir: pathlib.Path) -> int:
    """Returns the number of complete lines of a run's metrics.jsonl."""
    return len(metrics(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0


def wait_for_logged_lines(
    process: "subprocess.Popen[str]", run_dir: pathlib.Path, count: int
) -> None:
    """Waits until a run has logged `count` lines or the program has ended."""
    wait_for(process, lambda: num_logged_lines(run_dir) >= count)


def metrics(run_dir: pathlib.Path) -> list[dict]:
    """Reads every complete line of a run's metrics.jsonl."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def untimed_metrics(run_dir: pathlib.Path) -> list[dict]:
    """Reads the metrics of a run without those that depend on time."""
    timing = re.compile("per_second|wait_(fraction|seconds)|compile_seconds|goodput")
    return [
        {name: value for name, value in line.items() if not timing.search(name)}
        for line in metrics(run_dir)
    ]
