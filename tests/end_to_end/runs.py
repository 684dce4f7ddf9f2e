"""Runs of `launch.train` on the tones, in processes of their own, and what they leave."""

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
    """A Python program, to its end, on so many simulated devices."""
    environment = {**os.environ}
    if devices > 1:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment
    )


def start(*command: str) -> "subprocess.Popen[str]":
    """A Python program, left running."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_processes(
    processes: int, devices: int, settings: Sequence[str]
) -> "list[subprocess.Popen[str]]":
    """`launch.train`, left running in so many processes of so many CPU devices each."""
    port = free_port()
    return [
        start(
            *("-m", "tests.parallel.train_process", str(devices), *settings),
            *([f"--distributed=127.0.0.1:{port},{processes},{index}"] if processes > 1 else []),
        )
        for index in range(processes)
    ]


def read_errors(started: "list[subprocess.Popen[str]]") -> list[str]:
    """What each process says on standard error, until all have ended."""
    with ThreadPoolExecutor(
        len(started)
    ) as readers:  # all at once: one that cannot write what it has to say stops the others
        return list(readers.map(lambda process: process.communicate(timeout=600)[1], started))


def train_in_processes(processes: int, devices: int, settings: Sequence[str]) -> None:
    """Runs `launch.train` to its end, in so many processes of so many CPU devices each."""
    started = start_processes(processes, devices, settings)
    said = read_errors(started)
    assert [process.returncode for process in started] == [0] * processes, "".join(
        text[-3000:] for text in said
    )


def arguments(folder: pathlib.Path, name: str) -> list[str]:
    """Of `launch.train`, for a run of that name in the folder of the `folder` fixture."""
    return [f"--config={folder / 'config.py'}", f"--config.run_dir={folder / name}"]


def wait_for(process: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
    """Until something has happened, or the program has ended."""
    while process.poll() is None and not happened():
        time.sleep(0.002)


def num_logged_lines(run_dir: pathlib.Path) -> int:
    """Lines of a run's metrics.jsonl."""
    return len(metrics(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0


def metrics(run_dir: pathlib.Path) -> list[dict]:
    """Every whole line of a run's metrics.jsonl."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def untimed_metrics(run_dir: pathlib.Path) -> list[dict]:
    """All that was logged but the clock's figures."""
    timing = re.compile("per_second|_share$|compile_seconds|goodput")
    return [
        {name: value for name, value in line.items() if not timing.search(name)}
        for line in metrics(run_dir)
    ]
